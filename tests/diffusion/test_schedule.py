"""Schedule tables, conversions between x_t, v and x0, and the steps of a sampling run."""

from itertools import pairwise

import pytest
import torch

from sat_udpdiff.config import DiffusionConfig
from sat_udpdiff.diffusion.schedule import NoiseSchedule, make_schedule, sampling_steps

GOLDEN_TIMESTEPS = [0, 1, 100, 250, 500, 750, 900]
# a_t of the released SAT program (tag v1.0) for 5B (shift 1) and 2B (shift 3).
GOLDEN_SIGNAL = {
    1.0: [0.99957491, 0.99911633, 0.94168003, 0.80774811, 0.49093664, 0.18110527, 0.0544095],
    3.0: [0.99872635, 0.99739693, 0.85337092, 0.6237417, 0.30875249, 0.10411005, 0.03074822],
}


def schedule(shift: float = 1.0, num_timesteps: int = 1000) -> NoiseSchedule:
    return make_schedule(DiffusionConfig(snr_shift=shift, num_train_timesteps=num_timesteps))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_signal_has_the_released_values(shift: float):
    signal = schedule(shift).signal
    golden = torch.tensor(GOLDEN_SIGNAL[shift], dtype=torch.float64)
    assert torch.allclose(signal[GOLDEN_TIMESTEPS], golden, rtol=0, atol=1e-7)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("num_timesteps", [2, 10, 1000])
def test_signal_falls_to_exactly_zero(shift: float, num_timesteps: int):
    signal = schedule(shift, num_timesteps).signal
    assert signal.dtype == torch.float64
    assert signal.shape == (num_timesteps,)
    assert signal[-1].item() == 0.0
    assert (signal.diff() < 0).all()
    assert signal[0] < 1


def test_shift_divides_the_snr():
    plain, shifted = schedule(1.0).unscaled_signal, schedule(3.0).unscaled_signal
    snr = [a.square() / (1 - a.square()) for a in (plain, shifted)]
    assert torch.allclose(snr[0] / snr[1], torch.full_like(plain, 3.0), rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_x0_is_recovered_from_velocity_at_every_timestep(dtype: torch.dtype):
    table = schedule()
    t = torch.arange(1000)
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 1000, 2, 3, 1, 2, generator=generator, dtype=torch.float64).to(dtype)
    x_t = table.add_noise(x0, noise=noise, t=t)
    velocity = table.velocity(x0, noise=noise, t=t)
    recovered = table.x0_from_velocity(x_t, velocity=velocity, t=t)
    assert x_t.dtype == torch.promote_types(dtype, torch.float32)
    tolerance = 1e-14 if dtype == torch.float64 else 1e-6
    assert (recovered - x0).abs().max() < tolerance * 10


def test_forward_process_by_hand():
    table = schedule()
    t = torch.tensor([0, 500, 999])
    x0, noise = torch.full((3, 1), 2.0).double(), torch.full((3, 1), -1.0).double()
    a = table.signal[t, None]
    assert torch.equal(table.add_noise(x0, noise=noise, t=t)[2], noise[2])
    assert torch.equal(table.velocity(x0, noise=noise, t=t)[2], -x0[2])
    expected = a * 2 - (1 - a**2).sqrt()
    assert torch.allclose(table.add_noise(x0, noise=noise, t=t), expected, atol=1e-15)
    expected = -a - (1 - a**2).sqrt() * 2
    assert torch.allclose(table.velocity(x0, noise=noise, t=t), expected, atol=1e-15)


def test_tables_move_together():
    moved = schedule().to("meta")
    assert moved.signal.is_meta
    assert moved.unscaled_signal.is_meta


