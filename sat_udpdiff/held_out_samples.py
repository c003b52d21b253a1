"""Samples of held-out prompts: the same prompts and seeds for every network and task.

Each is a folder that `sample.py` would write. Those that are whole are kept, others made again, so
that a run that was stopped goes on, with however many processes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from data_loaders.progress_bar import progress_bar
from sat_udpdiff.config import Config, Task
from sat_udpdiff.distributed import Place
from sat_udpdiff.evaluation.measure import Fact, UnusableError
from sat_udpdiff.evaluation.videos import SampleVideo, made_by
from sat_udpdiff.generation import SampleRequest, check_request
from sat_udpdiff.held_out import HeldOutPrompt
from sat_udpdiff.loading import Model
from sat_udpdiff.outputs import write_sample
from sat_udpdiff.sample import Job, folder_name


def plan_samples(
    prompts: Sequence[HeldOutPrompt],
    *,
    config: Config,
    seed: int,
    folder: Path,
    tasks: Sequence[Task] = (),
) -> list[Job]:
    """One sample per prompt and task; prompt number k has seed `seed` + k.

    Args:
        prompts: What is asked for.
        config: Of the network; clips have the size of its training.
        seed: Of the first prompt.
        folder: Where the samples' folders are.
        tasks: Of those that the network was trained on; none = all of them.

    Raises:
        ValueError: A request does not fit the network.
    """
    trained: Sequence[Task | None] = config.data.tasks if config.model.dense_groups else (None,)
    jobs = []
    for prompt in prompts:
        for task in tasks or trained:
            request = SampleRequest(
                prompt=prompt.text,
                task=task,
                seeds=(seed + prompt.number,),
                num_frames=config.data.num_frames,
                height=config.data.height,
                width=config.data.width,
            )
            check_request(request, config=config)
            name = folder_name(request, index=prompt.number, seed=request.seeds[0])
            jobs.append(Job(request=request, folders=(folder / name,)))
    return jobs


def missing(jobs: Sequence[Job]) -> list[Job]:
    """Those whose sample is not there, or not whole."""
    return [job for job in jobs if _existing(job) is None]


def make_samples(jobs: Sequence[Job], *, model: Model, place: Place) -> None:
    """Make what is missing of this process's share.

    Raises:
        ValueError: A sample of other weights, settings or prompts lies there.
    """
    ours = jobs[place.rank :: place.world_size]
    wanted = made_by(model.facts)
    del wanted["weights"]  # where they lie is no matter
    for job in ours:
        refuse_others(job, wanted=wanted)
    left = missing(ours)
    steps = len(left) * model.config.sample.num_steps
    bar = progress_bar(total=steps, desc="sampling", unit="step", disable=not place.is_main)
    with bar:
        for job in left:
            (sample,) = model.generate(job.request, on_step=bar.update)
            (folder,) = job.folders
            record = model.record(sample, request=job.request, folder=folder)
            write_sample(sample, folder, config=model.config, record=record, overwrite=True)


def _existing(job: Job) -> SampleVideo | None:
    try:
        return SampleVideo.open(job.folders[0])
    except UnusableError:
        return None


def refuse_others(job: Job, *, wanted: Mapping[str, Fact]) -> None:
    """See that a sample which is there is one that would be made.

    Args:
        job: What would be made.
        wanted: Of `made_by`, or less of it.

    Raises:
        ValueError: It was made of something else; says what, and what is wanted.
    """
    found, request = _existing(job), job.request
    if found is None:
        return
    size = (request.num_frames, request.height, request.width)
    pairs: dict[str, tuple[object, object]] = {
        **{key: (found.made_by.get(key), value) for key, value in wanted.items()},
        "prompt": (found.prompt, request.prompt),
        "size": (found.size, size),
    }
    for key, (there, now) in pairs.items():
        if there != now:
            raise ValueError(
                f"--output: {found.folder} is a sample of another {key} ({there}, now {now}); "
                "give another folder"
            )
