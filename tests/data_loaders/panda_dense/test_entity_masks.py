"""Soft masks to entities: painted by hand."""

import math

import numpy as np
import pytest

from data_loaders.panda_dense.entity_masks import can_be_kept, paint_entities


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def masks(*pictures: str, inside: float = 0.9) -> np.ndarray:
    """Pictures of '#' and '.', rows divided by blanks, as probabilities."""
    rows = [[list(row) for row in picture.split()] for picture in pictures]
    return np.where(np.array(rows) == "#", inside, 0.1).astype(np.float32)


def scores(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_the_surer_lies_on_top_and_comes_first() -> None:
    found = paint_entities(
        scores(0.8, 0.9), masks("##.. ##..", ".##. .##."), min_score=0.0, min_area=0.0
    )
    assert found.ids.dtype == np.uint16
    assert found.ids.tolist() == [[2, 1, 1, 0], [2, 1, 1, 0]]
    assert found.scores == pytest.approx([0.9 * sigmoid(0.9), 0.8 * sigmoid(0.9)], abs=1e-5)


def test_the_score_is_the_class_score_times_the_mean_over_what_is_left() -> None:
    soft = masks("####")
    soft[0, 0] = [0.6, 0.8, 1.0, 0.2]
    found = paint_entities(scores(0.5), soft, min_score=0.0)
    mean = (sigmoid(0.6) + sigmoid(0.8) + sigmoid(1.0)) / 3
    assert found.ids.tolist() == [[1, 1, 1, 0]]
    assert found.scores == pytest.approx([0.5 * mean], abs=1e-6)


def test_ids_go_by_the_final_score_and_not_by_the_order_of_painting() -> None:
    # The first is painted over the second, but is less sure of its pixels.
    soft = np.concatenate([masks("##..", inside=0.51), masks(".###", inside=1.0)])
    found = paint_entities(scores(0.90, 0.85), soft, min_score=0.0)
    assert found.ids.tolist() == [[2, 2, 1, 1]]
    assert found.scores[0] == pytest.approx(0.85 * sigmoid(1.0), abs=1e-5)


def test_of_equals_the_earlier_query_lies_on_top_and_comes_first() -> None:
    found = paint_entities(scores(0.9, 0.9, 0.9), masks("##...", ".##..", "..##."), min_score=0.0)
    assert found.ids.tolist() == [[1, 1, 2, 3, 0]]


def test_an_entity_under_others_is_removed() -> None:
    found = paint_entities(
        scores(0.9, 0.5, 0.8), masks("##..", ".##.", "..##"), min_score=0.0, min_area=0.0
    )
    assert found.ids.tolist() == [[1, 1, 2, 2]]
    assert len(found.scores) == 2


def test_what_a_dropped_entity_covered_stays_unlabelled() -> None:
    # 0.69 * sigmoid(0.9) = 0.49: too low for the demo's threshold, and on top all the same.
    found = paint_entities(scores(0.69, 0.68, 0.9), masks("##...", "###..", "...##"), min_score=0.5)
    assert found.ids.tolist() == [[0, 0, 0, 1, 1]]


def test_the_threshold_takes_what_just_reaches_it() -> None:
    score = paint_entities(scores(0.7), masks("#"), min_score=0.0).scores[0]
    assert len(paint_entities(scores(0.7), masks("#"), min_score=score).scores) == 1
    assert not paint_entities(scores(0.7), masks("#"), min_score=np.nextafter(score, 1)).scores


def test_small_entities_are_dropped_by_their_share_of_the_picture() -> None:
    soft = masks("###.#", "....#")
    assert paint_entities(scores(0.9, 0.8), soft, min_score=0.0, min_area=0.4).ids.max() == 1
    pictures = masks("##........", "..###.....")
    found = paint_entities(scores(0.9, 0.8), pictures, min_score=0.0, min_area=0.25)
    assert found.ids.tolist() == [[0, 0, 1, 1, 1, 0, 0, 0, 0, 0]]
    assert found.scores == pytest.approx([0.8 * sigmoid(0.9)], abs=1e-5)


def test_no_more_than_most_are_kept_the_surest_first() -> None:
    soft = masks("#...", ".#..", "..#.", "...#")
    found = paint_entities(scores(0.6, 0.9, 0.7, 0.8), soft, min_score=0.0, most=2)
    assert found.ids.tolist() == [[0, 1, 0, 2]]


@pytest.mark.parametrize("queries", [0, 3])
def test_nothing_found_is_an_empty_picture(queries: int) -> None:
    soft = np.full((queries, 4, 6), 0.5, np.float32)  # 0.5 is not inside
    found = paint_entities(np.full(queries, 0.9, np.float32), soft, min_score=0.0)
    assert found.ids.shape == (4, 6) and not found.ids.any() and found.scores == ()


def test_two_hundred_entities_and_more_have_ids_of_their_own() -> None:
    count = 300
    soft = np.zeros((count, 1, count), np.float32)
    soft[np.arange(count), 0, np.arange(count)] = 0.9
    values = np.linspace(0.5, 0.9, count, dtype=np.float32)
    found = paint_entities(values, soft, min_score=0.0)
    assert found.ids[0].tolist() == list(range(count, 0, -1))
    assert list(found.scores) == sorted(found.scores, reverse=True)


def test_too_many_masks_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 65535 masks, got 65536"):
        paint_entities(
            np.zeros(65536, np.float32), np.zeros((65536, 1, 1), np.float32), min_score=0.0
        )


def test_queries_that_cannot_be_kept_change_nothing() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        values = rng.uniform(0.4, 1, 30).astype(np.float32)
        soft = rng.uniform(0, 1, (30, 6, 8)).astype(np.float32)
        chosen = can_be_kept(values, min_score=0.5)
        assert 0 < chosen.sum() < 30
        whole = paint_entities(values, soft, min_score=0.5)
        part = paint_entities(values[chosen], soft[chosen], min_score=0.5)
        assert np.array_equal(whole.ids, part.ids) and whole.scores == part.scores


def test_a_query_at_the_bound_can_be_kept() -> None:
    # All of its pixels at probability 1: the highest score that it can have.
    sure = paint_entities(scores(0.75), masks("#", inside=1.0), min_score=0.0).scores[0]
    assert can_be_kept(scores(0.75), min_score=sure).all()
    assert not can_be_kept(scores(0.75), min_score=sure * 1.0001).any()
    assert can_be_kept(scores(0.0), min_score=0.0).all()
