import numpy as np
import pytest

from sat_udpdiff.evaluation.measure import UnusableError
from sat_udpdiff.evaluation.vbench import (
    consistency_terms,
    frame_difference,
    motion_smoothness,
    pooled_interval,
    pooled_mean,
)


def test_terms_by_hand():
    # Angles to the first: 0, 60, 180 degrees; lengths do not matter.
    features = np.array([[2.0, 0.0], [0.5, np.sqrt(0.75)], [-3.0, 0.0]])
    # Second: (.5 + .5) / 2. Third: cos 120 to the previous and cos 180 to the first, both cut at 0.
    np.testing.assert_allclose(consistency_terms(features), [0.5, 0.0], atol=1e-12)


def test_each_likeness_is_cut_at_zero_by_itself():
    # Opposite to the first, equal to the previous: (1 + 0) / 2 and not (1 - 1) / 2.
    features = np.array([[1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]])
    np.testing.assert_allclose(consistency_terms(features), [0.0, 0.5])


def test_equal_frames_are_wholly_consistent():
    features = np.tile(np.random.default_rng(0).standard_normal(16).astype(np.float32), (5, 1))
    np.testing.assert_allclose(consistency_terms(features), np.ones(4), atol=1e-6)


def test_one_frame_and_numbers_that_are_none_are_refused():
    with pytest.raises(UnusableError, match="expected 2 or more frames, got 1"):
        consistency_terms(np.ones((1, 4)))
    features = np.ones((5, 4), dtype=np.float32)
    features[1, 2], features[3, 0] = np.nan, np.inf
    with pytest.raises(UnusableError, match="features of 2 of 5 frames are not finite"):
        consistency_terms(features)


def test_a_set_is_pooled_over_frames():
    terms = [np.array([1.0]), np.array([0.5, 0.5, 0.5])]
    assert pooled_mean(terms) == pytest.approx(0.625)  # the mean of both videos would be .75


def test_the_interval_is_over_videos():
    rng = np.random.default_rng(0)
    # Frames of a video alike, videos not: 20 draws, though there are 960 frames.
    terms = [np.full(48, value) for value in rng.uniform(0.8, 1.0, 20)]
    low, high = pooled_interval(terms)
    assert low < pooled_mean(terms) < high
    spread = np.std([video.mean() for video in terms]) / np.sqrt(20)
    assert high - low == pytest.approx(2 * 1.96 * spread, rel=0.15)
    assert pooled_interval(terms[:1]) is None
    assert pooled_interval(terms) == (low, high)


def test_smoothness_by_hand():
    black = np.zeros((4, 6, 3), dtype=np.uint8)
    other = black.copy()
    other[0, :, :] = 255  # a quarter of the values
    assert frame_difference(black, other) == frame_difference(other, black) == 63.75
    assert motion_smoothness(np.array([63.75, 0.0])) == pytest.approx(1 - 0.125)
