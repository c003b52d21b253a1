"""Agreement of two segmentations whose ids have nothing to do with each other."""

import numpy as np
from jaxtyping import Int


def contingency(
    truth: Int[np.ndarray, "..."], guess: Int[np.ndarray, "..."]
) -> Int[np.ndarray, "n m"]:
    """Count the pixels of every pair of ids.

    Args:
        truth: Ids, any integers; the rows are its distinct values in increasing order.
        guess: Ids of the same pixels; the columns likewise.

    Returns:
        Pixel counts, int64.

    Raises:
        ValueError: The shapes differ or there are no pixels.
    """
    if truth.shape != guess.shape or truth.size == 0:
        raise ValueError(f"expected two id maps of one shape, got {truth.shape} and {guess.shape}")
    rows, row = np.unique(truth, return_inverse=True)
    columns, column = np.unique(guess, return_inverse=True)
    pairs = row.ravel().astype(np.int64) * len(columns) + column.ravel()
    return np.bincount(pairs, minlength=len(rows) * len(columns)).reshape(len(rows), len(columns))


def adjusted_rand_index(truth: Int[np.ndarray, "..."], guess: Int[np.ndarray, "..."]) -> float:
    """Hubert and Arabie's adjusted Rand index over all pixels: 1 = equal, 0 = by chance.

    Raises:
        ValueError: The shapes differ or there are no pixels.
    """
    counts = contingency(truth, guess).astype(np.float64)
    pairs = lambda n: (n * (n - 1.0) / 2.0).sum()  # noqa: E731
    both, in_truth, in_guess = pairs(counts), pairs(counts.sum(1)), pairs(counts.sum(0))
    total = counts.sum() * (counts.sum() - 1.0) / 2.0
    expected = in_truth * in_guess / max(total, 1.0)
    largest = 0.5 * (in_truth + in_guess)
    # One cluster on both sides: nothing to get wrong.
    return 1.0 if largest == expected else float((both - expected) / (largest - expected))
