"""VBench's formulas (Huang et al. 2024), as its package 0.1.5 computes them.

Scores are fractions; tables show them times 100.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Real, UInt8

from sat_udpdiff.evaluation.measure import UnusableError

VERSION = "vbench 0.1.5"
"""What our numbers equal."""


def consistency_terms(features: Real[np.ndarray, "t d"]) -> Float64[np.ndarray, " t-1"]:
    """Likeness of each frame but the first to the one before it and to the first one.

    s_i = (max(0, cos(f_{i-1}, f_i)) + max(0, cos(f_0, f_i))) / 2

    Args:
        features: Of the frames; their lengths do not matter.

    Returns:
        The s_i, 0..1.

    Raises:
        UnusableError: There is one frame, or features are not finite. (VBench fails at the first
            and takes the second for likeness 0.)
    """
    if len(features) < 2:
        raise UnusableError(f"expected 2 or more frames, got {len(features)}")
    values = features.astype(np.float64)
    if bad := int((~np.isfinite(values).all(axis=1)).sum()):
        raise UnusableError(f"the features of {bad} of {len(values)} frames are not finite")
    unit = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    to_previous = (unit[1:] * unit[:-1]).sum(axis=1)
    to_first = unit[1:] @ unit[0]
    return (np.maximum(to_previous, 0.0) + np.maximum(to_first, 0.0)) / 2


def pooled_mean(terms: Sequence[Float64[np.ndarray, "..."]]) -> float:
    """VBench's consistency of a set: the mean over all frames of all videos.

    A long video counts for more than a short one.

    Args:
        terms: `consistency_terms` of each video.
    """
    return float(sum(video.sum() for video in terms) / sum(len(video) for video in terms))


def pooled_interval(
    terms: Sequence[Float64[np.ndarray, "..."]], *, resamples: int = 1000, seed: int = 0
) -> tuple[float, float] | None:
    """95 % percentile interval of `pooled_mean`, by bootstrap over videos; None for less than two.

    Frames of one video are no independent draws, so videos are drawn.
    """
    if len(terms) < 2:
        return None
    sums = np.array([video.sum() for video in terms])
    counts = np.array([len(video) for video in terms])
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    for i in range(resamples):
        drawn = rng.integers(0, len(terms), len(terms))
        means[i] = sums[drawn].sum() / counts[drawn].sum()
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def frame_difference(
    frame: UInt8[np.ndarray, "h w 3"], predicted: UInt8[np.ndarray, "h w 3"]
) -> float:
    """Mean absolute difference of all values, 0..255."""
    return float(np.abs(frame.astype(np.int16) - predicted).mean())


def motion_smoothness(differences: Float64[np.ndarray, " n"]) -> float:
    """Smoothness of one video, 0..1: (255 - mean of the differences) / 255.

    Args:
        differences: `frame_difference` of frames 1, 3, 5, ... and of what was predicted for them
            from the frames beside them.
    """
    return float((255.0 - differences.mean()) / 255.0)
