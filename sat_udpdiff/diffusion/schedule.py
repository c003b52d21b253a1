"""The noise schedule of CogVideoX and the timesteps drawn from it.

Forward process (zero terminal SNR, v-prediction), with signal a_t and sigma_t = sqrt(1 - a_t^2):

    x_t   = a_t x0 + sigma_t noise
    v_t   = a_t noise - sigma_t x0
    x0    = a_t x_t - sigma_t v_t

Sources: Lin et al. 2305.08891 (rescaling to zero terminal SNR, algorithm 1), Salimans and Ho
2202.00512 (v), CogVideoX 2408.06072 (SNR shift). Tables are float64: a_t near t = 999 is small,
and float32 would lose digits in log(a / sigma) and in 1 - a^2.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from sat_udpdiff.config import DiffusionConfig

BETA_FIRST, BETA_LAST = 0.00085, 0.012
"""Ends of the `scaled_linear` betas of the released weights."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class NoiseSchedule:
    """Tables over the training timesteps t = 0 (almost clean) .. n - 1 (pure noise)."""

    signal: Float64[Tensor, "n"]
    """a_t, falling; the last one is exactly 0."""
    unscaled_signal: Float64[Tensor, "n"]
    """a_t before the rescaling to zero terminal SNR; SAT's sampler rescales this table anew."""

    @property
    def num_timesteps(self) -> int:
        """Length of the tables."""
        return len(self.signal)

    def to(self, device: torch.device | str) -> "NoiseSchedule":
        """Copy on `device`, so that a training step moves no table."""
        return NoiseSchedule(
            signal=self.signal.to(device), unscaled_signal=self.unscaled_signal.to(device)
        )

    def add_noise(
        self, x0: Float[Tensor, "b *d"], *, noise: Float[Tensor, "b *d"], t: Int64[Tensor, "b"]
    ) -> Float[Tensor, "b *d"]:
        """x_t = a_t x0 + sigma_t noise, in float32 or wider whatever the dtype of x0."""
        a, sigma = self._coefficients(t, like=x0)
        return a * x0 + sigma * noise

    def velocity(
        self, x0: Float[Tensor, "b *d"], *, noise: Float[Tensor, "b *d"], t: Int64[Tensor, "b"]
    ) -> Float[Tensor, "b *d"]:
        """v_t = a_t noise - sigma_t x0, what the network learns; float32 or wider."""
        a, sigma = self._coefficients(t, like=x0)
        return a * noise - sigma * x0

    def x0_from_velocity(
        self, x_t: Float[Tensor, "b *d"], *, velocity: Float[Tensor, "b *d"], t: Int64[Tensor, "b"]
    ) -> Float[Tensor, "b *d"]:
        """x0 = a_t x_t - sigma_t v_t; float32 or wider."""
        a, sigma = self._coefficients(t, like=x_t)
        return a * x_t - sigma * velocity

    def _coefficients(self, t: Int64[Tensor, "b"], *, like: Tensor) -> tuple[Tensor, Tensor]:
        """a_t and sigma_t, each (b, 1, ..), taken from the float64 table and then rounded."""
        a = self.signal.to(like.device)[t.to(like.device)]
        a = a.reshape(-1, *[1] * (like.ndim - 1))
        dtype = torch.promote_types(like.dtype, torch.float32)
        return a.to(dtype), (1 - a.square()).sqrt().to(dtype)


def make_schedule(config: DiffusionConfig) -> NoiseSchedule:
    """Tables of the released weights: scaled-linear betas, SNR shift, zero terminal SNR.

    Raises:
        ValueError: `config.snr_shift` is not positive or there are fewer than two timesteps.
    """
    if not 0 < config.snr_shift < float("inf"):
        raise ValueError(f"diffusion.snr_shift: expected a number > 0, got {config.snr_shift}")
    if config.num_train_timesteps < 2:
        raise ValueError(
            f"diffusion.num_train_timesteps: expected at least 2, got {config.num_train_timesteps}"
        )
    betas = np.linspace(BETA_FIRST**0.5, BETA_LAST**0.5, config.num_train_timesteps) ** 2
    signal_squared = np.cumprod(1 - betas)
    shift = config.snr_shift  # divides the SNR a^2 / (1 - a^2) by `shift`
    signal_squared = signal_squared / (shift + (1 - shift) * signal_squared)
    unscaled = np.sqrt(signal_squared)
    return NoiseSchedule(
        signal=torch.from_numpy(_to_zero_terminal(unscaled)),
        unscaled_signal=torch.from_numpy(unscaled),
    )


def _to_zero_terminal(signal: np.ndarray) -> np.ndarray:
    """Shift and stretch so that the last a is exactly 0 and the first keeps its value."""
    return (signal - signal[-1]) * (signal[0] / (signal[0] - signal[-1]))


