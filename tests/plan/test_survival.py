"""Saves, failures and the interval between saves, against figures by hand and in print."""

import math

import numpy as np
import pytest

from sat_udpdiff.plan.survival import (
    SaveTime,
    best_interval,
    daly_interval,
    expected_loss,
    files_on_a_node,
    writing_seconds,
)


def saves(held=0.0, *, writing=0.0, asynchronous=False):
    return SaveTime(gathering=held, writing=writing, asynchronous=asynchronous)


@pytest.mark.parametrize(
    ("mtbf_minutes", "best_minutes"),
    # Daly 2006, figures 3 to 5: saves of 5 minutes.
    [(24 * 60, 117), (6 * 60, 57), (15, 9.1)],
)
def test_best_intervals_are_those_of_daly(mtbf_minutes, best_minutes):
    found = daly_interval(5.0 * 60, mtbf=60.0 * mtbf_minutes) / 60
    assert found == pytest.approx(best_minutes, abs=0.5 if best_minutes > 10 else 0.05)


@pytest.mark.parametrize("mtbf", [1e3, 1e5, 1e7])
@pytest.mark.parametrize(
    "save", [saves(30.0, writing=30.0), saves(60.0, writing=20.0, asynchronous=True)]
)
def test_the_best_interval_loses_least(save, mtbf):
    best = best_interval(save, mtbf=mtbf)

    def loss(interval):
        return expected_loss(save, interval=interval, restart=600.0, mtbf=mtbf).total

    assert loss(best) < min(loss(0.8 * best), loss(1.25 * best))


def test_a_save_as_long_as_the_failures_are_apart():
    assert daly_interval(200.0, mtbf=100.0) == 100.0
    assert daly_interval(199.9, mtbf=100.0) == pytest.approx(100.0, abs=25.0)


def test_rare_failures_cost_half_an_interval_and_a_restart():
    found = expected_loss(saves(9.0), interval=3600.0, restart=600.0, mtbf=3.6e6)
    assert found.saving == 9 / 3600
    assert found.failures == pytest.approx((1800 + 600) / 3.6e6, rel=0.01)
    assert found.total == found.saving + found.failures


def test_frequent_failures_cost_more_than_the_first_order_says():
    found = expected_loss(saves(), interval=100.0, restart=0.0, mtbf=100.0)
    assert found.total == pytest.approx(math.e - 2)
    endless = expected_loss(saves(1.0), interval=1e6, restart=0.0, mtbf=1.0)
    assert endless.failures == math.inf


def test_asynchronous_saves_hold_training_up_less_and_count_later():
    waits, goes_on = (saves(5.0, writing=40.0, asynchronous=x) for x in (False, True))
    assert (waits.held(100.0), goes_on.held(100.0)) == (45.0, 5.0)
    # The next save waits until this one is written.
    assert goes_on.held(30.0) == 15.0
    found = expected_loss(goes_on, interval=3600.0, restart=600.0, mtbf=3.6e7)
    assert found.saving == 5 / 3600
    assert found.failures == pytest.approx((1800 + 40 + 600) / 3.6e7, rel=0.01)


def test_asynchronous_saves_come_more_often_but_not_before_they_are_written():
    save = saves(5.0, writing=40.0, asynchronous=True)
    assert best_interval(save, mtbf=1e6) == daly_interval(5.0, mtbf=1e6)
    assert best_interval(save, mtbf=60.0) == 40.0


def test_the_loss_of_asynchronous_saves_is_that_of_simulated_failures():
    interval, save = 100.0, saves(4.0, writing=30.0, asynchronous=True)
    restart, mtbf, rng = 20.0, 300.0, np.random.default_rng(0)
    clock, done, counts = 0.0, 0, 20_000
    failure = rng.exponential(mtbf)
    position, segment = 0.0, interval + save.gathering
    while done < counts:
        # To the moment at which the next save counts; the first one is at the start.
        step = (done + 1) * segment + save.writing - position
        if clock + step <= failure:
            clock, position, done = clock + step, position + step, done + 1
            continue
        # Back to where the newest save was taken; a restart that fails begins again.
        clock = failure
        failure = clock + rng.exponential(mtbf)
        while clock + restart > failure:
            clock = failure
            failure = clock + rng.exponential(mtbf)
        clock, position = clock + restart, done * segment
    simulated = clock / (counts * interval) - 1
    found = expected_loss(save, interval=interval, restart=restart, mtbf=mtbf)
    assert found.total == pytest.approx(simulated, rel=0.02)


@pytest.mark.parametrize(
    ("ranks", "writing"),
    [
        # 3 GB each: 4 s at what a rank writes; three at once 4.5 s at what the disk takes.
        (8, 4.5),
        (3, 4.5),
        # Two (4 s), then one.
        (2, 8.0),
        (1, 12.0),
    ],
)
def test_kinds_are_written_side_by_side_as_far_as_ranks_go(ranks, writing):
    found = writing_seconds(kinds=3, kind_bytes=3e9, ranks=ranks, disk_rate=2e9)
    assert found == pytest.approx(writing)


@pytest.mark.parametrize(
    ("ranks", "gpus", "at_once", "waiting"),
    [(8, 8, 4, 4), (16, 8, 4, 4), (4, 1, 1, 1), (2, 2, 4, 2), (2, 1, 2, 1), (1, 1, 4, 1)],
)
def test_a_node_holds_the_files_of_its_ranks(ranks, gpus, at_once, waiting):
    def held(asynchronous):
        return files_on_a_node(kinds=4, ranks=ranks, gpus=gpus, asynchronous=asynchronous)

    assert (held(True), held(False)) == (at_once, waiting)
