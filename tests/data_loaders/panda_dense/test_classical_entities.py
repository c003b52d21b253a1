"""First-frame entities without weights."""

import numpy as np
import pytest

from data_loaders.classical_segmentation import ClassicalSettings, segment_clip
from data_loaders.panda_dense.classical_entities import ClassicalSegmenter


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    """A red and a blue square that move over gray, (3, 60, 90, 3)."""
    frames = np.full((3, 60, 90, 3), 128, np.uint8)
    for t, frame in enumerate(frames):
        frame[10:40, 10 + 2 * t : 40 + 2 * t] = (200, 20, 20)
        frame[20:45, 60 - 2 * t : 80 - 2 * t] = (20, 20, 200)
    return frames


def test_entities_are_those_of_the_first_frame_of_the_clip(clip: np.ndarray) -> None:
    (found,) = ClassicalSegmenter().segment(clip[:1])
    assert np.array_equal(found.ids, segment_clip(clip)[0])
    assert found.ids.max() == 3 and found.scores == (1.0, 1.0, 1.0)
    # By falling area: the gray, the red, the blue.
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
    assert not segmenter.shrink()
