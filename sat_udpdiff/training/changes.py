"""Settings that changed between a checkpoint and the run that goes on from it.

Four kinds: those that never may, those that nobody needs to hear of, those that leave the training
what it would have been and are told, and the rest, which `run.allow_changes` must name.
"""

from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter
from pathlib import Path

from sat_udpdiff.config import GLOBAL_BATCH, Config, ConfigError, global_batch
from sat_udpdiff.config_io import setting_types

# The weights would not fit, or would have been trained on two different things.
_FIXED = ("model", "diffusion", "lora", "seed")
# Nothing of the training: where it writes, what is said and looked at.
_SILENT = ("run", "log", "checkpoint", "validation", "sample", "model.activation_checkpointing",
    "colormap.depth_inverse")  # fmt: skip
# The same examples, weights and steps, but for the order of sums; what it is stopped by.
_FREE = (
    # Read before the first step alone; what of it lies beside adapters is known by its fingerprint.
    "init",
    "codec.slicing",
    # A folder that was moved is still itself.
    "data.shards", "data.latents", "data.cache_dir", "data.cache_gb",
    "data.num_workers", "data.prefetch", "data.decode_seconds", "data.max_bad_share",
    "train.zero_stage", "train.reduce_bucket_elements", "train.max_bad_steps",
    # What they make together is looked at: the global batch.
    "train.micro_batch_size", "train.accumulation_steps", "train.global_batch", "parallel",
    "train.offload",
)  # fmt: skip

Change = tuple[object, object]
"""Value so far, and from here on."""


def check_changes(
    before: Config, now: Config, *, world_sizes: tuple[int, int], folder: Path
) -> list[str]:
    """Lines to tell of settings that changed, all of which may.

    Args:
        before: Of the checkpoint.
        now: Of the run.
        world_sizes: Ranks that saved the checkpoint, and ranks of the run.
        folder: Of the checkpoint, for messages.

    Raises:
        ConfigError: A setting changed that may not, or that `run.allow_changes` does not name; one
            line with all of them.
    """
    changes = dict(_changes(before, now))
    for key, (was, is_now) in changes.items():
        if _is_among(key, _FIXED):
            raise ConfigError(
                f"{key}: the run in {folder.parent.parent} was made with {was}, got {is_now}; "
                "set it back, or choose another run.output",
                keys=(key,),
            )
    free = [*_FREE, *_free_steps(now)]
    altering = {key: change for key, change in changes.items() if not _is_among(key, free)}
    was = global_batch(before, processes=world_sizes[0])
    is_now = global_batch(now, processes=world_sizes[1])
    if was != is_now:
        altering[GLOBAL_BATCH] = was, is_now
    _check_allowed(altering, now=now, folder=folder)
    told = changes | altering
    return [
        f"note: {key} was {was} so far, from here on it is {is_now}"
        for key, (was, is_now) in told.items()
    ]


def _changes(before: Config, now: Config) -> Iterator[tuple[str, Change]]:
    for key in setting_types():
        was, is_now = attrgetter(key)(before), attrgetter(key)(now)
        if was != is_now and not _is_among(key, _SILENT):
            yield key, (was, is_now)


def _free_steps(now: Config) -> list[str]:
    """A longer or shorter training is the same as far as both go, if no schedule ends with it."""
    return ["train.steps"] if now.optimizer.schedule == "constant" else []


def _check_allowed(altering: Mapping[str, Change], *, now: Config, folder: Path) -> None:
    refused = [key for key in altering if key not in now.run.allow_changes]
    if not refused:
        return
    described = "; ".join(
        f"{key} was {altering[key][0]}, got {altering[key][1]}" for key in refused
    )
    every = ",".join([*now.run.allow_changes, *refused])
    raise ConfigError(
        f"{folder}: the training would not go on as it began: {described}. Set it back, choose "
        f"another run.output, or allow it with run.allow_changes=[{every}]",
        keys=tuple(key for key in refused if key != GLOBAL_BATCH),
    )


def _is_among(key: str, heads: Sequence[str]) -> bool:
    return any(key == head or key.startswith(f"{head}.") for head in heads)
