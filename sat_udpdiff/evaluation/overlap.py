"""How much each true entity shares with each found one, frame by frame; what is made of it.

One table of counts serves most measures of ids, so that a clip is read once.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int, Int64
from scipy.optimize import linear_sum_assignment


@dataclass(frozen=True, kw_only=True, slots=True)
class Overlaps:
    """Pixels that true and found entities share."""

    counts: Int64[np.ndarray, "t n m"]
    """By frame, true entity and found entity; row 0 and column 0 are what is unlabelled."""
    true_ids: Int64[np.ndarray, " n"]
    """Of the rows: 0, then the ids that are seen in any frame, rising."""
    found_ids: Int64[np.ndarray, " m"]
    """Of the columns, likewise."""

    @property
    def num_true(self) -> int:
        """True entities that are seen."""
        return len(self.true_ids) - 1

    @property
    def num_found(self) -> int:
        """Found entities that are seen."""
        return len(self.found_ids) - 1

    @property
    def excess(self) -> int:
        """Found minus true entities."""
        return self.num_found - self.num_true


@dataclass(frozen=True, kw_only=True, slots=True)
class Match:
    """One found entity at most for each true one."""

    rows: Int64[np.ndarray, " k"]
    """Rows of `Overlaps.counts`, all above 0, rising."""
    columns: Int64[np.ndarray, " k"]
    """The columns that go with them, all above 0."""


def overlaps(truth: Int[np.ndarray, "t h w"], found: Int[np.ndarray, "t h w"]) -> Overlaps:
    """Count what is shared.

    Args:
        truth: Entity of each pixel, the same over the clip; 0 = unlabelled.
        found: Likewise, of the same pixels.

    Raises:
        ValueError: The shapes differ, there are no pixels, or an id is below 0.
    """
    if truth.shape != found.shape or truth.size == 0:
        raise ValueError(f"expected two id maps of one shape, got {truth.shape} and {found.shape}")
    true_ids, found_ids = _seen(truth), _seen(found)
    counts = np.zeros((len(truth), len(true_ids), len(found_ids)), np.int64)
    for table, of_truth, of_found in zip(counts, truth, found, strict=True):
        pairs = np.searchsorted(true_ids, of_truth) * len(found_ids)
        pairs += np.searchsorted(found_ids, of_found)
        table += np.bincount(pairs.ravel(), minlength=table.size).reshape(table.shape)
    return Overlaps(counts=counts, true_ids=true_ids, found_ids=found_ids)


def _seen(ids: Int[np.ndarray, "t h w"]) -> Int64[np.ndarray, " n"]:
    seen = np.unique(np.concatenate([[0], *(np.unique(frame) for frame in ids)]))
    if seen[0] < 0:
        raise ValueError(f"expected ids from 0, got {seen[0]}")
    return seen.astype(np.int64)


def clip_iou(shared: Overlaps) -> Float64[np.ndarray, "n m"]:
    """Intersection over union over the whole clip of every true and found entity, 0..1.

    Row 0 and column 0 are left out; what the truth leaves unlabelled counts in the union.
    """
    counts = shared.counts.sum(axis=0)
    union = counts.sum(1)[:, None] + counts.sum(0) - counts
    return counts[1:, 1:] / np.maximum(union[1:, 1:], 1)


def match_entities(shared: Overlaps) -> Match:
    """The assignment with the largest sum of `clip_iou`, without pairs that share nothing."""
    iou = clip_iou(shared)
    rows, columns = linear_sum_assignment(-iou)
    sharing = iou[rows, columns] > 0
    return Match(
        rows=rows[sharing].astype(np.int64) + 1, columns=columns[sharing].astype(np.int64) + 1
    )


def mean_iou(shared: Overlaps) -> float:
    """Mean over the true entities of the IoU with what is matched, 0 for those without, 0..1.

    Raises:
        ValueError: The truth has no entity.
    """
    if not shared.num_true:
        raise ValueError("the truth has no entity")
    match = match_entities(shared)
    return float(clip_iou(shared)[match.rows - 1, match.columns - 1].sum() / shared.num_true)
