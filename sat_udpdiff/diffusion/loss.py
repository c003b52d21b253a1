"""The training loss: v-prediction over the video and dense channels."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sat_udpdiff.diffusion.schedule import NoiseSchedule


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LossTerms:
    """Loss of each sample, so that it can be logged by half, task and timestep."""

    total: Float[Tensor, "b"]
    """What is trained on, after a mean over the batch."""
    video: Float[Tensor, "b"]
    """Mean squared error of the velocity over the video channels; unweighted."""
    dense: Float[Tensor, "b"]
    """The same over the dense channels; 0 for a network without them."""


def diffusion_loss(  # noqa: PLR0913 - every random draw is an argument, and they are keywords
    network: Callable[[Tensor, Tensor], Tensor],
    x0: Float[Tensor, "b t c h w"],
    *,
    noise: Float[Tensor, "b t c h w"],
    t: Int64[Tensor, "b"],
    schedule: NoiseSchedule,
    video_channels: int = 16,
    dense_weight: float = 1.0,
) -> LossTerms:
    """Mean of (v_hat - v)^2 over frames, channels and pixels of each sample.

    The released weights minimise (x0_hat - x0)^2 / (1 - a_t^2), which is this very number (a test
    checks it) without the division. It stands for eq. (2) of the paper, whose noise
    prediction has no x0 at zero terminal SNR.

    Args:
        network: (x_t float32, t) -> v_hat of the same shape; x_t is cast by the network.
        x0: Scaled latents, video channels first.
        noise: Independent standard normal noise for every channel.
        t: Training timesteps.
        schedule: Tables of a_t.
        video_channels: Channels of the video; all further channels are dense.
        dense_weight: Weight of a dense channel against a video channel in the mean; 1 is the plain
            mean over all channels, 0 trains the video alone.
    """
    _check(x0, noise=noise, t=t, video_channels=video_channels, dense_weight=dense_weight)
    target = schedule.velocity(x0, noise=noise, t=t)
    prediction = network(schedule.add_noise(x0, noise=noise, t=t), t)
    if prediction.shape != x0.shape:
        raise ValueError(f"network: expected {tuple(x0.shape)} out, got {tuple(prediction.shape)}")
    error = (prediction.to(target.dtype) - target).square().mean((1, 3, 4))  # (b, c)
    video, dense = error[:, :video_channels], error[:, video_channels:]
    num_weighted = video_channels + dense_weight * dense.shape[1]
    return LossTerms(
        total=(video.sum(1) + dense_weight * dense.sum(1)) / num_weighted,
        video=video.mean(1),
        dense=dense.sum(1) / max(1, dense.shape[1]),
    )


def _check(
    x0: Tensor, *, noise: Tensor, t: Tensor, video_channels: int, dense_weight: float
) -> None:
    """Raise ValueError where a silent broadcast or an empty half would hide a mistake."""
    if noise.shape != x0.shape or t.shape != x0.shape[:1] or t.dtype != torch.int64:
        raise ValueError(
            f"diffusion_loss: latents {tuple(x0.shape)} need noise of that shape and int64 "
            f"timesteps ({x0.shape[0]},), got {tuple(noise.shape)} and {t.dtype} {tuple(t.shape)}"
        )
    if not 1 <= video_channels <= x0.shape[2]:
        raise ValueError(f"video_channels: expected 1 .. {x0.shape[2]}, got {video_channels}")
    if not 0 <= dense_weight < float("inf"):
        raise ValueError(f"diffusion.dense_loss_weight: expected >= 0, got {dense_weight}")
