"""Timesteps stratified over the global batch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sat_udpdiff.diffusion.schedule import draw_timesteps

ALMOST_ONE = 1 - 2**-53


def draw(uniforms, positions, global_batch: int, **kwargs) -> torch.Tensor:
    return draw_timesteps(
        torch.as_tensor(uniforms, dtype=torch.float64),
        positions=torch.as_tensor(positions),
        global_batch=global_batch,
        **kwargs,
    )


def uniforms(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("world_size", [1, 2, 4, 5, 8, 10, 40, 1000])
def test_one_sample_per_rank_has_the_strata_of_the_released_program(world_size: int):
    width = 1000 // world_size
    for rank in {0, world_size // 2, world_size - 1}:
        t = draw(uniforms(4000), [rank] * 4000, world_size)
        assert t.dtype == torch.int64
        assert t.min() == rank * width
        assert t.max() == (rank + 1) * width - 1


@given(
    global_batch=st.integers(1, 3000),
    num_timesteps=st.integers(1, 1200),
    u=st.one_of(st.sampled_from([0.0, ALMOST_ONE]), st.floats(0, 1, exclude_max=True)),
    data=st.data(),
)
@settings(max_examples=100, deadline=None, database=None)
def test_draw_stays_in_its_stratum(global_batch, num_timesteps, u, data):
    position = data.draw(st.integers(0, global_batch - 1))
    t = draw([u], [position], global_batch, num_timesteps=num_timesteps).item()
    assert 0 <= t < num_timesteps
    # The integers that meet [p n / G, (p + 1) n / G).
    assert t >= position * num_timesteps // global_batch
    assert t * global_batch < (position + 1) * num_timesteps


@pytest.mark.parametrize("global_batch", [1, 3, 7, 8, 16, 64, 1000, 1536])
def test_timesteps_are_uniform_over_a_batch(global_batch: int):
    """An even grid of u in every stratum must give every timestep its exact share."""
    per_stratum = 200_000 // global_batch
    grid = (torch.arange(per_stratum, dtype=torch.float64) + 0.5) / per_stratum
    positions = torch.arange(global_batch).repeat_interleave(per_stratum)
    t = draw(grid.repeat(global_batch), positions, global_batch)
    share = torch.bincount(t, minlength=1000) / len(t)
    # A timestep that two strata share is off by less than one grid point in each.
    assert (share - 1e-3).abs().max() <= 2.01 / len(t)


def test_every_stratum_is_covered_by_one_batch():
    t = draw(uniforms(40), torch.arange(40), 40)
    assert torch.equal(t // 25, torch.arange(40))


def test_any_layout_of_the_batch_draws_the_same_timesteps():
    u, positions = uniforms(24), torch.arange(24)
    whole = draw(u, positions, 24)
    for ranks, micro in ((2, 3), (3, 8), (8, 1)):
        layout = positions.reshape(-1, ranks, micro)  # accumulation, rank, micro-batch
        for part in layout.reshape(-1, micro):
            assert torch.equal(draw(u[part], part, 24), whole[part])


def test_unstratified_draws_use_the_whole_range():
    u = uniforms(5000)
    t = draw(u, [7] * 5000, 8, stratified=False)
    assert torch.equal(t, (u * 1000).long())
    assert t.min() < 5
    assert t.max() > 994


@pytest.mark.usefixtures("as_in_production")
def test_impossible_batches_are_refused():
    with pytest.raises(ValueError, match="expected >= 1, got 0, 1000"):
        draw([0.5], [0], 0)
    with pytest.raises(ValueError, match="expected >= 1, got 1, 0"):
        draw([0.5], [0], 1, num_timesteps=0)
    with pytest.raises(ValueError, match=r"one uniform per position, got \(2,\) and \(1,\)"):
        draw([0.5, 0.5], [0], 1)
