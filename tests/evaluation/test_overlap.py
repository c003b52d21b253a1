"""Mean IoU, counts of entities and stability of ids: by hand, and recomputed pixel by pixel."""

import inspect
from itertools import permutations

import numpy as np
import pytest

from sat_udpdiff.evaluation.identity import id_stability
from sat_udpdiff.evaluation.overlap import clip_iou, match_entities, mean_iou, overlaps
from tests.evaluation.id_clips import bars, discs, disturbed


def test_equal_ids_under_other_names() -> None:
    truth = bars()
    shared = overlaps(truth, 10 * truth)
    assert mean_iou(shared) == 1
    assert (shared.num_true, shared.num_found, shared.excess) == (4, 4, 0)
    assert shared.found_ids.tolist() == [0, 10, 20, 30, 40]
    assert id_stability(shared) == 1


def test_two_merged_entities() -> None:
    truth = bars()
    found = np.where(truth == 2, 1, truth)
    shared = overlaps(truth, found)
    # One of the two is matched with IoU 1/2, the other with nothing.
    assert mean_iou(shared) == pytest.approx((2 + 0.5) / 4)
    assert shared.excess == -1
    assert id_stability(shared) == 1


def test_a_split_entity() -> None:
    truth = bars()
    found = truth.copy()
    found[:, :3][truth[:, :3] == 1] = 9  # a quarter of its rows
    shared = overlaps(truth, found)
    assert mean_iou(shared) == pytest.approx((3 + 0.75) / 4)
    assert shared.excess == 1
    assert id_stability(shared) == 1


def test_ids_swapped_halfway() -> None:
    truth = bars(frames=6)
    found = truth.copy()
    swap = np.array([0, 2, 1, 3, 4], np.int32)
    found[4:] = swap[truth[4:]]
    shared = overlaps(truth, found)
    # 4 of 6 frames in common, 6 + 6 - 4 in either.
    assert mean_iou(shared) == pytest.approx((2 + 2 * 4 / 8) / 4)
    assert shared.excess == 0
    assert id_stability(shared) == pytest.approx((2 + 2 * 4 / 6) / 4)


def test_an_entity_that_is_not_found_says_nothing_about_ids() -> None:
    truth = bars()
    found = np.where(truth == 1, 0, truth)
    shared = overlaps(truth, found)
    assert mean_iou(shared) == 0.75
    assert shared.excess == -1
    assert id_stability(shared) == 1
    assert id_stability(overlaps(truth, truth * 0)) is None
    assert mean_iou(overlaps(truth, truth * 0)) == 0


def test_frames_in_which_it_is_lost_do_not_count() -> None:
    truth = bars(frames=6, entities=1)
    found = truth.copy()
    found[2] = 0
    found[5] = 8
    assert id_stability(overlaps(truth, found)) == pytest.approx(4 / 5)


@pytest.mark.parametrize("seed", range(4))
def test_equals_all_assignments_tried(seed) -> None:
    rng = np.random.default_rng(seed)
    truth = discs(rng, entities=5)
    found = disturbed(rng, truth)
    shared = overlaps(truth, found)
    true, others = shared.true_ids[1:], shared.found_ids[1:]
    iou = np.array(
        [
            [
                ((truth == a) & (found == b)).sum() / ((truth == a) | (found == b)).sum()
                for b in others
            ]
            for a in true
        ]
    )
    np.testing.assert_allclose(clip_iou(shared), iou, atol=1e-15)
    short, long = sorted(iou.shape)
    table = iou if iou.shape[0] == short else iou.T
    best = max(
        sum(table[row, column] for row, column in enumerate(choice))
        for choice in permutations(range(long), short)
    )
    assert mean_iou(shared) == pytest.approx(best / len(true), abs=1e-12)


def test_nothing_shared_is_no_match() -> None:
    shared = overlaps(np.array([[[1, 0]]]), np.array([[[0, 1]]]))
    assert len(match_entities(shared).rows) == 0


def test_what_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="one shape"):
        # Without the type check of the tests, as users call it.
        inspect.unwrap(overlaps)(bars(frames=2), bars(frames=2)[:, :5])
    with pytest.raises(ValueError, match="ids from 0, got -1"):
        overlaps(bars(), bars() - 2)
    with pytest.raises(ValueError, match="the truth has no entity"):
        mean_iou(overlaps(bars() * 0, bars()))
