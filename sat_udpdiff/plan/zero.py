"""What deepspeed keeps on one GPU for the weights that are trained, by ZeRO stage.

Read in the source of deepspeed 0.19.8 (`runtime/zero/stage_1_and_2.py`, `stage3.py`), and compared
with what live engines hold in `tests/plan/test_zero.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from sat_udpdiff.config import Config
from sat_udpdiff.plan.sizes import BYTES, Parameters
from sat_udpdiff.training.engine import to_deepspeed

# Stage 3, deepspeed's own defaults, which `to_deepspeed` leaves alone: gathered weights that may
# be there at once (stage3_max_live_parameters), those fetched together, which lie in one buffer
# before each gets its own (stage3_prefetch_bucket_size), and those that step together
# (sub_group_size).
MOST_GATHERED = 1_000_000_000
_FETCHED_TOGETHER = 50_000_000
_STEP_TOGETHER = 1e9


@dataclass(frozen=True, kw_only=True, slots=True)
class ZeroBytes:
    """Bytes on one GPU."""

    weights: float
    """In the training precision; stage 3 shards them."""
    optimizer: float
    """fp32 weights and the two moments of AdamW, sharded; those of fp32 training are a copy."""
    ema: float
    """The average of the weights, sharded."""
    gradients: float
    """At the end of a backward pass."""
    buckets: float
    """Gradients on their way between the GPUs."""
    gathered: float
    """Stage 3: weights of other GPUs, for the layers at work."""
    staying: float
    """Of gradients and buckets, what is there while the next micro-batch is encoded."""
    step: float
    """Gradients, their copies, and what stays, while the optimizer steps."""
    start: float
    """All there is while deepspeed rearranges the weights at the start."""
    host: float
    """In the memory of the host, for each GPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Gradients:
    end: float
    between: float
    shard: float
    step_copies: float


def zero_bytes(
    config: Config, *, parameters: Parameters, world_size: int, device_type: str = "cuda"
) -> ZeroBytes:
    """Bytes of weights, optimizer and gradients on each of `world_size` devices.

    Ranks that share samples or their tokens share ZeRO's shards; those that share weights have
    shards of their own.

    Args:
        config: Precision, ZeRO stage, accumulation, bucket size, EMA, offload, tensor parallel.
        parameters: How many a rank holds before they are sharded, and how many are trained.
        world_size: GPUs of the run.
        device_type: cuda, or cpu for what tests measure: there nothing overlaps, and AdamW makes
            two copies that its fused kernel does without.
    """
    width, stage = BYTES[config.train.precision], config.train.zero_stage
    ranks = world_size // config.parallel.tensor_size
    trained, shard = parameters.trained, parameters.trained / ranks
    settings = to_deepspeed(config, world_size=world_size, device_type=device_type)
    gradients = _gradients(config, trained=trained, shard=shard, settings=settings)
    buffers, packed = _bucket_bytes(settings, trained=trained, width=width, ranks=ranks)
    weights = float(parameters.total * width)
    on_host = config.train.offload != "none"
    optimizer = 0.0 if on_host else 12.0 * shard
    copy_at_start = float(trained * width)
    if stage == 3:
        weights = 0.0 if config.train.offload == "weights" else weights / ranks
        copy_at_start = float(parameters.total * width)
    ema = 4.0 * shard if config.ema.enabled and not on_host else 0.0
    # A gradient on its way to the host and back, of the largest weight, the MLP's.
    buffer = 4.0 * config.model.hidden_size**2 / config.parallel.tensor_size * width
    packed += buffer if on_host and stage < 3 else 0.0
    staying = gradients.between + (buffers if stage == 3 else 0.0)
    adam = 0.0 if device_type == "cuda" or on_host else 8.0 * min(shard, _together(stage))
    fp32_gradients = 4.0 * min(shard, _together(stage))
    step = max(gradients.step_copies, adam + (fp32_gradients if gradients.step_copies else 0.0))
    return ZeroBytes(
        weights=weights,
        optimizer=optimizer,
        ema=ema,
        gradients=gradients.end,
        buckets=buffers + packed,
        gathered=_gathered_bytes(parameters.total, width, ranks) if stage == 3 else 0.0,
        staying=staying,
        step=gradients.shard + step + (buffers if stage == 3 else 0.0),
        # Stage 3 makes the buffers of its gradients at once and for good.
        start=max(
            weights + copy_at_start,
            weights + optimizer + ema + (staying if stage == 3 else 0.0),
        ),
        host=_host_bytes(config, parameters=parameters, ranks=ranks),
    )


