"""The network that judges clips of the simple world: what is where, how near, how it moves.

Frames are first seen one by one (so that features of a frame know nothing of the others), then
together. Every pixel is told a kind: one of eight colours of things, the wall or the ground. No
two things of a clip have one colour, so the kind of a pixel is its entity, in all frames alike.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from data_loaders.synthetic_shapes import SATURATED, SIMPLE_SHAPES
from data_loaders.synthetic_simple import MOTIONS

KINDS = (*SATURATED, "wall", "ground")
"""What a pixel can be; the first eight are things."""
NUM_THINGS = len(SATURATED)
SHAPES = SIMPLE_SHAPES
WIDTHS = (16, 32, 64)
"""Channels at full, half and quarter size."""
FRAME_FEATURES = WIDTHS[1]
CLIP_FEATURES = 2 * WIDTHS[2]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Verdict:
    """What the network says of clips."""

    kinds: Float[Tensor, "b kinds t h w"]
    """Logits of `KINDS`."""
    depth: Float[Tensor, "b t h w"]
    """Disparity, near 0..1; 1 = the nearest of the clip."""
    shapes: Float[Tensor, "b shapes t h w"]
    """Logits of `SHAPES`, of meaning on things."""
    motions: Float[Tensor, "b motions t h w"]
    """Logits of `MOTIONS`, of meaning on things."""
    frame_features: Float[Tensor, "b t c h2 w2"]
    """Of each frame by itself, at half size."""
    clip_features: Float[Tensor, "b d"]
    """Mean and spread over frames and pixels of the deepest features, at quarter size."""


class JudgeNetwork(nn.Module):
    """A U-Net, flat outside and three-dimensional inside; 0.3 million weights."""

    def __init__(self) -> None:
        super().__init__()
        full, half, quarter = WIDTHS
        self.outer = nn.Sequential(_flat(3, full), _flat(full, full))
        self.middle = nn.Sequential(_flat(full, half, stride=2), _flat(half, half))
        self.inner = nn.Sequential(
            _flat(half, quarter, stride=2), _deep(quarter, quarter), _deep(quarter, quarter)
        )
        self.middle_up = nn.Sequential(_flat(quarter + half, half), _flat(half, half))
        self.outer_up = nn.Sequential(_flat(half + full, full), _flat(full, full))
        self.head = nn.Conv3d(full, len(KINDS) + 1 + len(SHAPES) + len(MOTIONS), 1)

    def forward(self, rgb: Float[Tensor, "b t 3 h w"]) -> Verdict:
        """Judge clips.

        Args:
            rgb: Values in [-1, 1]; height and width multiples of 4.

        Returns:
            The verdict.
        """
        x = rearrange(rgb, "b t c h w -> b c t h w")
        full = self.outer(x)
        half = self.middle(full)
        quarter = self.inner(half)
        y = self.middle_up(torch.cat([_twice(quarter), half], dim=1))
        y = self.outer_up(torch.cat([_twice(y), full], dim=1))
        sizes = (len(KINDS), 1, len(SHAPES), len(MOTIONS))
        kinds, depth, shapes, motions = self.head(y).split(sizes, dim=1)
        pixels = quarter.flatten(2)
        return Verdict(
            kinds=kinds,
            depth=depth[:, 0],
            shapes=shapes,
            motions=motions,
            frame_features=half.transpose(1, 2),
            clip_features=torch.cat([pixels.mean(2), pixels.std(2)], dim=1),
        )


class _FrameNorm(nn.GroupNorm):
    """Group normalisation of each frame by itself."""

    def forward(self, input: Tensor) -> Tensor:
        frames = rearrange(input, "b c t h w -> (b t) c h w")
        return rearrange(super().forward(frames), "(b t) c h w -> b c t h w", b=len(input))


def _flat(channels: int, out: int, *, stride: int = 1) -> nn.Module:
    """A convolution within frames."""
    kernel, steps = (1, 3, 3), (1, stride, stride)
    conv = nn.Conv3d(channels, out, kernel, stride=steps, padding=(0, 1, 1))
    return nn.Sequential(conv, _FrameNorm(4, out), nn.SiLU())


def _deep(channels: int, out: int) -> nn.Module:
    """A convolution over three frames; the first and the last repeat themselves."""
    conv = nn.Conv3d(channels, out, 3, padding=1, padding_mode="replicate")
    return nn.Sequential(conv, _FrameNorm(4, out), nn.SiLU())


def _twice(x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h2 w2"]:
    return functional.interpolate(x, scale_factor=(1.0, 2.0, 2.0), mode="nearest")
