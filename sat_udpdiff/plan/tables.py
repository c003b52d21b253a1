"""Numbers and columns as plans print them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sat_udpdiff.config import Config, global_batch
from sat_udpdiff.plan.sizes import Sizes, count_checkpoints, count_samples

RECOMPUTED_LAYERS = {"none": "no layer", "selective": "every second layer", "full": "every layer"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """A unit and its size."""

    name: str
    size: float


_FLOPS = (
    Unit(name="EFLOP", size=1e18),
    Unit(name="PFLOP", size=1e15),
    Unit(name="TFLOP", size=1e12),
    Unit(name="GFLOP", size=1e9),
)


def flops_unit(count: float) -> Unit:
    """The largest unit of which `count` FLOPs are at least one."""
    return next((unit for unit in _FLOPS if count >= unit.size), _FLOPS[-1])


def flops(count: float) -> str:
    """A number of FLOPs with its unit."""
    unit = flops_unit(count)
    return f"{count / unit.size:,.1f} {unit.name}"


def gigabytes(count: float) -> str:
    """Bytes in GB of 10^9, two digits, aligned to the right."""
    return f"{count / 1e9:>8.2f}"


def size_of(count: int | float) -> str:
    """Bytes in GB of 10^9, or MB of 10^6 where they are few."""
    return f"{count / 1e9:,.2f} GB" if count >= 0.1e9 else f"{count / 1e6:,.2f} MB"


def seconds(count: float) -> str:
    """A duration in words short enough for a table."""
    if count < 1e-3:
        return f"{count * 1e6:.0f} us" if count else "0 s"
    return f"{count:.3f} s" if count < 1 else f"{count:,.1f} s"


def days(count: float) -> str:
    """Days, or hours and minutes where there are few."""
    hours = count * 24
    if hours >= 48:
        return f"{count:.1f} days"
    if hours >= 1:
        return f"{hours:.1f} hours"
    return f"{hours * 60:.1f} minutes"


def rows(pairs: Sequence[tuple[str, str]], *, width: int, indent: str = "") -> str:
    """Names and values in two columns; a name without a value is a line by itself."""
    return "\n".join(f"{indent}{name:<{width}}{text}".rstrip() for name, text in pairs)


def describe_run(
    config: Config, *, sizes: Sizes, gpus: int, processes: str
) -> list[tuple[str, str]]:
    """What is trained, on how much, as rows."""
    train = config.train
    batch = global_batch(config, processes=gpus)
    ranks = _describe_ranks(config, gpus=gpus, processes=processes)
    frames, channels, height, width = sizes.latent
    trained = sizes.trained_parameters
    share = "" if trained == sizes.parameters else f", {trained:,} of them trained"
    return [
        ("latent", f"{frames} x {channels} x {height} x {width} (frames, channels, height, width)"),
        ("tokens", f"{sizes.text_tokens} text + {sizes.video_tokens:,} video = {sizes.tokens:,}"),
        ("parameters", f"{sizes.parameters:,}{share}"),
        ("global batch", f"{batch} = {train.micro_batch_size} x {train.accumulation_steps} "
                         f"accumulated x {ranks}"),
        ("samples drawn", f"{batch * train.steps:,} in {train.steps:,} steps"),
        ("samples per epoch", _describe_samples(config, batch=batch)),
    ]  # fmt: skip


def _describe_ranks(config: Config, *, gpus: int, processes: str) -> str:
    size = config.parallel.size
    groups = f"{max(1, gpus // size)} groups of {size} {processes}"
    return groups if size > 1 else f"{gpus} {processes}"


def describe_checkpoint(config: Config, *, sizes: Sizes) -> str:
    """Size of a checkpoint, and of all that lie on the disk at once."""
    count = count_checkpoints(config)
    size = sizes.checkpoint_bytes / 1e9
    return (
        f"{size:,.2f} GB, of which the network {sizes.network_bytes / 1e9:,.2f} GB; "
        f"up to {count:,} on disk: {count * size:,.1f} GB"
    )


def _describe_samples(config: Config, *, batch: int) -> str:
    is_cached = config.data.source == "latents"
    name = config.data.latents if is_cached else config.data.shards
    samples = count_samples(config)
    if samples is None:
        what = "latents" if is_cached else "shards"
        return f"unknown, no {what} at {name}" if name else "unknown"
    epochs = batch * config.train.steps / max(samples, 1)
    return f"{samples:,}; the run takes {epochs:.2f} epochs"
