r"""Make videos and their dense maps from prompts.

    python sat_udpdiff/sample.py --load RUN --task depth --prompt "a red disc moves left" \
        --seed 1 --output SAMPLES

RUN is a run folder, one of its checkpoints, or a weights file. A run brings its own configuration;
`--base` files and `key=value` settings go on top. Each sample gets a folder; see outputs.py.

On several processes (torchrun, srun, mpirun) each makes samples of its own, or some together:

    torchrun --nproc_per_node 8 sat_udpdiff/sample.py sample.guidance_size=2 \
        sample.sequence_size=4 --load RUN ...
"""

import argparse
import re
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from data_loaders.progress_bar import progress_bar
from sat_udpdiff.config import TASKS, Config
from sat_udpdiff.config_io import dump_config, parse_cli
from sat_udpdiff.distributed import Place, close_distributed, find_place, init_distributed
from sat_udpdiff.generation import SampleRequest, check_request, check_task
from sat_udpdiff.held_out import prompts_of_file
from sat_udpdiff.loading import Model, idle_decoders, settings_beside, unseen_words
from sat_udpdiff.outputs import write_sample
from sat_udpdiff.parallel.layout import Layout, lay_out
from sat_udpdiff.parallel.sampling import until_all_are_done
from sat_udpdiff.weights.find import find_weights, is_on_hub

_SHORTCUTS = {
    "num_frames": "data.num_frames",
    "height": "data.height",
    "width": "data.width",
    "steps": "sample.num_steps",
    "sampler": "sample.sampler",
    "guidance": "sample.guidance",
    "guidance_scale": "sample.guidance_scale",
}
"""Options of the command line that stand for a setting."""
_SLUG_LENGTH = 40


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One batch: what to make, and where each seed's sample goes."""

    request: SampleRequest
    folders: tuple[Path, ...]


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status (2 = the request cannot be met, in one line)."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        options, config = parse_cli(
            _with_settings(arguments), description=(__doc__ or ""), extra=_add_options
        )
        jobs = plan(options, config=config)
        if options.dry_run:
            if not is_on_hub(options.load):
                find_weights(options.load, ema=options.ema)
            print(dump_config(config) + "\n".join(str(f) for job in jobs for f in job.folders))
            return 0
        layout = _lay_out(config, place=find_place()[0])
        model = _load(options, config=config, layout=layout)
    except ValueError as error:
        print(f"sample.py: {error}", file=sys.stderr)
        return 2
    if layout.rank == 0:
        prompts = [job.request.prompt for job in jobs]
        for line in [
            *unseen_words(prompts, encoders=model.encoders),
            *idle_decoders(config, layout=layout, batch_size=options.batch_size),
        ]:
            print(f"sample.py: note: {line}", file=sys.stderr)
    with until_all_are_done() if prod(layout.sizes) > 1 else nullcontext():
        run(jobs[layout.at.data :: layout.sizes.data], model=model, shows=layout.rank == 0)
    return 0


def plan(options: argparse.Namespace, *, config: Config) -> list[Job]:
    """Everything that will be made, checked before anything is loaded.

    Raises:
        ValueError: No prompt, a request the network cannot meet, or outputs that exist already.
    """
    for name in ("load", "output"):
        if getattr(options, name) is None:
            raise ValueError(f"--{name}: expected a path, got nothing")
    seeds = tuple(dict.fromkeys(options.seeds or [config.seed]))
    task = check_task(options.task, config=config)
    data, jobs = config.data, []
    for index, prompt in enumerate(_prompts(options)):
        request = SampleRequest(
            prompt=prompt,
            task=task,
            seeds=seeds,
            num_frames=data.num_frames,
            height=data.height,
            width=data.width,
            batch_size=options.batch_size,
        )
        check_request(request, config=config)
        for first in range(0, len(seeds), options.batch_size):
            part = replace(request, seeds=seeds[first : first + options.batch_size])
            folders = [options.output / folder_name(part, index=index, seed=s) for s in part.seeds]
            jobs.append(Job(request=part, folders=tuple(folders)))
    existing = [folder for job in jobs for folder in job.folders if folder.exists()]
    if existing and not options.overwrite:
        raise ValueError(
            f"--output: {existing[0]} exists already ({len(existing)} such); "
            "give --overwrite to replace, or another folder"
        )
    return jobs


def folder_name(request: SampleRequest, *, index: int, seed: int) -> str:
    """Name of a sample's folder: number of the prompt, its words, task and seed."""
    slug = re.sub(r"[^a-z0-9]+", "-", request.prompt.lower())[:_SLUG_LENGTH].strip("-")
    return f"{index:03d}_{slug or 'prompt'}_{request.task or 'rgb'}_seed{seed}"


