"""Samplers: from noise to latents, as pure functions of the denoiser and of the noise.

Below, a = signal and sigma = sqrt(1 - a^2) of the current step, a' and sigma' of the next one (1
and 0 after the last step), x0_hat = denoise(x, i), the guided estimate of the clean latents.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from sat_udpdiff.diffusion.schedule import SamplingSteps

Denoise = Callable[[Tensor, int], Tensor]
"""(x, step) -> x0_hat."""
Callback = Callable[[int, Tensor, Tensor], None]
"""(step, x that entered the step, x0_hat made from it)."""


def ddim(
    denoise: Denoise,
    x: Float[Tensor, "b *d"],
    *,
    steps: SamplingSteps,
    callback: Callback | None = None,
) -> Float[Tensor, "b *d"]:
    """Deterministic DDIM (2010.02502, eq. 12 with eta = 0), as CogVideoX 2B is sampled.

    x' = (sigma' / sigma) x + (a' - a sigma' / sigma) x0_hat

    Args:
        denoise: (x, step) -> x0_hat.
        x: Standard normal noise; kept in float32 (float64 stays) between the steps.
        steps: Signal levels.
        callback: Told of every step, after its denoising.
    """
    x = _at_least_float32(x)
    for i, (a, a_next) in enumerate(zip(steps.signal, (*steps.signal[1:], 1.0), strict=True)):
        x0_hat = denoise(x, i).to(x.dtype)
        if callback is not None:
            callback(i, x, x0_hat)
        ratio = _sigma(a_next) / _sigma(a)
        x = ratio * x + (a_next - a * ratio) * x0_hat
    return x


def dpmpp_2m_sde(
    denoise: Denoise,
    x: Float[Tensor, "b *d"],
    *,
    steps: SamplingSteps,
    noise_fn: Callable[[int], Tensor],
    callback: Callback | None = None,
) -> Float[Tensor, "b *d"]:
    """DPM-Solver++(2M) for the VP SDE (2211.01095, appendix), as CogVideoX 5B is sampled.

    x' = (sigma' / sigma) e^-h x + (1 - e^-2h) a' D + sigma' sqrt(1 - e^-2h) noise_i,
    D  = x0_hat + (h / 2 h_last) (x0_hat - x0_hat of the step before),  h = log-SNR gained / 2.

    h is infinite on the first step, which starts at zero SNR: its noise is replaced altogether, and
    the second step knows no slope (h / h_last = 0). The last step returns x0_hat. e^-h is formed
    without logarithms, so that no infinity enters a product.

    Args:
        denoise: (x, step) -> x0_hat.
        x: Standard normal noise; kept in float32 (float64 stays) between the steps.
        steps: Signal levels.
        noise_fn: Step -> standard normal noise like x; asked once for every step but the last.
        callback: Told of every step, after its denoising.
    """
    x, x0_before = _at_least_float32(x), None
    for i, (a, a_next) in enumerate(zip(steps.signal, (*steps.signal[1:], 1.0), strict=True)):
        x0_hat = denoise(x, i).to(x.dtype)
        if callback is not None:
            callback(i, x, x0_hat)
        if i == len(steps) - 1:
            x = x0_hat
            break
        estimate = x0_hat
        if x0_before is not None:
            h, h_last = _lambda(a_next) - _lambda(a), _lambda(a) - _lambda(steps.signal[i - 1])
            estimate = x0_hat + h / (2 * h_last) * (x0_hat - x0_before)
        ratio = _sigma(a_next) / _sigma(a)
        kept = ratio * a / a_next  # e^-h
        noise = noise_fn(i).to(x)
        x = ratio * kept * x + a_next * (1 - kept**2) * estimate
        x = x + _sigma(a_next) * math.sqrt(1 - kept**2) * noise
        x0_before = x0_hat
    return x


def _sigma(signal: float) -> float:
    """Noise level sqrt(1 - a^2)."""
    return math.sqrt(1 - signal * signal)


def _lambda(signal: float) -> float:
    """Half the log SNR, log(a / sigma); -inf at pure noise."""
    return math.log(signal / _sigma(signal)) if signal > 0 else -math.inf


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