def draw_timesteps(
    uniforms: Float64[Tensor, "b"],
    *,
    positions: Int64[Tensor, "b"],
    global_batch: int,
    num_timesteps: int = 1000,
    stratified: bool = True,
) -> Int64[Tensor, "b"]:
    """Timesteps of samples of one global batch, one per stratum of [0, num_timesteps).

    The sample at position p of a global batch of G takes t from [p n / G, (p + 1) n / G), n being
    `num_timesteps`: t = floor((p + u) n / G). So every optimizer step covers the whole range.
    This is the `uniform_sampling` of the released weights (sgm/modules/diffusionmodules/
    sigma_sampling.py, tag v1.0), where rank r of 8 draws from [125 r, 125 r + 125): the draws are
    equal in law when a rank holds one sample, there is no accumulation and G divides n. The rule is
    tied to the position and not to the rank so that any layout of the same global batch (ranks,
    micro-batches, accumulation) draws the same timesteps. Where G does not divide n, strata end
    between integers and share the timestep there; G > n is fine. In all cases t is exactly
    uniform over a whole batch.

    Args:
        uniforms: One draw from [0, 1) per sample, from a generator of that sample.
        positions: 0 .. global_batch - 1, the place of each sample in the global batch.
        global_batch: Samples per optimizer step over all ranks and micro-batches.
        num_timesteps: Length of the schedule.
        stratified: False draws every t from the whole range and ignores the positions.

    Raises:
        ValueError: The lengths differ, or `global_batch` or `num_timesteps` is below 1.
    """
    if global_batch < 1 or num_timesteps < 1:
        raise ValueError(
            f"global_batch and num_timesteps: expected >= 1, got {global_batch}, {num_timesteps}"
        )
    if uniforms.shape != positions.shape:
        raise ValueError(
            "draw_timesteps: expected one uniform per position, "
            f"got {tuple(uniforms.shape)} and {tuple(positions.shape)}"
        )
    if not stratified:
        positions, global_batch = torch.zeros_like(positions), 1
    t = ((positions + uniforms.double()) * num_timesteps / global_batch).floor().long()
    # p + u may round up to p + 1; stay inside the stratum.
    last = ((positions + 1) * num_timesteps - 1).div(global_batch, rounding_mode="floor")
    return torch.minimum(t, last)


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingSteps:
    """The steps of one sampling run, noisiest first; plain numbers, so no step waits for a GPU."""

    timesteps: tuple[int, ...]
    """Training timestep given to the network."""
    signal: tuple[float, ...]
    """a_i of the update rule, rising from 0; the step after the last has a = 1."""
    prediction_signal: tuple[float, ...]
    """a_i with which the network's velocity is read; differs from `signal` for `sat` only."""

    def __len__(self) -> int:
        return len(self.timesteps)

    def x0_from_velocity(
        self, x: Float[Tensor, "b *d"], *, velocity: Float[Tensor, "b *d"], step: int
    ) -> Float[Tensor, "b *d"]:
        """x0_hat = a x - sqrt(1 - a^2) v_hat at step `step`; float32 or wider."""
        a = self.prediction_signal[step]
        dtype = torch.promote_types(x.dtype, torch.float32)
        return a * x.to(dtype) - (1 - a * a) ** 0.5 * velocity.to(dtype)


def sampling_steps(
    num_steps: int,
    *,
    noise_schedule: NoiseSchedule,
    schedule: Literal["diffusers", "sat"] = "diffusers",
) -> SamplingSteps:
    """Trailing timesteps (the first is always pure noise) and their signal levels.

    diffusers: t_i = round((n - i) 1000 / n) - 1 with the training table. Equal to diffusers'
    CogVideoX schedulers where `num_steps` divides 1000. Elsewhere those update x to t - 1000 // n,
    not to the timestep that they visit next; here the update always goes to the next timestep.

    sat: t_i = floor(999 (n - i) / n); the rescaling to zero terminal SNR is done again on the
    visited subset, and velocities are read with the nearest entry of the training table (SAT's
    ZeroSNRDDPMDiscretization and DiscreteDenoiser). Not what the network was trained on by up
    to 0.1 %, but what the released SAT program does.

    Raises:
        ValueError: `num_steps` is not in 1 .. num_timesteps, or the schedule is unknown.
    """
    total = noise_schedule.num_timesteps
    if not 1 <= num_steps <= total:
        raise ValueError(f"sample.num_steps: expected 1 .. {total}, got {num_steps}")
    signal = noise_schedule.signal.cpu().numpy()
    if schedule == "diffusers":
        left = num_steps - np.arange(num_steps)
        timesteps = np.round(total * left / num_steps).astype(np.int64) - 1
        visited = read = signal[timesteps]
    elif schedule == "sat":
        # As SAT computes it: rounding in linspace puts a few steps of some n one below the floor.
        timesteps = np.linspace(total - 1, 0, num_steps, endpoint=False).astype(np.int64)
        unscaled = noise_schedule.unscaled_signal.cpu().numpy()[timesteps][::-1]
        # A single step visits pure noise only, which leaves nothing to stretch.
        visited = _to_zero_terminal(unscaled)[::-1] if num_steps > 1 else np.zeros(1)
        read = signal[np.abs(signal[None] - visited[:, None]).argmin(axis=1)]
    else:
        raise ValueError(f"sample.schedule: expected diffusers or sat, got {schedule!r}")
    return SamplingSteps(
        timesteps=tuple(timesteps.tolist()),
        signal=tuple(visited.tolist()),
        prediction_signal=tuple(read.tolist()),
    )
