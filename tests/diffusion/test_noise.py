"""Noise that belongs to samples."""

import pytest
import torch

from sat_udpdiff.diffusion.noise import per_sample_noise, start_noise

SHAPE = (2, 4, 3, 5)
GOLDEN_START = [1.3795260, -0.2700774, -0.5974392, 1.6330458]
GOLDEN_STEP_3 = [-1.2865396, 2.0231733, 0.3806536, -0.7145764]
SEEDS = [7, 0, 123456789012345, 2**31, 2**31 + 2**32]


def test_batch_size_and_order_do_not_change_a_sample():
    start, noise = start_noise(SEEDS, shape=SHAPE), per_sample_noise(SEEDS, shape=SHAPE)
    assert start.shape == (5, *SHAPE)
    assert start.dtype == torch.float32
    for row, seed in enumerate(SEEDS):
        assert torch.equal(start_noise([seed], shape=SHAPE)[0], start[row])
        alone = per_sample_noise([seed], shape=SHAPE)
        for step in (49, 0, 3):
            assert torch.equal(alone(step)[0], noise(step)[row])


def test_draws_of_other_seeds_and_steps_are_unrelated():
    noise = per_sample_noise(SEEDS, shape=(4000,))
    draws = torch.cat([start_noise(SEEDS, shape=(4000,)), noise(0), noise(1), noise(49)])
    correlation = torch.corrcoef(draws) - torch.eye(len(draws))
    assert correlation.abs().max() < 0.08  # five standard errors of 1 / sqrt(4000)


def test_noise_is_standard_normal():
    draws = start_noise([1], shape=(200_000,)).double()
    assert abs(draws.mean().item()) < 0.01
    assert abs(draws.var().item() - 1) < 0.02
    assert abs(draws.pow(4).mean().item() - 3) < 0.1


def test_a_seed_keeps_its_noise():
    """Samples are to be made again from their JSON: a change of this stream is a breaking one."""
    expected = torch.tensor(GOLDEN_START)
    assert torch.allclose(start_noise([1], shape=(4,))[0], expected, atol=1e-6)
    expected = torch.tensor(GOLDEN_STEP_3)
    assert torch.allclose(per_sample_noise([1], shape=(4,))(3)[0], expected, atol=1e-6)


def test_bad_seeds_are_refused():
    with pytest.raises(ValueError, match=r"seeds: expected .* >= 0, got \[3, -1\]"):
        start_noise([3, -1], shape=SHAPE)
    with pytest.raises(ValueError, match=r"seeds: .* got \[\]"):
        per_sample_noise([], shape=SHAPE)