def _lay_out(config: Config, *, place: Place) -> Layout:
    sample = config.sample
    return lay_out(
        sample.parallel, place=place, guidance_size=sample.guidance_size, section="sample"
    )


def _load(options: argparse.Namespace, *, config: Config, layout: Layout) -> Model:
    """The model, shared with the other processes where there are some."""
    if prod(layout.sizes) == 1:
        return Model.load(options.load, config=config, ema=options.ema)
    # They meet here and not before: all have looked for existing samples when the first writes one.
    device = init_distributed().device
    # What is written beside a sample makes it again on one process.
    alone = replace(config.sample, guidance_size=1, sequence_size=1, tensor_size=1)
    config = replace(config, sample=alone)
    try:
        return Model.load_together(
            options.load, config=config, layout=layout, device=device, ema=options.ema
        )
    except ValueError:
        close_distributed()
        raise


def run(jobs: list[Job], *, model: Model, shows: bool = True) -> None:
    """Make samples, each written as soon as it is there.

    Args:
        jobs: Of this process, and of those that work on the same samples.
        model: What makes them.
        shows: Whether this process has the progress bar.
    """
    config = model.config
    steps = sum(len(job.folders) for job in jobs) * config.sample.num_steps
    with progress_bar(total=steps, unit="step", disable=not shows) as bar:
        for job in jobs:
            bar.set_description(job.request.prompt[:_SLUG_LENGTH])
            samples = model.generate(job.request, on_step=bar.update)
            # Of the processes that make a sample together, the first has it.
            for sample, folder in zip(samples, job.folders, strict=model.helpers.is_first):
                record = model.record(sample, request=job.request, folder=folder)
                # What may be replaced was settled by `plan`.
                write_sample(sample, folder, config=config, record=record, overwrite=True)
                bar.write(str(folder / "contact_sheet.png"), file=sys.stdout)


def _add_options(parser: argparse.ArgumentParser) -> None:
    # What is required is checked in `plan`, which can say more than argparse.
    parser.add_argument("--load", metavar="PATH", help="run, checkpoint, weights file, or `tiny`")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="one folder per sample in it")
    parser.add_argument("--task", help=f"what the dense map shows: {' or '.join(TASKS)}")
    parser.add_argument("--prompt", action="append", default=[], help="may be given several times")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="text file, a prompt per line")
    seeds = parser.add_mutually_exclusive_group()
    seeds.add_argument(
        "--seed", type=_seed, nargs=1, dest="seeds", help="default: the run's `seed`"
    )
    seeds.add_argument("--seeds", type=_seed, nargs="+", dest="seeds", help="one sample per seed")
    parser.add_argument(
        "--batch-size", type=int, default=1, help="samples at once; 1 repeats to the last bit"
    )
    parser.add_argument("--ema", action="store_true", help="take the averaged weights")
    parser.add_argument("--overwrite", action="store_true", help="replace existing samples")
    for name, key in _SHORTCUTS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", help=f"short for {key}=")


def _seed(word: str) -> int | str:
    """A seed, or a setting that stands behind the seeds."""
    if "=" in word:
        return word
    try:
        return int(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected an integer >= 0, got {word!r}") from None


def _with_settings(arguments: list[str]) -> list[str]:
    """The command line with the run's own configuration and the shortcuts written out."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    _add_options(parser)
    known, _ = parser.parse_known_args(arguments)
    # `--seeds 1 2 key=value` gives argparse no way to see where the seeds end.
    settings = [word for word in known.seeds or [] if isinstance(word, str)]
    arguments = [word for word in arguments if word not in settings]
    settings += [
        f"{key}={getattr(known, name)}"
        for name, key in _SHORTCUTS.items()
        if getattr(known, name) is not None
    ]
    names_base = any(word.split("=")[0] == "--base" for word in arguments)
    if known.load is None:
        return [*settings, *arguments]
    files, brought = settings_beside(known.load, names_base=names_base or _asks_for_help(arguments))
    base = ["--base", *files] if files else []
    # First, so that what the user names wins.
    return [*brought, *settings, *base, *arguments]


def _asks_for_help(arguments: list[str]) -> bool:
    return any(argument in ("-h", "--help", "--help-config") for argument in arguments)


def _prompts(options: argparse.Namespace) -> list[str]:
    prompts = list(options.prompt)
    if options.prompts is not None:
        prompts += prompts_of_file(options.prompts, option="--prompts")
    if not prompts:
        raise ValueError("--prompt: expected text, or a file of prompts by --prompts, got nothing")
    return prompts


if __name__ == "__main__":
    sys.exit(main())
