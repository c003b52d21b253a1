"""Histograms of a report: how wrong depth is, and how many entities there are."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from sat_udpdiff.evaluation.measure import Features


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthErrorHistogram:
    """Of guess - truth, unaligned, over the videos of a set; each video counts the same."""

    edges: Float64[np.ndarray, " m"]
    """Of the bins, from -1 (guessed far, truly near) to 1; one more than bins."""
    shares: Float64[np.ndarray, " n"]
    """Of the pixels; they sum to 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EntityCountHistogram:
    """Videos by the number of their entities."""

    counts: Int64[np.ndarray, " n"]
    """0, 1, 2, ... to the largest number of either."""
    true: Int64[np.ndarray, " n"]
    """Videos whose truth has so many."""
    found: Int64[np.ndarray, " n"]
    """Videos in which so many were found."""


def depth_error_histogram(features: Mapping[str, Features]) -> DepthErrorHistogram:
    """From the features of `DepthAgainstTruth` or `DepthComparison`.

    Raises:
        ValueError: There is no video.
    """
    if not features:
        raise ValueError("depth errors: no video could be judged")
    shares = np.mean([found["error_histogram"] for found in features.values()], axis=0)
    return DepthErrorHistogram(edges=np.linspace(-1, 1, len(shares) + 1), shares=shares)


def entity_count_histogram(features: Mapping[str, Features]) -> EntityCountHistogram:
    """From the features of `SegmentationAgainstTruth`.

    Raises:
        ValueError: There is no video.
    """
    if not features:
        raise ValueError("entity counts: no video could be judged")
    true, found = (
        np.array([int(of[name]) for of in features.values()]) for name in ("num_true", "num_found")
    )
    length = int(max(true.max(), found.max())) + 1
    return EntityCountHistogram(
        counts=np.arange(length),
        true=np.bincount(true, minlength=length),
        found=np.bincount(found, minlength=length),
    )
