"""Classifier-free guidance and its scale over the sampling steps."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from sat_udpdiff.config import Guidance


def guidance_scale(
    kind: Guidance,
    *,
    scale: float,
    step: int,
    timestep: int,
    num_steps: int,
) -> float:
    """Weight g of `guide` at one sampling step.

    The dynamic rule is g = 1 + scale (1 - cos(pi (k / n)^5)) / 2 over n = `num_steps` steps.

    dynamic_step: k is the step 0 .. n - 1, as the rule was meant: g stays near 1 for half of the
    steps, then rises towards 1 + scale.
    dynamic_released: k = n - t with the training timestep t in 0 .. 999, as the released programs
    compute it (SAT and diffusers alike): k / n is far outside [0, 1], so that g jumps about within
    [1, 1 + scale]. The published 5B samples were made with it.

    Raises:
        ValueError: The kind is unknown.
    """
    if kind == "constant":
        return scale
    if kind == "dynamic_step":
        progress = step / num_steps
    elif kind == "dynamic_released":
        progress = (num_steps - timestep) / num_steps
    else:
        raise ValueError(
            f"sample.guidance: expected constant, dynamic_released or dynamic_step, got {kind!r}"
        )
    return 1 + scale * (1 - math.cos(math.pi * progress**5)) / 2


def guide(
    uncond: Float[Tensor, "*d"], cond: Float[Tensor, "*d"], scale: float
) -> Float[Tensor, "*d"]:
    """Uncond + scale (cond - uncond), in float32 or wider; 0 ignores the prompt, 1 does not guide.

    Velocities or x0 estimates: the conversion between them is affine, so guidance commutes with it.
    """
    dtype = torch.promote_types(cond.dtype, torch.float32)
    return torch.lerp(uncond.to(dtype), cond.to(dtype), scale)
