"""J and F of DAVIS: region and boundary of each true entity against what is matched to it.

github.com/davisvideochallenge/davis2017-evaluation, davis2017/metrics.py, with its bound of .008
of the diagonal. DAVIS's own unsupervised task matches by J&F of every pair; here entities are
matched once, over the whole clip, by `overlap.match_entities`, which costs a fraction. All frames
count, the first and the last too.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Int
from skimage.morphology import disk

from sat_udpdiff.evaluation.overlap import Match, Overlaps

BOUND = 0.008
"""Boundaries match within this share of the picture's diagonal, rounded up to pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RegionAndContour:
    """Means over the frames of an entity, then over the true entities."""

    region: float
    """J, 0..1: intersection over union; 1 in frames in which both are absent."""
    contour: float
    """F, 0..1: harmonic mean of the boundary's precision and recall."""

    @property
    def mean(self) -> float:
        """J&F."""
        return (self.region + self.contour) / 2


def region_and_contour(
    truth: Int[np.ndarray, "t h w"],
    found: Int[np.ndarray, "t h w"],
    *,
    shared: Overlaps,
    match: Match,
) -> RegionAndContour:
    """J and F of a clip. True entities without a match are compared with nothing.

    Args:
        truth: Entity of each pixel; 0 = unlabelled.
        found: Likewise.
        shared: `overlaps` of the two.
        match: Which goes with which.

    Raises:
        ValueError: The truth has no entity.
    """
    if not shared.num_true:
        raise ValueError("the truth has no entity")
    partner = dict(zip(match.rows.tolist(), match.columns.tolist(), strict=True))
    regions, contours = [], []
    for row in range(1, shared.num_true + 1):
        column = partner.get(row)
        regions.append(_region(shared, row=row, column=column))
        # Ids are never below 0: -1 is nowhere.
        found_id = -1 if column is None else int(shared.found_ids[column])
        true_id = int(shared.true_ids[row])
        frames = zip(truth, found, strict=True)
        contours.append(np.mean([contour_f(t == true_id, f == found_id) for t, f in frames]))
    return RegionAndContour(region=float(np.mean(regions)), contour=float(np.mean(contours)))


def _region(shared: Overlaps, *, row: int, column: int | None) -> float:
    area = shared.counts[:, row].sum(axis=-1)
    if column is None:
        return float((area == 0).mean())
    both = shared.counts[:, row, column]
    union = area + shared.counts[:, :, column].sum(axis=-1) - both
    return float(np.where(union > 0, both / np.maximum(union, 1), 1.0).mean())


def contour_f(truth: Bool[np.ndarray, "h w"], found: Bool[np.ndarray, "h w"]) -> float:
    """F of the boundaries of two masks, 0..1; 1 where both are empty, 0 where one is."""
    of_truth, of_found = boundary(truth), boundary(found)
    if not of_truth.any() or not of_found.any():
        return float(of_truth.any() == of_found.any())
    radius = int(np.ceil(BOUND * np.hypot(*truth.shape)))
    box = _box(of_truth | of_found, margin=radius)
    of_truth, of_found = of_truth[box], of_found[box]
    precision = (of_found & _near(of_truth, radius=radius)).sum() / of_found.sum()
    recall = (of_truth & _near(of_found, radius=radius)).sum() / of_truth.sum()
    return float(2 * precision * recall / max(precision + recall, 1e-12))


def boundary(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Pixels that differ from the right, the lower or the lower right neighbour.

    As DAVIS's `_seg2bmap`: half a pixel towards the origin, and nothing at the picture's rim.
    """
    edge = np.zeros_like(mask)
    edge[:, :-1] |= mask[:, :-1] ^ mask[:, 1:]
    edge[:-1] |= mask[:-1] ^ mask[1:]
    edge[:-1, :-1] |= mask[:-1, :-1] ^ mask[1:, 1:]
    return edge


def _box(mask: Bool[np.ndarray, "h w"], *, margin: int) -> tuple[slice, slice]:
    """Around what is set: the rest of a large picture need not be dilated."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return (
        slice(max(0, rows[0] - margin), rows[-1] + margin + 1),
        slice(max(0, columns[0] - margin), columns[-1] + margin + 1),
    )


def _near(edge: Bool[np.ndarray, "h w"], *, radius: int) -> Bool[np.ndarray, "h w"]:
    return cv2.dilate(edge.astype(np.uint8), np.asarray(disk(radius), np.uint8)) > 0
