"""Whole sampling loops against diffusers' schedulers and the released SAT program.

The denoiser is a fixed nonlinear function of (x, t, prompt), and noise is the same on both sides.
"""

import math

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler

from sat_udpdiff.config import DiffusionConfig
from sat_udpdiff.diffusion.guidance import guidance_scale, guide
from sat_udpdiff.diffusion.samplers import ddim, dpmpp_2m_sde
from sat_udpdiff.diffusion.schedule import SamplingSteps, make_schedule, sampling_steps

SHAPE = (2, 3, 2, 2, 2)


def network(x: torch.Tensor, t: int, prompt: float) -> torch.Tensor:
    """A velocity that mixes positions and depends on the timestep and the prompt."""
    saturating = torch.tanh(1.3 * x.roll(1, -1) + 0.4 * math.sin(t / 70) + 0.3 * prompt)
    return saturating - 0.5 * x * math.cos(t / 300 + prompt)


def make_denoise(steps: SamplingSteps, *, guidance):
    def denoise(x: torch.Tensor, i: int) -> torch.Tensor:
        t = steps.timesteps[i]
        g = guidance_scale(guidance, scale=6.0, step=i, timestep=t, num_steps=len(steps))
        velocity = guide(network(x, t, 0.0), network(x, t, 1.0), g)
        return steps.x0_from_velocity(x, velocity=velocity, step=i)

    return denoise


def diffusers_scheduler(cls, *, shift: float, num_steps: int):
    """With the configuration files of the released diffusers pipelines."""
    scheduler = cls(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=True,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        snr_shift_scale=shift,
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(num_steps)
    return scheduler


def guided(x: torch.Tensor, t: int, guidance: str, num_steps: int) -> torch.Tensor:
    """Guidance as diffusers' CogVideoX pipeline applies it, to the velocity."""
    scale = 6.0
    if guidance == "dynamic_released":
        turn = math.cos(math.pi * ((num_steps - t) / num_steps) ** 5.0)
        scale = 1 + 6.0 * ((1 - turn) / 2)
    uncond, cond = network(x, t, 0.0), network(x, t, 1.0)
    return uncond + scale * (cond - uncond)


def start(dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=dtype)


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert theirs.isfinite().all()
    return ((ours - theirs).norm() / theirs.norm()).item()


TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
cases = pytest.mark.parametrize(
    ("num_steps", "shift", "guidance", "dtype"),
    [
        (num_steps, shift, guidance, dtype)
        for num_steps in (1, 2, 5, 50)
        for shift in (1.0, 3.0)
        for guidance in ("constant", "dynamic_released")
        for dtype in (torch.float32, torch.float64)
    ]
    + [(200, 1.0, "dynamic_released", torch.float32)],
)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_tables_equal_diffusers(shift: float):
    scheduler = diffusers_scheduler(CogVideoXDPMScheduler, shift=shift, num_steps=50)
    ours = make_schedule(DiffusionConfig(snr_shift=shift)).signal
    assert (ours - scheduler.alphas_cumprod.sqrt()).abs().max() < 1e-12


@pytest.mark.parametrize("num_steps", [n for n in range(1, 1001) if 1000 % n == 0])
def test_timesteps_equal_diffusers(num_steps: int):
    scheduler = diffusers_scheduler(CogVideoXDPMScheduler, shift=1.0, num_steps=num_steps)
    ours = sampling_steps(num_steps, noise_schedule=make_schedule(DiffusionConfig()))
    assert list(ours.timesteps) == scheduler.timesteps.tolist()


@cases
def test_ddim_equals_diffusers(num_steps: int, shift: float, guidance: str, dtype: torch.dtype):
    scheduler = diffusers_scheduler(CogVideoXDDIMScheduler, shift=shift, num_steps=num_steps)
    theirs = start(dtype)
    for t in scheduler.timesteps:
        velocity = guided(theirs, int(t), guidance, num_steps)
        theirs = scheduler.step(velocity, int(t), theirs, return_dict=False)[0]

    table = make_schedule(DiffusionConfig(snr_shift=shift))
    steps = sampling_steps(num_steps, noise_schedule=table)
    ours = ddim(make_denoise(steps, guidance=guidance), start(dtype), steps=steps)
    assert relative_error(ours, theirs) < TOLERANCE[dtype]


@cases
def test_dpmpp_equals_diffusers(num_steps: int, shift: float, guidance: str, dtype: torch.dtype):
    scheduler = diffusers_scheduler(CogVideoXDPMScheduler, shift=shift, num_steps=num_steps)
    theirs, old, before = start(dtype), None, None
    generator = torch.Generator().manual_seed(5)
    for t in scheduler.timesteps:
        velocity = guided(theirs, int(t), guidance, num_steps)
        theirs, old = scheduler.step(
            velocity, old, int(t), before, theirs, generator=generator, return_dict=False
        )
        before = int(t)

    generator = torch.Generator().manual_seed(5)

    def noise_fn(i: int) -> torch.Tensor:
        """Diffusers draws once in the first step, later twice, and uses the second."""
        for _ in range(1 if i == 0 else 2):
            noise = torch.randn(SHAPE, generator=generator, dtype=dtype)
        return noise

    table = make_schedule(DiffusionConfig(snr_shift=shift))
    steps = sampling_steps(num_steps, noise_schedule=table)
    denoise = make_denoise(steps, guidance=guidance)
    ours = dpmpp_2m_sde(denoise, start(dtype), steps=steps, noise_fn=noise_fn)
    assert relative_error(ours, theirs) < TOLERANCE[dtype]


# Every eighth value of the result of the released program (THUDM/CogVideo, tag v1.0: samplers
# VideoDDIMSampler and VPSDEDPMPP2MSampler with DiscreteDenoiser, VideoScaling, DynamicCFG(6, 5, 50)
# and ZeroSNRDDPMDiscretization), run on `network` and `closed_form_noise` in 50 steps.
RELEASED = {
    ("ddim", 1.0): [0.082381, -0.653588, -0.081924, -0.523653, -0.354434, -0.432099],
    ("ddim", 3.0): [0.093161, -0.685938, -0.075469, -0.529359, -0.355935, -0.430943],
    ("dpmpp_2m_sde", 1.0): [-0.495789, -0.466156, -0.507862, -0.453085, -0.512388, -0.448162],
    ("dpmpp_2m_sde", 3.0): [-0.484776, -0.396085, -0.503878, -0.37334, -0.504682, -0.368801],
}


def closed_form_noise(i: int) -> torch.Tensor:
    """Noise of unit variance that needs no generator, so that the golden values stay valid."""
    k = torch.arange(math.prod(SHAPE), dtype=torch.float64)
    values = math.sqrt(2) * torch.sin(12.9898 * (k + 1) + 78.233 * (i + 2))
    return values.float().reshape(SHAPE)


@pytest.mark.parametrize(("name", "shift"), RELEASED)
def test_sat_schedule_equals_the_released_program(name: str, shift: float):
    table = make_schedule(DiffusionConfig(snr_shift=shift))
    steps = sampling_steps(50, noise_schedule=table, schedule="sat")
    denoise, x = make_denoise(steps, guidance="dynamic_released"), closed_form_noise(-1)
    if name == "ddim":
        ours = ddim(denoise, x, steps=steps)
    else:
        ours = dpmpp_2m_sde(denoise, x, steps=steps, noise_fn=closed_form_noise)
    golden = torch.tensor(RELEASED[name, shift])
    assert (ours.flatten()[::8] - golden).abs().max() < 5e-6
    assert relative_error(ours.flatten()[::8], golden) < 1e-5
