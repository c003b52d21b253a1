"""FLOPs of a training step, and the time that they take."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from data_loaders.order import sizes_of
from sat_udpdiff.config import Config
from sat_udpdiff.plan.frozen import frozen_cost
from sat_udpdiff.plan.sizes import derive_sizes, recomputed_layers
from sat_udpdiff.training.throughput import flops_per_sample


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """FLOPs of one sample, a multiply-add counted as two; the mean over buckets."""

    forward: float
    backward: float
    """Twice the forward; less where weights are frozen."""
    recomputed: float
    """Layers whose activations were dropped."""
    attention: float
    """Flash attention's backward makes its scores anew instead of keeping n x n of them: one of
    the two products of attention once more."""
    encoding: float
    """Codec and text encoder, while training."""

    @property
    def total(self) -> float:
        """All that the GPU computes."""
        passes = self.forward + self.backward + self.recomputed
        return passes + self.attention + self.encoding


@dataclass(frozen=True, kw_only=True, slots=True)
class Duration:
    """How long a run takes."""

    step_seconds: float
    days: float
    mfu: float
    """What metrics.jsonl will show: there only forward and backward count."""


def count_work(config: Config) -> Work:
    """FLOPs of one training sample."""
    parts = [
        replace(work, **{name: share * value for name, value in asdict(work).items()})
        for work, share in _of_sizes(config)
    ]
    names = asdict(parts[0])
    return Work(**{name: sum(getattr(part, name) for part in parts) for name in names})


def estimate_duration(
    config: Config, *, work: Work, peak_flops: float, mfu: float, beside: float = 0.0
) -> Duration:
    """Time of a step and of `train.steps` of them.

    Args:
        config: Any configuration.
        work: Of it.
        peak_flops: Of one of them, FLOP/s.
        mfu: Share of the peak that all of `work` reaches, ZeRO's traffic in a node included.
        beside: Seconds of a step on top: offload, ranks of a sample that wait for each other.
    """
    samples = config.train.micro_batch_size * config.train.accumulation_steps  # of one GPU
    # Each of the processes that share a sample encodes it.
    share = work.encoding + (work.total - work.encoding) / config.parallel.size
    seconds = samples * share / (peak_flops * mfu) + beside
    return Duration(
        step_seconds=seconds,
        days=seconds * config.train.steps / 86_400,
        mfu=samples * flops_per_sample(config) / (config.parallel.size * seconds * peak_flops),
    )


def _of_sizes(config: Config) -> list[tuple[Work, float]]:
    """Work and share of samples of every bucket."""
    found = []
    for clip, share in sizes_of(config.data):
        single = replace(config, data=replace(config.data, buckets=(), **asdict(clip)))
        sizes, model = derive_sizes(single), config.model
        forward = sizes.forward_flops
        recomputed = recomputed_layers(model) / model.num_layers
        work = Work(
            forward=forward,
            backward=sizes.backward_flops,
            recomputed=recomputed * forward,
            attention=2.0 * sizes.tokens**2 * model.hidden_size * model.num_layers,
            encoding=frozen_cost(single, sizes=sizes).flops_per_sample,
        )
        found.append((work, share))
    return found
