"""First-frame entities without weights."""

import numpy as np
import pytest

from data_loaders.panda_dense.classical_entities import (
    ClassicalSegmenter,
    ClassicalSettings,
    merge_alike,
    segment_picture,
)


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    """A red and a blue square that move over gray, (3, 60, 90, 3)."""
    frames = np.full((3, 60, 90, 3), 128, np.uint8)
    for t, frame in enumerate(frames):
        frame[10:40, 10 + 2 * t : 40 + 2 * t] = (200, 20, 20)
        frame[20:45, 60 - 2 * t : 80 - 2 * t] = (20, 20, 200)
    return frames


def test_entities_by_falling_area(clip: np.ndarray) -> None:
    (found,) = ClassicalSegmenter().segment(clip[:1])
    assert found.ids.max() == 3 and found.scores == (1.0, 1.0, 1.0)
    # The gray, the red, the blue.
    assert [int(found.ids[0, 0]), int(found.ids[20, 20]), int(found.ids[30, 70])] == [1, 2, 3]


def test_each_frame_is_looked_at_by_itself(clip: np.ndarray) -> None:
    segmenter = ClassicalSegmenter()
    for frame, found in zip(clip, segmenter.segment(clip), strict=True):
        assert np.array_equal(found.ids, segmenter.segment(frame[None])[0].ids)


def test_settings_and_facts(clip: np.ndarray) -> None:
    segmenter = ClassicalSegmenter(ClassicalSettings(most_entities=2))
    assert segmenter.segment(clip[:1])[0].scores == (1.0, 1.0)
    assert segmenter.facts.backend == "classical"
    assert segmenter.facts.model == "" and segmenter.facts.license == ""
    assert not segmenter.pieces.shrink()


def test_a_plain_picture_is_one_region() -> None:
    ids = segment_picture(np.full((64, 96, 3), 90, np.uint8), settings=ClassicalSettings())
    assert set(np.unique(ids)) == {1}


def test_large_pictures_are_worked_on_smaller_and_come_back_in_their_size() -> None:
    frame = np.full((480, 720, 3), 60, np.uint8)
    frame[100:300, 200:500] = (220, 40, 40)
    ids = segment_picture(frame, settings=ClassicalSettings())
    assert ids.shape == (480, 720)
    inside = np.zeros(ids.shape, bool)
    inside[100:300, 200:500] = True
    assert ((ids == ids[200, 300]) == inside).mean() > 0.98


def test_neighbours_of_like_colour_are_merged_in_chains() -> None:
    frame = np.zeros((30, 40, 3), np.uint8)
    for i, level in enumerate((100, 108, 116, 200)):  # 8 levels of gray are about 3 in L
        frame[:, 10 * i : 10 * i + 10] = level
    regions = np.repeat(np.arange(1, 5, dtype=np.int32), 10)[None].repeat(30, axis=0)
    merged = merge_alike(regions, frame=frame, distance=9.0)
    assert merged[0, [0, 10, 20]].tolist() == [merged[0, 0]] * 3
    assert merged[0, 30] != merged[0, 0]
    assert len(np.unique(merge_alike(regions, frame=frame, distance=1.0))) == 4
