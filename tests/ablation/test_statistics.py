"""Means over seeds: against closed forms and scipy."""

import math

import numpy as np
import pytest
from scipy import stats

from sat_udpdiff.ablation.statistics import estimate, paired_difference


def test_three_seeds_in_closed_form():
    """1, 2, 3: s = 1, and t of two degrees of freedom at 97.5 % is 4.30265."""
    found = estimate([1.0, 2.0, 3.0])
    assert found is not None and found.low is not None and found.high is not None
    assert found.mean == 2.0 and found.count == 3
    assert found.half_width == pytest.approx(4.302652729911275 / math.sqrt(3), rel=1e-9)
    assert found.low + found.high == pytest.approx(4.0)


@pytest.mark.parametrize("count", [2, 3, 5, 20])
@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_intervals_are_scipys(count, confidence):
    values = np.random.default_rng(count).normal(3.0, 2.0, count)
    found = estimate(values.tolist(), confidence=confidence)
    low, high = stats.t.interval(confidence, count - 1, loc=values.mean(), scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-12)


def test_one_seed_has_no_interval_and_none_has_nothing():
    found = estimate([5.0])
    assert found is not None
    assert (found.mean, found.low, found.high, found.half_width) == (5.0, None, None, None)
    assert estimate([]) is None


def test_what_is_no_number_is_refused():
    with pytest.raises(ValueError, match=r"finite numbers, got .*nan"):
        estimate([1.0, math.nan])


def test_pairs_are_of_common_seeds_alone():
    first = {0: 1.0, 1: 5.0, 2: 2.5, 9: 100.0}
    second = {1: 4.0, 2: 1.0, 0: 0.5, 7: -100.0}
    assert paired_difference(first, second) == estimate([0.5, 1.0, 1.5])
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


def test_what_a_seed_does_to_both_cancels():
    """Seeds far apart, a difference that is always the same but for a little."""
    first = {seed: 10.0 * seed + 1.0 + 0.01 * (-1) ** seed for seed in range(4)}
    second = {seed: 10.0 * seed for seed in range(4)}
    found = paired_difference(first, second)
    assert found is not None and found.low is not None
    assert found.low > 0.9
    alone = estimate(list(first.values()))
    assert alone is not None and alone.low is not None and alone.low < 0
    pairs = stats.ttest_rel(list(first.values()), list(second.values())).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((pairs.low, pairs.high), rel=1e-9)
