"""What a data set would take: hours, memory and space, before the first clip is looked at.

Measured where it can be: seconds of stages that ran on this data set, else of this project's own
machine for those that need no model. Estimated where not: operations over what a GPU does of them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from data_loaders.panda_dense.entity_cost import GFLOPS_480X720
from data_loaders.panda_dense.progress import duration
from data_loaders.panda_dense.sam2_cost import clip_flop, sam2_size
from data_loaders.panda_dense.settings import PandaConfig
from data_loaders.panda_dense.stages import STAGES
from data_loaders.panda_dense.status import StageStatus, status_of
from data_loaders.panda_dense.store import Store
from data_loaders.shard_report import human_bytes

_REFERENCE = 49 * 480 * 720
"""Pixels of the clips that the figures below are of."""

# Seconds per clip of 49x480x720 of one process on one thread of a CPU; tests/benchmarks/README.md.
_CPU_SECONDS = {"filter": 1.5, "cut": 3.2, "write": 0.05}
_CLASSICAL_SECONDS = {"segment": 0.2, "propagate": 5.6}
# Of an A100: half precision and fp32 (TF32 off), operations per second, and bytes per second.
_HALF, _SINGLE, _BANDWIDTH = 312e12, 19.5e12, 2.0e12
_SHARE = 0.3
"""Of its operations that a GPU is taken to do on networks of convolutions and small attention."""
_ENTITIES = 12
"""Per clip: the middle of where most of the paper's clips lie (figure 6: 1 to 20)."""
_KEPT = {"filter": 0.8, "select": 0.6, "segment": 0.99, "propagate": 0.95}
"""Share of the clips that a stage keeps, until it has been seen; guesses, but for Panda-70M's own
80.5 % of desirable clips."""
# Operations per clip of 49x480x720, see tests/benchmarks/README.md: Depth Anything V2 at 518x784
# (counted); captioners with 8 frames and 120 tokens (language by formula).
_DEPTH_FLOP = {"small": 9.9e12, "base": 30.9e12, "large": 104e12}
_DEPTHCRAFTER_SECONDS = 49 * 0.466 * (512 * 704) / (576 * 1024)
"""By its authors' 466 ms per frame of 576x1024; by its 741 TFLOP it would be 8 s."""
_CAPTION_FLOP = {"video_llava": 33e12, "qwen2_5_vl": 36e12, "qwen3_vl": 40e12}
# A word of an answer reads all weights; those of a batch share it. 120 tokens.
_CAPTION_BYTES = {"video_llava": 1.75e12, "qwen2_5_vl": 1.8e12, "qwen3_vl": 2.1e12}
_MEMORY = {"segment": 6.0, "propagate": 4.0, "depth": 16.0, "caption": 20.0}
"""GB of the device: weights in half precision (entities in fp32) and room for one clip; estimates,
none was measured on a GPU."""
# Bytes per clip of 49x480x720, measured on real clips: h264 at crf 14, ffv1 of ids, of depth.
_BYTES = {"cut": 1.4e6, "segment": 0.03e6, "propagate": 0.25e6, "depth": 4.85e6, "write": 6.5e6}
_DEPTH_256 = 1.7e6


@dataclass(frozen=True, kw_only=True, slots=True)
class StageCost:
    """One stage of the plan."""

    name: str
    clips: float
    """That go into it."""
    seconds: float
    """Per clip and process."""
    on_gpu: bool
    source: str
    """'measured here', 'measured', 'estimated'."""
    memory: float
    """GB of the device."""
    bytes: float
    """Per clip, on the disk."""

    def hours(self, processes: int) -> float:
        """Of so many processes."""
        return self.clips * self.seconds / processes / 3600


def plan(  # noqa: PLR0913 - one table of one question
    config: PandaConfig,
    *,
    clips: int,
    gpus: int,
    tasks: int,
    cores: int = 8,
    store: Store | None = None,
) -> Iterator[str]:
    """Lines for a terminal.

    Args:
        config: Of the data set.
        clips: To end with.
        gpus: Of one machine.
        tasks: Of a Slurm array, with a GPU each.
        cores: CPU cores for each GPU: stages without a model run that many processes.
        store: A data set in the making, whose own seconds and shares count where there are some.
    """
    seen = _seen(store, claim_seconds=config.run.claim_seconds)
    stages = stage_costs(config, clips=clips, seen=seen)
    size = config.clip
    yield (
        f"{clips:,} clips of {size.num_frames}x{size.height}x{size.width}, from "
        f"{stages[0].clips:,.0f} that are looked at; about {_ENTITIES} entities each"
    )
    yield ""
    yield (
        f"{'stage':<10}{'clips':>12}  {'s/clip':>8}  {'from':<14}{'GPU GB':>7}"
        f"{f'{gpus} GPUs':>14}{f'array of {tasks}':>16}{'disk':>10}"
    )
    totals = [0.0, 0.0, 0.0]
    for stage in stages:
        per_gpu = 1 if stage.on_gpu or stage.name == "write" else cores
        times = [stage.hours(gpus * per_gpu), stage.hours(tasks * per_gpu)]
        space = stage.bytes * stage.clips
        totals = [a + b for a, b in zip(totals, [*times, space], strict=True)]
        memory = f"{stage.memory:.0f}" if stage.memory else "-"
        yield (
            f"{stage.name:<10}{stage.clips:>12,.0f}  {stage.seconds:>8.2f}  {stage.source:<14}"
            f"{memory:>7}{duration(3600 * times[0]):>14}{duration(3600 * times[1]):>16}"
            f"{human_bytes(space) if space else '-':>10}"
        )
    yield (
        f"{'total':<10}{'':>12}  {'':>8}  {'':<14}{'':>7}{duration(3600 * totals[0]):>14}"
        f"{duration(3600 * totals[1]):>16}{human_bytes(totals[2]):>10}"
    )
    yield ""
    yield from _notes(cores)


