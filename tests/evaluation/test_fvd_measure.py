"""FVD as a measure: what it says beside the number, and which sets it refuses."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from sat_udpdiff.evaluation.arrays import ArrayVideo
from sat_udpdiff.evaluation.fvd import bootstrap_distance, frechet_distance
from sat_udpdiff.evaluation.fvd_measure import Fvd, FvdSettings
from sat_udpdiff.evaluation.i3d import I3dFeatures
from sat_udpdiff.evaluation.measure import UnusableError

FEW = FvdSettings(min_videos=4, resamples=20)


class Colours:
    """A network in the place of I3D: mean and spread of each colour."""

    key, dim = "colours v1", 6

    def __call__(self, rgb: np.ndarray) -> np.ndarray:
        if len(rgb) < 2:
            raise UnusableError("colours need 2 or more frames, got 1")
        return np.concatenate([rgb.mean((0, 1, 2)), rgb.std((0, 1, 2))])


def video(number: int, *, frames: int = 5, height: int = 8, width: int = 12, fps: float = 8.0):
    rng = np.random.default_rng(number)
    rgb = rng.integers(0, 64, (frames, height, width, 3)) + rng.integers(0, 192, 3)
    return ArrayVideo(name=f"v{number:03d}", frames=rgb.astype(np.uint8), fps=fps)


def features_of(measure: Fvd, videos) -> dict:
    return {one.name: measure.features(one) for one in videos}


@pytest.fixture(scope="module")
def measure() -> Fvd:
    return Fvd(Colours(), protocol="styleganv", settings=FEW)


@pytest.fixture(scope="module")
def sets(measure):
    real = features_of(measure, [video(i) for i in range(100, 130)])
    return features_of(measure, [video(i) for i in range(20)]), real


def test_the_number_comes_with_all_that_it_depends_on(measure, sets):
    (score,) = measure.scores(sets[0], references=sets[1])
    rows, other = (np.stack([one["vector"] for one in each.values()]) for each in sets)
    assert score.value == frechet_distance(rows, references=other, covariance="unbiased")
    spread = bootstrap_distance(rows, references=other, covariance="unbiased", resamples=20)
    assert score.interval == spread.interval
    assert (score.name, score.higher_is_better, dict(score.per_video)) == ("fvd", False, {})
    assert score.facts == {
        "N": 20,
        "N_reference": 30,
        "T": 5,
        "fps": 8.0,
        "resolution": "8x12",
        "protocol": "styleganv",
        "covariance": "unbiased",
        "features": "colours v1",
        "full_rank": True,
        "bootstrap_excess": spread.excess,
    }
    assert measure.compares_with_references


def test_the_protocol_decides_the_covariance(measure, sets):
    biased = Fvd(Colours(), protocol="cdfvd", settings=FEW)
    (score,) = biased.scores(sets[0], references=sets[1])
    rows, other = (np.stack([one["vector"] for one in each.values()]) for each in sets)
    assert score.value == frechet_distance(rows, references=other, covariance="biased")
    own = Fvd(Colours(), protocol=None, settings=FEW, score="fvd_colours")
    (score,) = own.scores(sets[0], references=sets[1])
    assert (score.name, score.facts["protocol"]) == ("fvd_colours", None)
    # Features do not depend on it: sets that were judged once serve every protocol.
    assert own.key == biased.key == measure.key
    assert "colours v1" in own.key


def test_a_set_has_no_distance_from_itself_in_any_order(measure, sets):
    real = sets[1]
    turned = dict(reversed(real.items()))
    (score,) = measure.scores(turned, references=real)
    assert score.value == pytest.approx(0, abs=1e-9)
    low, high = score.interval
    assert low == 0 < high


def test_small_sets_carry_a_warning(measure, sets):
    few = dict(list(sets[0].items())[:6])
    (score,) = measure.scores(few, references=sets[1])
    assert score.facts["full_rank"] is False
    assert score.facts["warning"].startswith("6 videos cannot tell 6 features apart")


def test_too_few_videos_are_an_error(measure, sets):
    few = dict(list(sets[0].items())[:3])
    with pytest.raises(ValueError, match=r"expected 4 or more videos \(fvd.min_videos\), got 3"):
        measure.scores(few, references=sets[1])
    with pytest.raises(ValueError, match=r"expected 4 or more reference videos .*, got 0"):
        measure.scores(sets[0], references={})
    usual = Fvd(Colours(), protocol="styleganv")
    with pytest.raises(ValueError, match="expected 64 or more videos"):
        usual.scores(sets[0], references=sets[1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"frames": 4}, "4 frames of 8x12 at 8 fps"),
        ({"height": 16}, "5 frames of 16x12 at 8 fps"),
        ({"width": 8}, "5 frames of 8x8 at 8 fps"),
        ({"fps": 24000 / 1001}, r"5 frames of 8x12 at 23\.976 fps"),
    ],
)
def test_videos_of_another_form_are_named(measure, sets, change, words):
    odd = {"odd": measure.features(video(7, **change))}
    with pytest.raises(
        ValueError, match=rf"50 are 5 frames of 8x12 at 8 fps, .* not: odd: {words}"
    ):
        measure.scores(sets[0] | odd, references=sets[1])
    with pytest.raises(ValueError, match=f"not: reference odd: {words}"):
        measure.scores(sets[0], references=sets[1] | odd)


def test_two_sets_of_different_length_are_told_in_short(measure, sets):
    real = features_of(measure, [video(i, frames=6) for i in range(100, 130)])
    with pytest.raises(ValueError, match=r"30 are 6 frames .* v004: 5 frames.* and 15 more$"):
        measure.scores(sets[0], references=real)


def test_rates_that_differ_by_rounding_are_one(measure):
    fake = features_of(measure, [video(i, fps=24000 / 1001) for i in range(8)])
    real = features_of(measure, [video(i, fps=23.976) for i in range(20, 28)])
    (score,) = measure.scores(fake, references=real)
    assert score.facts["fps"] == 23.976


def test_features_that_are_no_numbers_are_never_scored(measure, sets):
    class Broken(Colours):
        def __call__(self, rgb):
            return np.full(6, np.nan)

    with pytest.raises(UnusableError, match="not finite"):
        Fvd(Broken(), protocol=None).features(video(0))
    bad = sets[0] | {"v003": sets[0]["v003"] | {"vector": np.full(6, np.inf)}}
    with pytest.raises(ValueError, match=r"expected finite features, got others for v003$"):
        measure.scores(bad, references=sets[1])
    long = sets[1] | {"v101": sets[1]["v101"] | {"vector": np.zeros(7)}}
    with pytest.raises(ValueError, match=r"expected 6 features per video, got others for v101$"):
        measure.scores(sets[0], references=long)


def test_a_network_that_lies_about_its_features_is_named():
    class Longer(Colours):
        dim = 7

    with pytest.raises(ValueError, match=r"colours v1: expected 7 features, got \(6,\)"):
        Fvd(Longer(), protocol=None).features(video(0))


def test_videos_that_the_network_cannot_see_are_unusable(measure):
    with pytest.raises(UnusableError, match="2 or more frames"):
        measure.features(video(0, frames=1))
    i3d = I3dFeatures(lambda x: x.new_zeros(1, 400), protocol="cdfvd", source="zeros")
    with pytest.raises(UnusableError, match="needs 10 or more frames, got 5"):
        Fvd(i3d, protocol="cdfvd").features(video(0))


@pytest.mark.parametrize(("name", "value"), [("min_videos", 1), ("resamples", 1)])
def test_settings_that_cannot_work_are_refused(name, value):
    with pytest.raises(ValueError, match=f"fvd.{name}: expected 2 or more, got 1"):
        replace(FEW, **{name: value})


def test_i3d_is_found_before_anything_runs(tmp_path):
    with pytest.raises(ValueError, match=r"FVD \(cdfvd\): no file .*; get i3d_pretrained_400"):
        Fvd.of_i3d(tmp_path, protocol="cdfvd")


def test_features_depend_on_the_video_alone(measure):
    first, again = (measure.features(video(3)) for _ in range(2))
    digest = lambda one: hashlib.sha256(b"".join(a.tobytes() for a in one.values()))  # noqa: E731
    assert digest(first).digest() == digest(again).digest()
    assert first["vector"].dtype == np.float64