@pytest.mark.parametrize("shift", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_shift_is_refused(shift: float):
    with pytest.raises(ValueError, match=r"diffusion\.snr_shift: expected .* got"):
        schedule(shift)


def test_one_timestep_is_refused():
    with pytest.raises(ValueError, match=r"diffusion\.num_train_timesteps: .* got 1"):
        schedule(num_timesteps=1)


def test_fifty_steps_visit_the_released_timesteps():
    expected = tuple(range(999, 0, -20))
    for kind in ("diffusers", "sat"):
        steps = sampling_steps(50, noise_schedule=schedule(), schedule=kind)
        assert steps.timesteps == expected
        assert len(steps) == 50


@pytest.mark.parametrize("kind", ["diffusers", "sat"])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 30, 48, 61, 99, 240, 999, 1000])
def test_steps_start_at_noise_and_never_repeat(kind, num_steps: int):
    steps = sampling_steps(num_steps, noise_schedule=schedule(), schedule=kind)
    assert len(steps) == len(steps.signal) == len(steps.prediction_signal) == num_steps
    assert steps.timesteps[0] == 999
    assert steps.timesteps[-1] >= 0
    assert all(now > after for now, after in pairwise(steps.timesteps))
    assert steps.signal[0] == steps.prediction_signal[0] == 0.0
    assert all(now < after for now, after in pairwise(steps.signal))
    assert steps.signal[-1] < 1


def test_diffusers_steps_read_the_training_table():
    table = schedule(3.0)
    steps = sampling_steps(30, noise_schedule=table)
    assert list(steps.signal) == table.signal[list(steps.timesteps)].tolist()
    assert steps.prediction_signal == steps.signal


@pytest.mark.parametrize(("shift", "factor"), [(1.0, 1.000629), (3.0, 1.001048)])
def test_sat_steps_are_anchored_anew(shift: float, factor: float):
    table = schedule(shift)
    steps = sampling_steps(50, noise_schedule=table, schedule="sat")
    trained = table.signal[list(steps.timesteps)]
    ratio = torch.tensor(steps.signal[1:], dtype=torch.float64) / trained[1:]
    assert torch.allclose(ratio, torch.full_like(ratio, factor), atol=1e-6)


def test_sat_steps_have_the_released_values():
    steps = sampling_steps(50, noise_schedule=schedule(), schedule="sat")
    signal = dict(zip(steps.timesteps, steps.signal, strict=True))
    assert signal[19] == pytest.approx(0.99108223, abs=1e-7)
    assert signal[499] == pytest.approx(0.49260929, abs=1e-7)
    assert signal[979] == pytest.approx(0.00926799, abs=1e-7)


@pytest.mark.parametrize(("shift", "last_moved"), [(1.0, 219), (3.0, 159)])
def test_sat_velocities_are_read_with_the_nearest_trained_signal(shift: float, last_moved: int):
    """The anchoring moves late steps by more than half an entry: they read the entry before."""
    table = schedule(shift)
    steps = sampling_steps(50, noise_schedule=table, schedule="sat")
    for t, read in zip(steps.timesteps, steps.prediction_signal, strict=True):
        assert read == table.signal[t - 1 if t <= last_moved else t].item()


def test_step_reads_velocity_with_the_prediction_signal():
    table = schedule()
    steps = sampling_steps(50, noise_schedule=table, schedule="sat")
    x, velocity = torch.full((1, 2), 3.0), torch.full((1, 2), 5.0, dtype=torch.bfloat16)
    a = table.signal[18].item()
    x0_hat = steps.x0_from_velocity(x, velocity=velocity, step=49)
    assert x0_hat.dtype == torch.float32
    assert torch.allclose(x0_hat, torch.tensor(3 * a - 5 * (1 - a * a) ** 0.5), rtol=1e-6)


@pytest.mark.parametrize("num_steps", [0, -1, 1001])
def test_impossible_number_of_steps_is_refused(num_steps: int):
    with pytest.raises(
        ValueError, match=rf"sample\.num_steps: expected 1 \.\. 1000, got {num_steps}"
    ):
        sampling_steps(num_steps, noise_schedule=schedule())


@pytest.mark.usefixtures("as_in_production")
def test_unknown_step_schedule_is_refused():
    with pytest.raises(
        ValueError, match=r"sample\.schedule: expected diffusers or sat, got 'linear'"
    ):
        sampling_steps(10, noise_schedule=schedule(), schedule="linear")  # pyright: ignore
