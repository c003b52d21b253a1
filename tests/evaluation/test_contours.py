"""J and F against DAVIS's rule, recomputed here from distances between boundary pixels."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from sat_udpdiff.evaluation.contours import boundary, contour_f, region_and_contour
from sat_udpdiff.evaluation.overlap import match_entities, overlaps
from tests.evaluation.id_clips import bars, discs, disturbed


def boundary_pixels(mask):
    """As published: a pixel that differs from its right, lower or lower right neighbour."""
    height, width = mask.shape
    found = []
    for y in range(height):
        for x in range(width):
            others = [(y, x + 1), (y + 1, x), (y + 1, x + 1)]
            inside = [(a, b) for a, b in others if a < height and b < width]
            if any(mask[a, b] != mask[y, x] for a, b in inside):
                found.append((y, x))
    return np.array(found).reshape(-1, 2)


def published_f(truth, found):
    a, b = boundary_pixels(truth), boundary_pixels(found)
    if not len(a) or not len(b):
        return float(len(a) == len(b))
    near = cdist(a, b) <= np.ceil(0.008 * np.hypot(*truth.shape))
    recall, precision = near.any(1).mean(), near.any(0).mean()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def published_jf(truth, found):
    """Means over frames, then over true entities."""
    shared = overlaps(truth, found)
    match = match_entities(shared)
    partner = dict(zip(match.rows, match.columns, strict=True))
    scores = []
    for row in range(1, shared.num_true + 1):
        mask = truth == shared.true_ids[row]
        other = np.zeros_like(mask)
        if row in partner:
            other = found == shared.found_ids[partner[row]]
        for a, b in zip(mask, other, strict=True):
            region = (a & b).sum() / (a | b).sum() if (a | b).any() else 1.0
            scores.append((region, published_f(a, b)))
    return np.mean(scores, axis=0)


@pytest.mark.parametrize("seed", range(2))
def test_equals_the_published_rule(seed) -> None:
    rng = np.random.default_rng(seed)
    truth = discs(rng)[::4]
    found = disturbed(rng, truth)
    shared = overlaps(truth, found)
    ours = region_and_contour(truth, found, shared=shared, match=match_entities(shared))
    assert (ours.region, ours.contour) == pytest.approx(
        tuple(published_jf(truth, found)), abs=1e-12
    )
    assert 0.1 < ours.mean < 0.9


def test_boundary_of_a_square() -> None:
    mask = np.zeros((6, 6), bool)
    mask[2:4, 2:4] = True
    expected = {(1, 1), (1, 2), (1, 3), (2, 1), (3, 1), (2, 3), (3, 2), (3, 3)}
    assert {tuple(map(int, at)) for at in np.argwhere(boundary(mask))} == expected
    assert not boundary(np.ones((4, 4), bool)).any()


def test_boundaries_within_the_bound() -> None:
    truth = np.zeros((100, 150), bool)  # a diagonal of 180: 2 pixels
    truth[30:60, 40:80] = True
    assert contour_f(truth, np.roll(truth, 2, axis=1)) == 1
    assert contour_f(truth, np.roll(truth, 3, axis=1)) < 0.7
    assert contour_f(truth, np.zeros_like(truth)) == 0
    assert contour_f(truth & False, truth & False) == 1


def test_what_is_not_found_scores_only_where_it_is_absent() -> None:
    truth = bars(frames=4, entities=2)
    truth = np.where((truth == 2) & (np.arange(4) == 0)[:, None, None], 0, truth).astype(np.int32)
    found = np.where(truth == 2, 0, truth)
    shared = overlaps(truth, found)
    ours = region_and_contour(truth, found, shared=shared, match=match_entities(shared))
    assert ours.region == pytest.approx((1 + 1 / 4) / 2)
    assert ours.contour == pytest.approx((1 + 1 / 4) / 2)
