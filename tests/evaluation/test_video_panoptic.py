"""VPQ: by hand, and against the published program's steps, written here with sets of tubes."""

import numpy as np
import pytest

from sat_udpdiff.evaluation.overlap import overlaps
from sat_udpdiff.evaluation.video_panoptic import WINDOWS, PanopticCounts, panoptic_counts
from tests.evaluation.id_clips import bars, discs, disturbed


def published(truth, found, *, k):
    """Window by window, as eval_vpq.py: one class, no crowds, 0 = void."""
    total = PanopticCounts()
    for start in range(len(truth) - k + 1):
        a, b = truth[start : start + k], found[start : start + k]
        left, unmatched = set(np.unique(a[a > 0])), set(np.unique(b[b > 0]))
        iou = 0.0
        missed = set(left)
        for one in left:
            for other in sorted(unmatched):
                both = ((a == one) & (b == other)).sum()
                void = ((a == 0) & (b == other)).sum()
                share = both / ((a == one).sum() + (b == other).sum() - both - void)
                if share > 0.5:
                    iou += share
                    missed.discard(one)
                    unmatched.discard(other)
        extra = [x for x in unmatched if ((a == 0) & (b == x)).sum() / (b == x).sum() <= 0.5]
        total += PanopticCounts(
            iou=iou, matched=len(left) - len(missed), missed=len(missed), extra=len(extra)
        )
    return total


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_published_steps(seed) -> None:
    rng = np.random.default_rng(seed)
    truth = discs(rng)
    found = disturbed(rng, truth)
    ours = panoptic_counts(overlaps(truth, found))
    assert tuple(ours) == WINDOWS
    for k, counts in ours.items():
        theirs = published(truth, found, k=k)
        assert (counts.matched, counts.missed, counts.extra) == (
            theirs.matched,
            theirs.missed,
            theirs.extra,
        )
        assert counts.iou == pytest.approx(theirs.iou, abs=1e-9)
    assert ours[1].missed and ours[1].matched


def test_swapped_ids_hurt_long_windows_alone() -> None:
    truth = bars(frames=6, entities=2)
    found = truth.copy()
    found[3:] = 3 - truth[3:]
    counts = panoptic_counts(overlaps(truth, found))
    assert counts[1].quality == 1
    # Windows of 5 of 6 frames: 3 frames of one id, 2 of the other, IoU 3 / 7.
    assert counts[5] == PanopticCounts(iou=0.0, matched=0, missed=4, extra=4)
    assert counts[5].quality == 0
    assert set(counts) == {1, 5}


def test_merged_and_split() -> None:
    truth = bars(frames=1, entities=4)
    merged = np.where(truth == 2, 1, truth).astype(np.int32)
    # The merged tube has IoU 1/2 with either, which is not above one half.
    assert panoptic_counts(overlaps(truth, merged))[1] == PanopticCounts(
        iou=2.0, matched=2, missed=2, extra=1
    )
    split = truth.copy()
    split[:, :3][truth[:, :3] == 1] = 9
    assert panoptic_counts(overlaps(truth, split))[1] == PanopticCounts(
        iou=3.75, matched=4, missed=0, extra=1
    )


def test_what_is_found_in_the_void_is_no_error() -> None:
    truth = bars(frames=2, entities=3)
    truth = np.where(truth == 3, 0, truth).astype(np.int32)
    counts = panoptic_counts(overlaps(truth, bars(frames=2, entities=3)))[1]
    assert counts == PanopticCounts(iou=4.0, matched=4, missed=0, extra=0)


def test_no_tubes_have_no_quality() -> None:
    assert np.isnan(PanopticCounts().quality)
