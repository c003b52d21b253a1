"""Sizes and distributions of video latents; no network, no imports that take time."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sat_udpdiff.config import VideoCodecConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentSize:
    """Extent of a clip's latent, in latent frames, rows and columns."""

    frames: int
    height: int
    width: int


def latent_size(
    config: VideoCodecConfig, *, num_frames: int, height: int, width: int
) -> LatentSize:
    """Latent extent of a clip of `num_frames` x `height` x `width` pixels.

    The codec is causal: the first frame has a latent frame of its own, every further
    `temporal_compression` frames share one.

    Raises:
        ValueError: the clip does not fit the codec; the message has the numbers that would.
    """
    step = config.temporal_compression
    if num_frames < 1 or (num_frames - 1) % step:
        below = max(0, (num_frames - 1) // step) * step + 1
        raise ValueError(
            f"number of frames: expected {step}k + 1, got {num_frames}; "
            f"nearest are {below} and {below + step}"
        )
    for name, value in (("height", height), ("width", width)):
        if value < 1 or value % config.spatial_compression:
            raise ValueError(
                f"{name}: expected a multiple of {config.spatial_compression} pixels "
                f"(the codec's compression), got {value}"
            )
    return LatentSize(
        frames=(num_frames - 1) // step + 1,
        height=height // config.spatial_compression,
        width=width // config.spatial_compression,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentDistribution:
    """Diagonal Gaussian over latents, as a rule in the network's scale (times scale_factor)."""

    mean: Float[Tensor, "b t c h w"]
    logvar: Float[Tensor, "b t c h w"]
    """Log variance, natural logarithm."""

    def sample(self, noise: Float[Tensor, "b t c h w"]) -> Float[Tensor, "b t c h w"]:
        """Draw latents from standard normal `noise`, float32."""
        return self.mean + torch.exp(0.5 * self.logvar) * noise

    def scaled(self, factor: float) -> "LatentDistribution":
        """Distribution of `factor` (> 0) times the variable, float32."""
        return LatentDistribution(
            mean=self.mean.float() * factor, logvar=self.logvar.float() + 2.0 * math.log(factor)
        )