def _host_bytes(config: Config, *, parameters: Parameters, ranks: int) -> float:
    """What `train.offload` puts into the memory of the host for each GPU."""
    train = config.train
    if train.offload == "none":
        return 0.0
    width, shard = BYTES[train.precision], parameters.trained / ranks
    # fp32: weights, moments, gradients, the average.
    states = 16.0 + (4.0 if config.ema.enabled else 0.0)
    # Stages 1 and 2 keep new weights to be sent, and sums of gradients; stage 3 always sums.
    copies = 1 if train.zero_stage == 3 else 1 + (train.accumulation_steps > 1)
    weights = width * parameters.total / ranks if train.offload == "weights" else 0.0
    return (states + copies * width) * shard + weights


def _gathered_bytes(total: int, width: int, ranks: int) -> float:
    """Weights of the layers at work; one GPU has them all and copies none."""
    if ranks == 1:
        return 0.0
    return float((min(total, MOST_GATHERED) + min(total, _FETCHED_TOGETHER)) * width)


def _together(stage: int) -> float:
    """Numbers that the optimizer steps at once: all matrices of a shard, or a sub-group of it."""
    return _STEP_TOGETHER if stage == 3 else float("inf")


def _gradients(config: Config, *, trained: int, shard: float, settings: dict) -> _Gradients:
    """Where gradients are kept until the optimizer takes them."""
    width, stage = BYTES[config.train.precision], config.train.zero_stage
    accumulates = config.train.accumulation_steps > 1
    if "data_types" in settings:
        # Stage 2, summed in fp32: one flat buffer, which the optimizer takes as it is.
        return _Gradients(end=4.0 * shard, between=4.0 * shard, shard=4.0 * shard, step_copies=0.0)
    if config.train.offload != "none":
        # To the host as soon as they are reduced; stage 1 reduces the last micro-batch alone.
        whole = float(trained * width) if stage == 1 else 0.0
        return _Gradients(end=whole, between=whole * accumulates, shard=0.0, step_copies=0.0)
    own = float(width * shard)
    together = min(shard, _together(stage))
    # Flattened once more, and, where they are 16-bit, that copy in fp32.
    copies = together * (width + (4.0 if width < 4 else 0.0))
    if stage == 3:
        # One buffer for the whole run. fp16 looks for overflow in all of it: |x|, and x == inf.
        if config.train.precision == "fp16":
            copies = max(copies, (width + 1.0) * shard)
        return _Gradients(end=own, between=own, shard=own, step_copies=copies)
    if stage == 2:
        # Those of this pass beside the sum of the earlier ones.
        between = own if accumulates else 0.0
        return _Gradients(end=own + between, between=between, shard=own, step_copies=copies)
    # Stage 1 reduces the last micro-batch alone: while gradients come, if it may overlap.
    overlaps = settings["zero_optimization"]["overlap_comm"] and not accumulates
    whole = 0.0 if overlaps else float(trained * width)
    between = float(trained * width) if accumulates else 0.0
    return _Gradients(end=whole + own, between=between, shard=own, step_copies=copies)


def _bucket_bytes(settings: dict, *, trained: int, width: int, ranks: int) -> tuple[float, float]:
    """Buffers of the size of a bucket, whether the network fills them or not; a packed copy."""
    zero = settings["zero_optimization"]
    size = zero["reduce_bucket_size"]
    is_packed = zero["stage"] == 3 or ranks > 1  # for shards of several GPUs
    # In stages 1 and 2 one is filled while the other is sent.
    count = 2 if zero["overlap_comm"] and zero["stage"] < 3 else 1
    return float(count * size * width), float(min(size, trained) * width * is_packed)
