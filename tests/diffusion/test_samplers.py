"""Samplers against closed forms; parity with other programs is in tests/parity."""

import math
from collections.abc import Callable

import pytest
import torch

from sat_udpdiff.config import DiffusionConfig
from sat_udpdiff.diffusion.noise import per_sample_noise, start_noise
from sat_udpdiff.diffusion.samplers import ddim, dpmpp_2m_sde
from sat_udpdiff.diffusion.schedule import SamplingSteps, make_schedule, sampling_steps

SCHEDULE = make_schedule(DiffusionConfig())
SHAPE = (2, 4, 3, 5)


def steps_of(num_steps: int, schedule="diffusers") -> SamplingSteps:
    return sampling_steps(num_steps, noise_schedule=SCHEDULE, schedule=schedule)


def sample(name: str, denoise, x, *, steps, seeds=(0,), callback=None) -> torch.Tensor:
    if name == "ddim":
        return ddim(denoise, x, steps=steps, callback=callback)
    noise_fn = per_sample_noise(seeds, shape=x.shape[1:])
    return dpmpp_2m_sde(denoise, x, steps=steps, noise_fn=noise_fn, callback=callback)


def gaussian_denoiser(steps: SamplingSteps, *, std: float) -> Callable:
    """E[x0 | x] where the data are normal with this standard deviation."""

    def denoise(x, i):
        a = steps.signal[i]
        return a * std**2 / (a**2 * std**2 + 1 - a**2) * x

    return denoise


both = pytest.mark.parametrize("name", ["ddim", "dpmpp_2m_sde"])


@both
@pytest.mark.parametrize("num_steps", [1, 2, 3, 10])
@pytest.mark.parametrize("schedule", ["diffusers", "sat"])
def test_perfect_denoiser_recovers_x0(name: str, num_steps: int, schedule: str):
    x0 = start_noise([9], shape=SHAPE)
    x = sample(
        name, lambda x, i: x0, start_noise([1], shape=SHAPE), steps=steps_of(num_steps, schedule)
    )
    assert torch.equal(x, x0)


def test_ddim_with_a_perfect_denoiser_keeps_the_noise():
    """Every x on the way is the forward process with the noise that sampling began with."""
    x0, noise = start_noise([9, 1], shape=SHAPE).double().chunk(2)
    steps, seen = steps_of(7), []
    ddim(lambda x, i: x0, noise, steps=steps, callback=lambda i, x, x0_hat: seen.append(x))
    for x, t in zip(seen, steps.timesteps, strict=True):
        expected = SCHEDULE.add_noise(x0, noise=noise, t=torch.tensor([t]))
        assert torch.allclose(x, expected, atol=1e-13)


def test_dpmpp_with_a_perfect_denoiser_has_the_forward_marginals():
    """x - a x0 is normal with variance 1 - a^2 at every step: the SDE keeps the marginals."""
    x0 = start_noise([9], shape=(40_000,))
    steps, seen = steps_of(10), []
    sample("dpmpp_2m_sde", lambda x, i: x0, start_noise([1], shape=(40_000,)), steps=steps,
           callback=lambda i, x, x0_hat: seen.append(x))  # fmt: skip
    for x, a in zip(seen, steps.signal, strict=True):
        residual = (x - a * x0) / (1 - a * a) ** 0.5
        assert abs(residual.mean().item()) < 0.02
        assert abs(residual.var().item() - 1) < 0.03


@both
@pytest.mark.parametrize("std", [0.3, 2.0])
def test_normal_data_come_out_with_their_spread(name: str, std: float):
    steps = steps_of(1000 if name == "ddim" else 250)  # DDIM is of first order
    x = sample(
        name, gaussian_denoiser(steps, std=std), start_noise([3], shape=(40_000,)), steps=steps
    )
    assert x.std().item() == pytest.approx(std, rel=0.02)


def test_dpmpp_is_of_second_order_without_noise():
    """Twice the steps, a quarter of the error, where x0_hat changes along the way."""

    def end_of(num_steps: int) -> float:
        signal = tuple(torch.linspace(0.2, 0.9, num_steps + 1, dtype=torch.float64).tolist())
        steps = SamplingSteps(
            timesteps=tuple(range(num_steps + 1)), signal=signal, prediction_signal=signal
        )
        seen = []
        dpmpp_2m_sde(
            lambda x, i: torch.full_like(x, math.cos(4 * signal[i])),
            torch.ones(1, 1, dtype=torch.float64),
            steps=steps,
            noise_fn=lambda i: torch.zeros(1, 1),
            callback=lambda i, x, x0_hat: seen.append(x.item()),
        )
        return seen[-1]  # what enters the last step, at a = 0.9

    exact = end_of(2048)
    errors = [abs(end_of(n) - exact) for n in (32, 64, 128)]
    assert errors[0] < 1e-2
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.15)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.15)


@both
def test_a_sample_does_not_depend_on_its_batch(name: str):
    seeds, steps = [5, 6, 7], steps_of(12)

    def denoise(x, i):
        return torch.tanh(2 * x.roll(1, -1)) - 0.2 * x * steps.signal[i]

    together = sample(name, denoise, start_noise(seeds, shape=SHAPE), steps=steps, seeds=seeds)
    for row, seed in enumerate(seeds):
        x = start_noise([seed], shape=SHAPE)
        alone = sample(name, denoise, x, steps=steps, seeds=[seed])
        assert torch.equal(alone[0], together[row])


@both
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_x_is_float32_between_steps(name: str, dtype: torch.dtype):
    seen = []

    def denoise(x, i):
        assert x.dtype == torch.float32
        return (0.5 * x).to(dtype)

    x = sample(name, denoise, start_noise([1], shape=SHAPE).to(dtype), steps=steps_of(4),
               callback=lambda i, x, x0_hat: seen.append((i, x.dtype, x0_hat.dtype)))  # fmt: skip
    assert x.dtype == torch.float32
    assert seen == [(i, torch.float32, torch.float32) for i in range(4)]


@both
def test_the_start_is_left_as_it_was(name: str):
    start = start_noise([1], shape=SHAPE)
    sample(name, lambda x, i: 0.5 * x, start, steps=steps_of(4))
    assert torch.equal(start, start_noise([1], shape=SHAPE))


def test_noise_is_asked_for_once_a_step_and_not_for_the_last():
    asked = []

    def noise_fn(i):
        asked.append(i)
        return torch.zeros(1, *SHAPE)

    dpmpp_2m_sde(lambda x, i: x, torch.zeros(1, *SHAPE), steps=steps_of(5), noise_fn=noise_fn)
    assert asked == [0, 1, 2, 3]


def test_dpmpp_replaces_the_first_noise_altogether():
    """The first step starts at zero SNR, so nothing of x may survive but what x0_hat took."""
    x0, steps = start_noise([9], shape=SHAPE), steps_of(3)
    ends = []
    for scale in (1.0, 1e6):
        seen = []
        sample("dpmpp_2m_sde", lambda x, i: x0, scale * start_noise([1], shape=SHAPE), steps=steps,
               callback=lambda i, x, x0_hat, seen=seen: seen.append(x))  # fmt: skip
        ends.append(seen[1])
    assert torch.equal(ends[0], ends[1])
