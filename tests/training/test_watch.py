"""Spikes among losses, ranks that lag, the clock of forward passes, the heartbeat."""

import json
import math
import time

import numpy as np
import pytest
import torch

from sat_udpdiff.training.watch import ForwardClock, Heartbeat, SpikeWatch, find_lag

RNG = np.random.default_rng(0)


def usual(count: int) -> list[float]:
    """Losses as batches of a diffusion model have them."""
    return np.exp(RNG.normal(-1.0, 0.4, count)).tolist()


def test_usual_losses_are_no_spikes():
    watch = SpikeWatch()
    # Of 5,000 log-normal numbers the largest lies some 4 deviations above the mean.
    assert [watch.observe(loss) for loss in usual(5000)] == [None] * 5000


def test_a_spike_is_told_with_its_size_and_does_not_hide_the_next():
    watch = SpikeWatch()
    for loss in usual(300):
        watch.observe(loss)
    for _ in range(2):
        ratio = watch.observe(10.0)
        assert ratio == pytest.approx(10 / math.exp(-1), rel=0.4)
    assert watch.observe(0.4) is None


def test_the_first_losses_are_no_spikes():
    watch = SpikeWatch()
    assert [watch.observe(loss) for loss in [1e-3, 100.0, *usual(20)]] == [None] * 22


def test_losses_that_fall_are_no_spikes_and_leave_a_new_usual():
    watch = SpikeWatch()
    for loss in [*usual(200), *(0.01 * loss for loss in usual(1000))]:
        assert watch.observe(loss) is None
    assert watch.observe(0.4) is not None


@pytest.mark.parametrize("loss", [math.nan, math.inf, 0.0])
def test_what_has_no_logarithm_is_not_counted(loss):
    watch = SpikeWatch([60.0, -1.0, 0.2])
    assert watch.observe(loss) is None
    assert watch.state() == [60.0, -1.0, 0.2]


def test_a_watch_goes_on_from_a_checkpoint_bit_for_bit():
    losses = usual(120)
    unbroken, before = SpikeWatch(), SpikeWatch()
    for loss in losses:
        unbroken.observe(loss)
    for loss in losses[:70]:
        before.observe(loss)
    after = SpikeWatch(json.loads(json.dumps(before.state())))
    for loss in losses[70:]:
        after.observe(loss)
    assert after.state() == unbroken.state()


@pytest.mark.parametrize(
    ("seconds", "found"),
    [
        ([1.0], None),
        ([1.0, 1.2], (1, 1.2)),
        ([1.0, 1.3], (1, 1.3)),
        ([1.0, 1.1, 3.0, 0.9], (2, 3.0)),
        ([0.0, 0.0], None),
    ],
)
def test_a_rank_lags_behind_the_median_of_the_others(seconds, found):
    lag = find_lag(seconds)
    assert (None if lag is None else (lag.rank, pytest.approx(lag.ratio))) == found


def test_a_clock_adds_up_and_starts_again():
    clock = ForwardClock(torch.device("cpu"))
    for _ in range(2):
        with clock:
            time.sleep(0.01)
    assert clock.take_seconds() >= 0.02
    assert clock.take_seconds() == 0.0


@pytest.mark.gpu
def test_on_a_gpu_the_clock_has_the_time_of_the_device():
    clock, matrix = ForwardClock(torch.device("cuda")), torch.ones(4096, 4096, device="cuda")
    with clock:
        for _ in range(50):
            matrix = matrix @ matrix / 4096
    torch.cuda.synchronize()
    # 7e12 operations: no GPU does them in the time that the host takes to ask for them.
    assert clock.take_seconds() > 0.01


def test_a_heartbeat_says_where_a_run_stands(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    beat = Heartbeat(tmp_path, total_steps=10, every_seconds=5)

    def read():
        return json.loads((tmp_path / "heartbeat.json").read_text())

    beat.step(2, loss=0.5)
    assert (read()["step"], read()["loss"], read()["eta"]) == (2, 0.5, None)
    now[0] = 104.0
    beat.step(3, loss=0.4)
    assert read()["step"] == 2
    now[0] = 108.0
    beat.step(4, loss=math.nan)
    found = read()
    assert (found["step"], found["loss"], found["step_seconds"]) == (4, None, 4.0)
    assert found["eta"] > found["time"]
    beat.write("stopped")
    # What was the first to end the run has ended it: others follow from it.
    beat.write("failed")
    now[0] = 200.0
    beat.step(5, loss=0.3)
    assert (read()["status"], read()["step"], read()["eta"]) == ("stopped", 4, None)
    assert [path.name for path in tmp_path.iterdir()] == ["heartbeat.json"]
