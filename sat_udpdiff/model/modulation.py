"""Adaptive modulation of a sequence in which text and video tokens have their own parameters."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


def modulated_norm(
    x: Float[Tensor, "b n d"],
    *,
    norm: nn.LayerNorm,
    text: tuple[Float[Tensor, "b d"], Float[Tensor, "b d"]],
    video: tuple[Float[Tensor, "b d"], Float[Tensor, "b d"]],
    text_length: int,
) -> Float[Tensor, "b n d"]:
    """Return norm(x) * (1 + scale) + shift, with a (shift, scale) for text and one for video."""
    normed = norm(x)
    parts = [
        torch.addcmul(shift[:, None], part, 1 + scale[:, None])
        for (shift, scale), part in (
            (text, normed[:, :text_length]),
            (video, normed[:, text_length:]),
        )
    ]
    return torch.cat(parts, dim=1)


def gated_residual(
    x: Float[Tensor, "b n d"],
    *,
    update: Float[Tensor, "b n d"],
    text_gate: Float[Tensor, "b d"],
    video_gate: Float[Tensor, "b d"],
    text_length: int,
) -> Float[Tensor, "b n d"]:
    """Return x + gate * update, with one gate for text and one for video tokens."""
    text = torch.addcmul(x[:, :text_length], text_gate[:, None], update[:, :text_length])
    video = torch.addcmul(x[:, text_length:], video_gate[:, None], update[:, text_length:])
    return torch.cat([text, video], dim=1)
