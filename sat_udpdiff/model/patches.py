"""Patches: what a video token holds, and the projections from latents to tokens and back.

CogVideoX 1.0 cuts every latent frame into patches of p x p; 1.5 takes `patch_size_t` frames
together. A token's values are ordered (c o p q): channel slowest, then frame, row and column of the
patch.

A clip whose latent frames do not fill the last patch (81 frames are 21 latents) begins with copies
of its first latent frame, as in CogVideoX's own fine-tuning: the copies are noised, predicted and
count in the loss like all others, for a sample starts from noise there too. Samples lose them
before they are decoded. Caches hold latents without copies.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own custom)
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from sat_udpdiff.config import ModelConfig
from sat_udpdiff.model.positions import TokenGrid


def extra_frames(latent_frames: int, *, patch_size_t: int) -> int:
    """Copies of the first latent frame that a clip of `latent_frames` begins with."""
    return -latent_frames % patch_size_t


def repeat_first_frame(
    latents: Float[Tensor, "b t c h w"], *, patch_size_t: int
) -> Float[Tensor, "b t2 c h w"]:
    """Put `extra_frames` copies of the first frame in front; without any, the tensor as it is."""
    extra = extra_frames(latents.shape[1], patch_size_t=patch_size_t)
    if extra == 0:
        return latents
    return torch.cat([latents[:, :1].expand(-1, extra, -1, -1, -1), latents], dim=1)


def token_grid(
    config: ModelConfig, *, text: int, latent_frames: int, latent_height: int, latent_width: int
) -> TokenGrid:
    """Tokens of a clip; `latent_frames` with or without the copies in front.

    Frames of the grid are those of the tokens: positions count patches in all three directions, and
    nothing is interpolated (1.5 slices a table of whole numbers, 1.0 has one of just its size).
    """
    return TokenGrid(
        text=text,
        frames=-(-latent_frames // config.patch_size_t),
        rows=latent_height // config.patch_size,
        columns=latent_width // config.patch_size,
    )


def patch_projection(config: ModelConfig, *, groups: int) -> PatchProjection | SpaceTimeProjection:
    """The projection of `groups` groups of latent channels, in the layout of the released weights.

    1.0 keeps a convolution's weight, [d, C, p, p], and 1.5 a matrix, [d, C * o * p * p].
    """
    channels = config.latent_channels * groups
    if config.patch_size_t == 1:
        return PatchProjection(channels, config.hidden_size, patch=config.patch_size, groups=groups)
    return SpaceTimeProjection(channels, config=config, groups=groups)


def output_projection(config: ModelConfig, *, groups: int) -> OutputProjection:
    """The last linear, to `groups` groups of latent channels."""
    features = config.latent_channels * groups * config.patch_size_t * config.patch_size**2
    return OutputProjection(config.hidden_size, features, groups=groups)


class PatchProjection(nn.Conv2d):
    """The patch convolution, computed as a matrix product per group of channels.

    The stride equals the kernel, so both are the same sum; the product writes tokens where the
    convolution writes images, which would have to be transposed.
    """

    def __init__(self, channels: int, hidden_size: int, *, patch: int, groups: int = 1) -> None:
        super().__init__(channels, hidden_size, kernel_size=patch, stride=patch)
        self.channel_groups = groups

    def forward(self, latents: Float[Tensor, "b t c h w"]) -> Float[Tensor, "b n d"]:
        """Return one token per frame and patch, in (t, h, w) order."""
        pixels = _cut(latents, groups=self.channel_groups, patch_t=1, patch=self.kernel_size[0])
        return _sum_of_groups(pixels, weight=self.weight, bias=self.bias)


class SpaceTimeProjection(nn.Linear):
    """The patch projection of CogVideoX 1.5: patches of several frames, and a plain matrix."""

    def __init__(self, channels: int, *, config: ModelConfig, groups: int = 1) -> None:
        values = channels * config.patch_size_t * config.patch_size**2
        super().__init__(values, config.hidden_size)
        self.patch_size, self.patch_size_t = config.patch_size, config.patch_size_t
        self.channel_groups = groups

    def forward(self, latents: Float[Tensor, "b t c h w"]) -> Float[Tensor, "b n d"]:
        """Return one token per patch, in (t, h, w) order; t is a multiple of `patch_size_t`."""
        pixels = _cut(
            latents, groups=self.channel_groups, patch_t=self.patch_size_t, patch=self.patch_size
        )
        return _sum_of_groups(pixels, weight=self.weight, bias=self.bias)


class OutputProjection(nn.Linear):
    """The last linear, one product per group of channels for the reason of `_sum_of_groups`."""

    def __init__(self, hidden_size: int, features: int, *, groups: int = 1) -> None:
        super().__init__(hidden_size, features)
        self.channel_groups = groups

    def forward(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n f"]:
        """Return the features of every group, (c o p q) with c slowest."""
        parts = zip(
            self.weight.chunk(self.channel_groups),
            self.bias.chunk(self.channel_groups),
            strict=True,
        )
        return torch.cat([F.linear(tokens, weight, bias) for weight, bias in parts], dim=-1)


def join_patches(
    features: Float[Tensor, "b n f"], *, grid: TokenGrid, config: ModelConfig
) -> Float[Tensor, "b t c h w"]:
    """Put the features of every token in their place."""
    return rearrange(
        features,
        "b (t h w) (c o p q) -> b (t o) c (h p) (w q)",
        t=grid.frames,
        h=grid.rows,
        w=grid.columns,
        o=config.patch_size_t,
        p=config.patch_size,
        q=config.patch_size,
    )


def _cut(
    latents: Float[Tensor, "b t c h w"], *, groups: int, patch_t: int, patch: int
) -> Float[Tensor, "g b n f"]:
    """The values of every token, apart for each group of channels."""
    return rearrange(
        latents,
        "b (t o) (g c) (h p) (w q) -> g b (t h w) (c o p q)",
        g=groups,
        o=patch_t,
        p=patch,
        q=patch,
    ).contiguous()  # a grid of one patch would come as a view, and the product depends on it


def _sum_of_groups(
    pixels: Float[Tensor, "g b n f"], *, weight: Tensor, bias: Tensor | None
) -> Float[Tensor, "b n d"]:
    """One product per group of channels.

    The video's group is multiplied by itself so that dense groups of zeros leave its tokens as they
    are, to the bit: a longer product would sum in another order.
    """
    weights = rearrange(weight.flatten(1), "d (g f) -> g d f", g=len(pixels))
    tokens = F.linear(pixels[0], weights[0], bias)
    for group, group_weight in zip(pixels[1:], weights[1:], strict=True):
        tokens = tokens + F.linear(group, group_weight)
    return tokens
