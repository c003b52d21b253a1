"""Video panoptic quality of a single class (Kim et al. 2020, arXiv:2006.11339, eq. 2).

Windows of k frames slide over the clip; in each, the tubes of entities are matched where their IoU
is above one half, and counts are summed over windows, and over clips where there are several.
github.com/mcahny/vps, tools/eval_vpq.py, has a truth for every fifth frame; here every frame
has one, and k counts frames. What the truth leaves unlabelled is void: it is in no union, and a
found tube that lies in it for the most part is no error.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from sat_udpdiff.evaluation.overlap import Overlaps

WINDOWS = (1, 5, 10, 15)


@dataclass(frozen=True, kw_only=True, slots=True)
class PanopticCounts:
    """Sums over the windows of one length."""

    iou: float = 0.0
    """Of the matched tubes."""
    matched: int = 0
    missed: int = 0
    """True tubes without a match."""
    extra: int = 0
    """Found tubes without a match."""

    def __add__(self, other: "PanopticCounts") -> "PanopticCounts":
        return PanopticCounts(
            iou=self.iou + other.iou,
            matched=self.matched + other.matched,
            missed=self.missed + other.missed,
            extra=self.extra + other.extra,
        )

    @property
    def quality(self) -> float:
        """Sum of IoU / (matched + missed / 2 + extra / 2), 0..1; nan where there is no tube."""
        tubes = self.matched + self.missed / 2 + self.extra / 2
        return self.iou / tubes if tubes else float("nan")


def panoptic_counts(
    shared: Overlaps, *, windows: Sequence[int] = WINDOWS
) -> dict[int, PanopticCounts]:
    """Counts of a clip by length of the window; lengths beyond the clip's are left out."""
    frames = len(shared.counts)
    before = np.concatenate([np.zeros_like(shared.counts[:1]), shared.counts.cumsum(axis=0)])
    return {
        k: sum(
            (_window(before[start + k] - before[start]) for start in range(frames - k + 1)),
            start=PanopticCounts(),
        )
        for k in windows
        if k <= frames
    }


def _window(counts: Int64[np.ndarray, "n m"]) -> PanopticCounts:
    area, found_area = counts.sum(1)[1:], counts.sum(0)[1:]
    both, void = counts[1:, 1:], counts[0, 1:]
    union = area[:, None] + found_area - both - void
    iou = both / np.maximum(union, 1)
    match = iou > 0.5  # at most one in each row and column
    is_error = (found_area > 0) & ~match.any(0) & (void <= 0.5 * found_area)
    return PanopticCounts(
        iou=float(iou[match].sum()),
        matched=int(match.sum()),
        missed=int(((area > 0) & ~match.any(1)).sum()),
        extra=int(is_error.sum()),
    )
