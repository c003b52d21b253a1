"""Adaptive modulation of a sequence in which text and video tokens have their own parameters.

Both functions are written for memory and passes over it: a 5B block at 480x720 has 109 MB per
tensor of tokens in bf16, and these steps, unlike matrix products, do nothing but read and write.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own custom)
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def modulated_norm(
    x: Float[Tensor, "b n d"],
    *,
    norm: nn.LayerNorm,
    text: tuple[Float[Tensor, "b d"], Float[Tensor, "b d"]],
    video: tuple[Float[Tensor, "b d"], Float[Tensor, "b d"]],
    text_length: int,
) -> Float[Tensor, "b n d"]:
    """Return norm(x) * (1 + scale) + shift, with a (shift, scale) for text and one for video.

    The modulation is folded into the norm's weight and bias, sample by sample: w (1 + scale) and
    b (1 + scale) + shift. The normed tokens are then never stored on their own, neither for the
    moment nor for the backward pass.
    """
    batch, length, _ = x.shape
    # Two runs of tokens per sample, as 2-d views.
    runs = x.flatten(0, 1).split([text_length, length - text_length] * batch)
    affines = [
        (norm.weight * (1 + scale[i]), torch.addcmul(shift[i], norm.bias, 1 + scale[i]))
        for i in range(batch)
        for shift, scale in (text, video)
    ]
    out = [
        F.layer_norm(run, norm.normalized_shape, weight, bias, norm.eps)
        for run, (weight, bias) in zip(runs, affines, strict=True)
    ]
    return torch.cat(out).view_as(x)


def gated_residual(
    x: Float[Tensor, "b n d"],
    *,
    update: Float[Tensor, "b n d"],
    text_gate: Float[Tensor, "b d"],
    video_gate: Float[Tensor, "b d"],
    text_length: int,
) -> Float[Tensor, "b n d"]:
    """Return x + gate * update, with one gate for text and one for video tokens."""
    gates = torch.stack([text_gate, video_gate])[:, :, None]
    return _GatedResidual.apply(x, update, gates, text_length)


class _GatedResidual(torch.autograd.Function):
    """Writes both runs of tokens into one tensor; plain autograd would copy at every join."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, update: Tensor, gates: Tensor, text_length: int) -> Tensor:
        # Frozen gates (LoRA) need no gradient, and then the update is not needed again.
        ctx.save_for_backward(update if ctx.needs_input_grad[2] else None, gates)
        ctx.runs = (slice(text_length), slice(text_length, None))
        out = torch.empty_like(x)
        for run, gate in zip(ctx.runs, gates, strict=True):
            torch.addcmul(x[:, run], update[:, run], gate, out=out[:, run])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        update, gates = ctx.saved_tensors
        grad_update = torch.empty_like(grad)
        grad_gates = None if update is None else torch.empty_like(gates)
        for group, (run, gate) in enumerate(zip(ctx.runs, gates, strict=True)):
            if grad_gates is not None:
                # grad_update is scratch for the gate's gradient before it takes its own value.
                product = torch.mul(grad[:, run], update[:, run], out=grad_update[:, run])
                torch.sum(product, dim=1, keepdim=True, out=grad_gates[group])
            torch.mul(grad[:, run], gate, out=grad_update[:, run])
        return grad, grad_update, grad_gates, None
