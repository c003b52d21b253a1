"""Saves, failures and the interval between saves, against figures by hand and in print."""

import math

import pytest

from sat_udpdiff.plan.survival import best_interval, expected_loss, save_time


@pytest.mark.parametrize(
    ("mtbf_minutes", "best_minutes"),
    # Daly 2006, figures 3 to 5: saves of 5 minutes.
    [(24 * 60, 117), (6 * 60, 57), (15, 9.1)],
)
def test_best_intervals_are_those_of_daly(mtbf_minutes, best_minutes):
    found = best_interval(save=5.0 * 60, mtbf=60.0 * mtbf_minutes) / 60
    assert found == pytest.approx(best_minutes, abs=0.5 if best_minutes > 10 else 0.05)


@pytest.mark.parametrize("mtbf", [1e3, 1e5, 1e7])
def test_the_best_interval_loses_least(mtbf):
    best = best_interval(save=60.0, mtbf=mtbf)

    def loss(interval):
        return expected_loss(interval=interval, save=60.0, restart=600.0, mtbf=mtbf).total

    assert loss(best) < min(loss(0.8 * best), loss(1.25 * best))


def test_a_save_as_long_as_the_failures_are_apart():
    assert best_interval(save=200.0, mtbf=100.0) == 100.0
    assert best_interval(save=199.9, mtbf=100.0) == pytest.approx(100.0, abs=25.0)


def test_rare_failures_cost_half_an_interval_and_a_restart():
    found = expected_loss(interval=3600.0, save=9.0, restart=600.0, mtbf=3.6e6)
    assert found.saving == 9 / 3600
    assert found.failures == pytest.approx((1800 + 600) / 3.6e6, rel=0.01)
    assert found.total == found.saving + found.failures


def test_frequent_failures_cost_more_than_the_first_order_says():
    found = expected_loss(interval=100.0, save=0.0, restart=0.0, mtbf=100.0)
    assert found.total == pytest.approx(math.e - 2)
    assert expected_loss(interval=1e6, save=1.0, restart=0.0, mtbf=1.0).failures == math.inf


@pytest.mark.parametrize(
    ("ranks", "writing"),
    [
        # 3 GB each: 2 s at what a rank writes; three at once 4.5 s at what the disk takes.
        (8, 4.5),
        (3, 4.5),
        # Two (3 s on the disk), then one.
        (2, 5.0),
        (1, 6.0),
    ],
)
def test_kinds_are_written_side_by_side_as_far_as_ranks_go(ranks, writing):
    found = save_time(kinds=3, kind_bytes=3e9, ranks=ranks, gather_seconds=0.5, disk_rate=2e9)
    assert found.writing == pytest.approx(writing)
    # 0.5 s of collectives and 0.3 s to the host, three times.
    assert found.gathering == pytest.approx(2.4)
    assert found.total == found.gathering + found.writing