def _notes(cores: int) -> Iterator[str]:
    yield "measured here: by the seconds of this data set's own clips."
    yield "measured: on one thread of a CPU without a GPU, scaled by pixels."
    yield (
        f"estimated: operations at {_SHARE:.0%} of an A100 ({_HALF / 1e12:.0f} TFLOP/s in half "
        f"precision, {_SINGLE / 1e12:.1f} in fp32), words of captions by its memory's "
        f"{_BANDWIDTH / 1e12:.0f} TB/s; nothing of it was measured on a GPU."
    )
    yield "DepthCrafter: by its authors' seconds per frame; on which GPU they do not say."
    yield f"filter and cut run {cores} processes per GPU: `run --until cut --workers N`."


def stage_costs(
    config: PandaConfig, *, clips: int, seen: Mapping[str, StageStatus]
) -> list[StageCost]:
    """Each stage that takes time, in their order.

    Args:
        config: Of the data set.
        clips: To end with.
        seen: Of stages that have run, what they kept and took.
    """
    counts = _counts(clips, seen=seen)
    scale = config.clip.num_frames * config.clip.height * config.clip.width / _REFERENCE
    estimates = _gpu_seconds(config, scale=scale)
    found = []
    for name in STAGES:
        if name in ("ingest", "select"):
            continue
        on_gpu = name in estimates
        seconds = estimates.get(name, _cpu_seconds(config, name) * scale)
        source = "estimated" if on_gpu else "measured"
        status = seen.get(name)
        if status is not None and status.done and status.seconds:
            seconds, source = status.seconds / status.done, "measured here"
        found.append(
            StageCost(
                name=name,
                clips=counts[name],
                seconds=seconds,
                on_gpu=on_gpu,
                source=source,
                memory=_MEMORY[name] if on_gpu else 0.0,
                bytes=_bytes(config, name) * scale,
            )
        )
    return found


def _counts(clips: int, *, seen: Mapping[str, StageStatus]) -> dict[str, float]:
    """Clips that go into each stage, backwards from those that are to be left."""
    left = float(clips)
    counts: dict[str, float] = {}
    for name in reversed(STAGES):
        status = seen.get(name)
        share = _KEPT.get(name, 1.0)
        if status is not None and status.done and status.kept:
            share = status.kept / status.done
        left = left / share
        counts[name] = left
    return counts


def _cpu_seconds(config: PandaConfig, name: str) -> float:
    if name in ("segment", "propagate") and getattr(config, name).backend == "classical":
        return _CLASSICAL_SECONDS[name]
    return _CPU_SECONDS.get(name, 0.02)


def _gpu_seconds(config: PandaConfig, *, scale: float) -> dict[str, float]:
    """Of the stages that have a model, per clip.

    EntitySeg and SAM 2 resize their frames to sizes of their own, captioners see 8 of them: only
    depth goes by the pixels of the clip.
    """
    found: dict[str, float] = {}
    if config.segment.backend == "model":
        found["segment"] = _segment_seconds(config)
    if config.propagate.backend == "model":
        size = sam2_size(config.propagate.sam2.weights) or "large"
        grid = config.segment.sam2_grid
        objects = grid.points_per_side**2 if config.segment.starts_from_points else _ENTITIES
        flop = clip_flop(size, frames=config.clip.num_frames, objects=objects)
        found["propagate"] = flop / (_SHARE * _HALF)
    if config.depth.backend == "model":
        found["depth"] = _DEPTHCRAFTER_SECONDS * scale
        if config.depth.method == "depth_anything":
            name = config.depth.depth_anything.weights.lower()
            key = next((size for size in ("small", "base", "large") if size in name), "large")
            found["depth"] = _DEPTH_FLOP[key] / (_SHARE * _HALF) * scale
    if config.caption.backend == "model":
        captioner = config.caption.captioner
        reading = _CAPTION_BYTES[captioner.model] / captioner.clips_per_batch / _BANDWIDTH
        found["caption"] = _CAPTION_FLOP[captioner.model] / (_SHARE * _HALF) + reading
    return found


def _segment_seconds(config: PandaConfig) -> float:
    if config.segment.method == "sam2_grid":
        if config.segment.starts_from_points:
            return 0.0
        grid = config.segment.sam2_grid
        size = sam2_size(grid.weights) or "large"
        return clip_flop(size, frames=1, objects=grid.points_per_side**2) / (_SHARE * _HALF)
    return 1e9 * GFLOPS_480X720["cropformer Swin-L"] / (_SHARE * _SINGLE)


def _bytes(config: PandaConfig, name: str) -> float:
    size = _BYTES.get(name, 0.0)
    if config.depth.backend == "none":
        saved = _BYTES["depth"]
    else:
        saved = _BYTES["depth"] - _DEPTH_256 if config.depth.levels == 256 else 0.0
    return size - saved if name in ("depth", "write") else size


def _seen(store: Store | None, *, claim_seconds: float) -> dict[str, StageStatus]:
    if store is None or not store.root.is_dir():
        return {}
    statuses, _ = status_of(store, STAGES[:-1], claim_seconds=claim_seconds)
    return {status.name: status for status in statuses}
