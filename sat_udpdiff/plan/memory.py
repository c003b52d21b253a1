"""Memory of one GPU during training: what is always there, and what comes and goes.

All figures are bytes; tables print them in GB of 10^9 bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sat_udpdiff.config import Config, makes_sample_videos
from sat_udpdiff.plan.activations import activation_bytes, sampling_bytes
from sat_udpdiff.plan.frozen import frozen_cost
from sat_udpdiff.plan.sizes import BYTES, Sizes, share_of_rank, with_largest_clip
from sat_udpdiff.plan.zero import zero_bytes

# CUDA context, kernels, workspaces of cuBLAS, cuDNN and NCCL, and what the allocator cannot use:
# 2 to 4 GB is what others report of 80 GB GPUs. An allowance: this project has not measured it.
CUDA_ALLOWANCE = 3e9


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Estimated bytes on one device."""

    weights: float
    optimizer: float
    """fp32 weights and the two moments of AdamW."""
    ema: float
    text_encoder: float
    codec: float
    overhead: float
    """CUDA and its libraries."""
    gradients: float
    buckets: float
    gathered: float
    """ZeRO 3: weights of the layers at work."""
    activations: float
    start: float
    """While deepspeed rearranges the weights, beyond what is there later."""
    encoding: float
    """A micro-batch of clips, with gradients that wait for the next one."""
    step: float
    """Gradients and their copies while the optimizer steps."""
    sampling: float
    """Sample videos of `validation`."""
    host: float = 0.0
    """In the memory of the host, for each device: what `train.offload` puts there."""

    @property
    def held(self) -> float:
        """There from the first step to the last."""
        states = self.weights + self.optimizer + self.ema
        return states + self.text_encoder + self.codec + self.overhead

    @property
    def phases(self) -> Mapping[str, float]:
        """What a run does one after the other, and what each takes on top of `held`."""
        return {
            "start": self.start,
            "encoding": self.encoding,
            "passes": self.gradients + self.buckets + self.gathered + self.activations,
            "step": self.step,
            "sampling": self.sampling,
        }

    @property
    def total(self) -> float:
        """The peak."""
        return self.held + max(self.phases.values())


def estimate_memory(
    config: Config, *, sizes: Sizes, world_size: int, device_type: str = "cuda"
) -> Memory:
    """Bytes on each of `world_size` devices during training, in batches of the largest bucket.

    Args:
        config: Any configuration.
        sizes: Of it.
        world_size: Number of GPUs.
        device_type: cuda, or cpu, where there is no CUDA and deepspeed works in another order.

    Raises:
        ValueError: The codec that `codec.weights` names does not fit the configuration.
    """
    config = with_largest_clip(config)
    model, train = config.model, config.train
    parameters = share_of_rank(config)
    zero = zero_bytes(config, parameters=parameters, world_size=world_size, device_type=device_type)
    frozen = frozen_cost(config, sizes=sizes)
    states = zero.weights + zero.optimizer + zero.ema
    # The network is made and filled before it is cut.
    whole = float(BYTES[train.precision] * sizes.parameters)
    return Memory(
        weights=zero.weights,
        optimizer=zero.optimizer,
        ema=zero.ema,
        text_encoder=frozen.text_bytes,
        codec=frozen.codec_bytes,
        overhead=CUDA_ALLOWANCE if device_type == "cuda" else 0.0,
        gradients=zero.gradients,
        buckets=zero.buckets,
        gathered=zero.gathered,
        activations=activation_bytes(
            model,
            sizes=sizes,
            precision=train.precision,
            batch=train.micro_batch_size,
            parallel=config.parallel,
        ),
        start=max(0.0, zero.start - states, whole - states),
        encoding=zero.staying + frozen.encoding_bytes if frozen.encoding_bytes else 0.0,
        step=zero.step,
        sampling=_sampling_bytes(config, sizes, decoding=frozen.decoding_bytes),
        host=zero.host,
    )


def _sampling_bytes(config: Config, sizes: Sizes, *, decoding: float) -> float:
    if not makes_sample_videos(config):
        return 0.0
    # First all steps of the sampler, then the codec.
    steps = sampling_bytes(config.model, sizes=sizes, precision=config.train.precision)
    return max(steps, decoding)
