"""Guidance scales of the released programs."""

from itertools import pairwise

import pytest
import torch

from sat_udpdiff.diffusion.guidance import guidance_scale, guide

# Scale 6, 50 steps, t = 999, 979, .., 19: what the released SAT program and diffusers compute.
RELEASED = [
    *(2.2915, 2.5435, 6.9744, 6.4204, 2.7881, 4.2719, 1.0376, 4.1704, 1.618, 6.9831),
    *(1.0048, 2.872, 6.9768, 1.6331, 4.3297, 2.4366, 6.3773, 6.0068, 3.4479, 3.1981),
    *(1.6548, 6.61, 1.1947, 4.2953, 6.9854, 1.5213, 1.7616, 1.0579, 4.1275, 1.4823),
    *(2.0026, 5.9477, 4.1432, 6.5305, 6.1398, 6.9999, 6.1684, 1.1199, 2.0975, 6.685),
    *(6.9992, 2.3432, 6.2128, 1.2505, 6.9996, 6.8644, 1.0636, 1.0, 1.0, 1.1234),
]


def scales(kind, *, scale: float = 6.0, num_steps: int = 50) -> list[float]:
    return [
        guidance_scale(kind, scale=scale, step=i, timestep=999 - 20 * i, num_steps=num_steps)
        for i in range(num_steps)
    ]


def test_dynamic_released_has_the_released_values():
    assert scales("dynamic_released") == pytest.approx(RELEASED, abs=6e-5)


def test_constant_is_constant():
    assert scales("constant", scale=4.5) == [4.5] * 50


def test_dynamic_step_rises_late_from_one():
    values = scales("dynamic_step")
    assert values[0] == 1.0
    assert all(now <= after for now, after in pairwise(values))
    assert values[25] < 1.02
    assert 6.0 < values[-1] < 7.0
    assert guidance_scale("dynamic_step", scale=6.0, step=50, timestep=0, num_steps=50) == 7.0


@pytest.mark.usefixtures("as_in_production")
def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match=r"sample\.guidance: expected constant, .* got 'cosine'"):
        scales("cosine")


def test_guide_extrapolates_in_float32():
    uncond, cond = torch.tensor([1.0, -2.0]), torch.tensor([1.5, -1.0])
    assert torch.equal(guide(uncond, cond, 0.0), uncond)
    assert torch.equal(guide(uncond, cond, 1.0), cond)
    assert torch.allclose(guide(uncond, cond, 6.0), torch.tensor([4.0, 4.0]))
    assert guide(uncond.bfloat16(), cond.bfloat16(), 6.0).dtype == torch.float32
