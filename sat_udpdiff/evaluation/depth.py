"""Depth of a clip against a truth: delta1 and RMSE, as DepthCrafter's evaluation computes them.

github.com/Tencent/DepthCrafter, benchmark/eval/{metric,eval}.py, its domain `disp`. Depth is
disparity here, larger = nearer. Each frame is scored over its valid pixels, then frames are
averaged, so that a frame with few of them counts as much as the others.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Float64

Align = Literal["none", "median", "lstsq"]
ALIGNMENTS: tuple[Align, ...] = get_args(Align)

LEAST = 1e-3
"""Truth and guess below it count as this much, so that no ratio is taken of nothing."""
DELTA1_RATIO = 1.25


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthErrors:
    """How far a clip is from the truth."""

    delta1: float
    """Share of pixels with max(guess / truth, truth / guess) < 1.25, mean over frames, 0..1."""
    rmse: float
    """Root of the mean squared error of a frame, mean over frames, in the truth's unit."""
    num_frames: int
    """Frames that were scored."""
    num_dropped: int
    """Frames without a valid pixel."""
    scale: float
    """Aligned guess = scale * guess + shift."""
    shift: float


def depth_errors(
    truth: Float[np.ndarray, "t h w"],
    guess: Float[np.ndarray, "t h w"],
    *,
    align: Align = "none",
    valid: Bool[np.ndarray, "t h w"] | None = None,
) -> DepthErrors:
    """Score a clip.

    Args:
        truth: Disparity, 1 = near; in [0, 1] where the errors are to be compared with others'.
        guess: Of the same pixels.
        align: 'median': the guess is multiplied so that the medians over the clip agree, both
            clamped at 0.001; 'lstsq': scale and shift of least squares over the clip, of the guess
            that was clamped, as published; 'none': neither.
        valid: Pixels that are scored; None = those where the truth is finite. DepthCrafter's
            program takes truth > 0.001, which leaves out what is farthest.

    Raises:
        ValueError: The shapes differ, no pixel is valid, a valid value is not finite, or there is
            no such alignment.
    """
    if truth.shape != guess.shape or 0 in truth.shape:
        raise ValueError(
            f"depth: expected a truth and a guess of one shape, got {truth.shape} and {guess.shape}"
        )
    if align not in ALIGNMENTS:
        raise ValueError(f"align: expected one of {', '.join(ALIGNMENTS)}, got {align!r}")
    valid = np.isfinite(truth) if valid is None else valid
    kept = np.flatnonzero(valid.any(axis=(1, 2)))
    if not len(kept):
        raise ValueError("depth: expected valid pixels, the truth has none")
    if bad := sum(int((~np.isfinite(guess[t][valid[t]])).sum()) for t in kept):
        raise ValueError(f"depth: expected finite values, got {bad} that are not")
    scale, shift = _alignment(truth, guess, align=align, valid=valid)
    scores = [
        _frame_scores(_clamped(truth[t][valid[t]]), _aligned(guess[t][valid[t]], scale, shift))
        for t in kept
    ]
    delta1, rmse = np.mean(scores, axis=0)
    return DepthErrors(
        delta1=float(delta1),
        rmse=float(rmse),
        num_frames=len(kept),
        num_dropped=len(truth) - len(kept),
        scale=scale,
        shift=shift,
    )


def error_histogram(
    truth: Float[np.ndarray, "t h w"], guess: Float[np.ndarray, "t h w"], *, bins: int = 80
) -> Float64[np.ndarray, " bins"]:
    """Share of the clip's pixels by guess - truth, in equal bins of [-1, 1]; unaligned.

    Args:
        truth: Disparity; pixels that are not finite are left out.
        guess: Likewise, finite.
        bins: An even number has an edge at 0.

    Returns:
        Shares that sum to 1; errors beyond 1 count in the outer bins.
    """
    counts = np.zeros(bins, np.int64)
    for of_truth, of_guess in zip(truth, guess, strict=True):
        error = of_guess.astype(np.float64) - of_truth
        error = np.clip(error[np.isfinite(of_truth)], -1, 1)
        counts += np.histogram(error, bins=bins, range=(-1, 1))[0]
    return counts / max(1, counts.sum())


def _frame_scores(
    truth: Float64[np.ndarray, " n"], guess: Float64[np.ndarray, " n"]
) -> tuple[float, float]:
    ratio = np.maximum(guess / truth, truth / guess)
    return float((ratio < DELTA1_RATIO).mean()), float(np.sqrt(((guess - truth) ** 2).mean()))


def _clamped(values: Float[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    return np.maximum(values.astype(np.float64), LEAST)


def _aligned(
    guess: Float[np.ndarray, " n"], scale: float, shift: float
) -> Float64[np.ndarray, " n"]:
    return _clamped(scale * _clamped(guess) + shift)


def _alignment(
    truth: Float[np.ndarray, "t h w"],
    guess: Float[np.ndarray, "t h w"],
    *,
    align: Align,
    valid: Bool[np.ndarray, "t h w"],
) -> tuple[float, float]:
    """Scale and shift of the clamped guess."""
    if align == "none":
        return 1.0, 0.0
    if align == "median":
        # Clamped: the sky may be more than half of a clip, and is 0.
        return float(np.median(_clamped(truth[valid])) / np.median(_clamped(guess[valid]))), 0.0
    return _least_squares(truth, guess, valid=valid)


def _least_squares(
    truth: Float[np.ndarray, "t h w"],
    guess: Float[np.ndarray, "t h w"],
    *,
    valid: Bool[np.ndarray, "t h w"],
) -> tuple[float, float]:
    """Of truth = scale * guess + shift."""
    count = int(valid.sum())

    # Frame by frame: 17 million pixels as doubles, with their powers, would take half a gigabyte.
    def pairs() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for of_truth, of_guess, mask in zip(truth, guess, valid, strict=True):
            yield _clamped(of_guess[mask]), of_truth[mask].astype(np.float64)

    x0, y0 = np.sum([(x.sum(), y.sum()) for x, y in pairs()], axis=0) / count
    products = [(((x - x0) ** 2).sum(), ((x - x0) * (y - y0)).sum()) for x, y in pairs()]
    variance, covariance = np.sum(products, axis=0)
    # One value everywhere: the truth's mean is the best that a shift can make of it.
    scale = float(covariance / variance) if variance > 0 else 0.0
    return scale, float(y0 - scale * x0)
