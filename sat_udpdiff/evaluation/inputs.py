"""Which real videos the samples are compared with."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from data_loaders.order import ClipSize
from data_loaders.synthetic_scene import WorldConfig
from sat_udpdiff.config import Task
from sat_udpdiff.evaluation.measure import Measure
from sat_udpdiff.evaluation.references import ClipFit, WorldVideo, clips_in
from sat_udpdiff.evaluation.settings import EvaluationConfig, ReferenceSettings
from sat_udpdiff.evaluation.videos import Found, SampleVideo
from sat_udpdiff.held_out import (
    HeldOutPrompt,
    held_out_shards,
    prompts_of_file,
    prompts_of_shards,
    prompts_of_world,
)

_WORLD_ENTITIES = {"simple": 3, "full": 12}
"""As in the clips that the tiny networks were trained on."""


def clip_fit(found: Found) -> ClipFit | None:
    """Size and rate of the samples of a folder; None for other videos, which are as they are."""
    sample = next((video for video in found.videos if isinstance(video, SampleVideo)), None)
    if sample is None:
        return None
    frames, height, width = sample.size
    size = ClipSize(num_frames=frames, height=height, width=width)
    return ClipFit(size=size, fps=sample.fps)


def check_counts(
    tasks: Iterable[Task | None], *, references: int, measures: Sequence[Measure]
) -> None:
    """See before anything is sampled that there will be enough to score.

    Args:
        tasks: Of each sample.
        references: Real clips.
        measures: What will be asked.

    Raises:
        ValueError: A measure wants more samples of a task, or more references.
    """
    counts = Counter(tasks)
    for measure in measures:
        least = measure.min_videos
        for task, count in counts.items():
            if task not in measure.tasks:
                continue
            if count < least:
                raise ValueError(
                    f"prompts.count: {measure.name} wants {least} or more samples of a task, got "
                    f"{count}; take more prompts, or leave it out of measures"
                )
            if measure.compares_with_references and references < max(1, least):
                raise ValueError(
                    f"reference: {measure.name} compares with {max(1, least)} or more real clips, "
                    f"got {references}; name a larger set (reference.shards, reference.count), or "
                    "leave it out of measures"
                )


def find_references(settings: ReferenceSettings, *, fit: ClipFit | None) -> Found:
    """The reference set, brought to the size of the samples; empty where none is named.

    Raises:
        ValueError: It is not there, or needs samples of `sample.py` to know its size.
    """
    if settings.source == "none" or (settings.source == "shards" and not settings.shards):
        return Found(videos=())
    if settings.source == "world":
        if fit is None:
            raise ValueError(
                "reference.source=world: expected samples of sample.py, whose size it takes"
            )
        world = world_of(settings, fit=fit)
        prompts = prompts_of_world(count=settings.count, seed=settings.world_seed, config=world)
        indices = [prompt.world_index for prompt in prompts if prompt.world_index is not None]
        return Found(
            videos=tuple(
                WorldVideo(index=index, seed=settings.world_seed, config=world) for index in indices
            )
        )
    return clips_in(reference_shards(settings), count=settings.count, fit=fit)


def find_prompts(config: EvaluationConfig, *, fit: ClipFit) -> list[HeldOutPrompt]:
    """What a network is asked for.

    Raises:
        ValueError: The source is not there, or has fewer prompts.
    """
    prompts, reference = config.prompts, config.reference
    if prompts.source == "file":
        lines = prompts_of_file(Path(prompts.file), option="prompts.file")[: prompts.count]
        return [HeldOutPrompt(number=number, text=text) for number, text in enumerate(lines)]
    if prompts.source == "world":
        return prompts_of_world(
            count=prompts.count,
            seed=reference.world_seed,
            config=world_of(reference, fit=fit),
            caption=prompts.caption,
        )
    return prompts_of_shards(
        reference_shards(reference), count=prompts.count, caption=prompts.caption
    )


def reference_shards(settings: ReferenceSettings) -> Path | str:
    """The folder of the reference clips, or its address.

    Raises:
        ValueError: None is named.
    """
    if not settings.shards:
        raise ValueError(
            "reference.shards (--reference): expected a folder of shards (a data set's held-out "
            "split), whose captions are the prompts; others: prompts.source=world or file"
        )
    return held_out_shards(settings.shards)


def world_of(settings: ReferenceSettings, *, fit: ClipFit) -> WorldConfig:
    """The synthetic world at the size of the samples."""
    return WorldConfig(
        frames=fit.size.num_frames,
        height=fit.size.height,
        width=fit.size.width,
        fps=fit.fps,
        max_entities=_WORLD_ENTITIES[settings.world],
        world=settings.world,
    )
