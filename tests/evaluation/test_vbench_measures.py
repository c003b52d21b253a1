import numpy as np
import pytest

from sat_udpdiff.evaluation.arrays import ArrayVideo
from sat_udpdiff.evaluation.measure import UnusableError
from sat_udpdiff.evaluation.motion_smoothness import FlowMidFrames
from sat_udpdiff.evaluation.vbench_measures import (
    BackgroundConsistency,
    MotionSmoothness,
    SubjectConsistency,
)


class Corner:
    """The first pixel as a feature."""

    digest = "corner"

    def __init__(self):
        self.calls = 0

    def __call__(self, frames):
        self.calls += 1
        with np.errstate(invalid="ignore", divide="ignore"):
            values = frames[:, 0, 0].astype(np.float32)
            return values / (values.max() > 0)


class Half:
    """Foretells black."""

    backend, digest = "amt", "half"

    def require_size(self, *, height, width):
        pass

    def __call__(self, before, after):
        return np.zeros_like(before)


def video(name, *colours, height=16, width=16):
    frames = np.zeros((len(colours), height, width, 3), dtype=np.uint8)
    frames[:] = np.array(colours, dtype=np.uint8)[:, None, None]
    return ArrayVideo(name=name, frames=frames)


RED, GREEN = (200, 0, 0), (0, 200, 0)


@pytest.mark.parametrize("kind", [SubjectConsistency, BackgroundConsistency])
def test_consistency_of_a_set(kind):
    measure = kind(Corner())
    videos = [video("still", RED, RED), video("changing", RED, GREEN, GREEN, RED)]
    features = {v.name: measure.features(v) for v in videos}
    np.testing.assert_allclose(features["changing"]["terms"], [0.0, 0.5, 0.5])
    (score,) = measure.scores(features, references={})
    assert score.name == measure.name and score.higher_is_better
    assert score.per_video == {"still": 1.0, "changing": pytest.approx(1 / 3)}
    assert score.value == pytest.approx(0.5)  # over frames; over videos it would be 2/3
    assert score.interval is not None and score.interval[0] <= 0.5 <= score.interval[1]
    assert score.facts["videos"] == 2 and score.facts["frames"] == "2-4"
    assert score.facts["weights"] == "corner" and score.facts["comparable"] is True
    assert score.counts == {"still": 1, "changing": 3}
    assert all(array.nbytes < 100 for of in features.values() for array in of.values())


def test_keys_tell_measures_and_weights_apart():
    other = Corner()
    other.digest = "other"
    keys = {
        SubjectConsistency(Corner()).key,
        SubjectConsistency(other).key,
        BackgroundConsistency(Corner()).key,
        MotionSmoothness(Half()).key,
        MotionSmoothness(FlowMidFrames()).key,
    }
    assert len(keys) == 5


def test_one_frame_is_refused_before_the_network_runs():
    corner = Corner()
    with pytest.raises(UnusableError, match="expected 2 or more frames, got 1"):
        SubjectConsistency(corner).features(video("x", RED))
    assert corner.calls == 0


def test_features_that_are_no_numbers_are_refused():
    # VBench would take them for likeness 0 and say nothing.
    with pytest.raises(UnusableError, match="features of 3 of 3 frames are not finite"):
        SubjectConsistency(Corner()).features(video("black", *[(0, 0, 0)] * 3))


def test_motion_smoothness_of_a_set():
    measure = MotionSmoothness(Half())
    videos = [video("a", *[(51, 51, 51)] * 3), video("b", *[(102, 102, 102)] * 5)]
    features = {v.name: measure.features(v) for v in videos}
    (score,) = measure.scores(features, references={})
    assert score.name == "motion_smoothness"
    assert score.per_video == {"a": pytest.approx(0.8), "b": pytest.approx(0.6)}
    assert score.value == pytest.approx(0.7)  # over videos, not over frames
    assert score.facts["backend"] == "amt" and score.facts["comparable"] is True


def test_the_flow_has_a_name_of_its_own_and_says_that_it_does_not_compare():
    measure = MotionSmoothness(FlowMidFrames())
    features = {"x": measure.features(video("x", RED, RED, RED))}
    (score,) = measure.scores(features, references={})
    assert score.name == measure.name == "motion_smoothness_flow"
    assert score.value == 1.0 and score.interval is None
    assert score.facts["comparable"] is False and score.facts["backend"] == "flow"
    assert score.facts["frames"] == 3


@pytest.mark.parametrize("measure", [SubjectConsistency(Corner()), MotionSmoothness(Half())])
def test_a_set_without_videos_has_no_score(measure):
    with pytest.raises(ValueError, match="no video could be judged"):
        measure.scores({}, references={})
