"""Means over training seeds, and how sure they are."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy.stats import t as student_t

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A mean over seeds with its interval."""

    mean: float
    low: float | None
    """Ends of the 95 % interval; None for one seed, which tells nothing about others."""
    high: float | None
    count: int
    """Seeds."""

    @property
    def half_width(self) -> float | None:
        """Of the interval."""
        return None if self.high is None else self.high - self.mean


def estimate(values: Sequence[float], *, confidence: float = CONFIDENCE) -> Estimate | None:
    """Mean and t-interval: mean +- t(n - 1) * s / sqrt(n), s with n - 1 below; None of nothing.

    Seeds are taken as independent and their scores as normal; with three of them t is 4.3.

    Args:
        values: One number per seed, finite.
        confidence: Of the interval, 0..1.

    Raises:
        ValueError: A value is not finite.
    """
    if not values:
        return None
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"expected finite numbers, got {list(values)}")
    mean, count = fmean(values), len(values)
    if count == 1:
        return Estimate(mean=mean, low=None, high=None, count=1)
    reach = float(student_t.ppf((1 + confidence) / 2, count - 1)) * stdev(values) / count**0.5
    return Estimate(mean=mean, low=mean - reach, high=mean + reach, count=count)


def paired_difference(
    first: Mapping[int, float], second: Mapping[int, float], *, confidence: float = CONFIDENCE
) -> Estimate | None:
    """`first - second`, seed by seed over those that both have; None where there is none.

    Runs of one seed share data order, noise and prompts, so what these do to both cancels.
    """
    common = sorted(first.keys() & second.keys())
    return estimate([first[seed] - second[seed] for seed in common], confidence=confidence)
