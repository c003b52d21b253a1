"""Dense maps of the synthetic world with known faults, and videos that cannot be judged."""

import inspect

import numpy as np
import pytest

from data_loaders.synthetic import WorldConfig, make_clip
from sat_udpdiff.colormaps import depth as colormap
from sat_udpdiff.evaluation.arrays import ArrayVideo
from sat_udpdiff.evaluation.depth import depth_errors
from sat_udpdiff.evaluation.measure import UnusableError
from sat_udpdiff.evaluation.pseudo_truth import StoredTruth
from sat_udpdiff.evaluation.truth_measures import (
    DepthAgainstTruth,
    DepthComparison,
    SegmentationAgainstTruth,
)
from tests.evaluation.id_clips import bars
from tests.evaluation.loose_video import LooseVideo

WORLD = WorldConfig(frames=5, height=48, width=72, max_entities=8)


def true_video(index: int) -> ArrayVideo:
    clip = make_clip(index, seed=3, config=WORLD)
    assert clip.depth is not None and clip.entity_ids is not None
    return ArrayVideo(
        name=f"clip {index}",
        frames=clip.rgb,
        ids=clip.entity_ids.astype(np.int32),
        disparity=clip.depth.astype(np.float32) / np.float32(65535),
    )


VIDEOS = [true_video(index) for index in range(4)]
TRUTH = StoredTruth(VIDEOS)


def guessed(video: ArrayVideo, *, depth=None, ids=None) -> LooseVideo:
    return LooseVideo(name=video.name, frames=video.frames, disparity=depth, ids=ids)


def scores_of(measure, videos) -> dict:
    features = {video.name: measure.features(video) for video in videos}
    return {score.name: score for score in measure.scores(features, references={})}


def test_true_depth_and_ids_are_without_fault() -> None:
    depth = scores_of(DepthAgainstTruth(TRUTH, align=("none", "median", "lstsq")), VIDEOS)
    assert set(depth) == {
        f"depth_{kind}{ending}"
        for kind in ("delta1", "rmse")
        for ending in ("", "_median", "_lstsq")
    }
    assert depth["depth_delta1"].value == 1 and depth["depth_rmse"].value == 0
    assert depth["depth_rmse_lstsq"].value == pytest.approx(0, abs=2e-3)  # clamped before the fit
    ids = scores_of(SegmentationAgainstTruth(TRUTH), VIDEOS)
    assert ids.pop("entity_count_error").value == 0
    assert set(ids) == {
        *(f"segmentation_{kind}" for kind in ("ari", "miou", "jf", "vpq")),
        "id_stability",
    }
    assert [score.value for score in ids.values()] == [pytest.approx(1)] * 5
    assert ids["segmentation_ari"].facts["num_videos"] == 4


@pytest.mark.parametrize("shift", [0.05, 0.2])
def test_a_known_shift_of_depth(shift) -> None:
    videos = [guessed(v, depth=v.disparity + np.float32(shift)) for v in VIDEOS]
    scores = scores_of(DepthAgainstTruth(TRUTH, align=("none", "lstsq")), videos)
    assert scores["depth_rmse"].value == pytest.approx(shift, rel=2e-2)
    expected = [
        np.mean(
            [
                (np.maximum(frame, 1e-3) + shift) / np.maximum(frame, 1e-3) < 1.25
                for frame in v.disparity
            ]
        )
        for v in VIDEOS
    ]
    assert scores["depth_delta1"].value == pytest.approx(np.mean(expected), abs=2e-3)
    assert scores["depth_rmse_lstsq"].value < 2e-3


def test_known_noise_of_depth() -> None:
    rng = np.random.default_rng(0)
    videos = []
    for video in VIDEOS:
        noise = rng.normal(0, 0.05, video.disparity.shape).astype(np.float32)
        # Away from the ends, where the clamp would take a part of the noise.
        videos.append(guessed(video, depth=video.disparity + 1 + noise))
    raised = StoredTruth(
        [ArrayVideo(name=v.name, frames=v.frames, disparity=v.disparity + 1) for v in VIDEOS]
    )
    scores = scores_of(DepthAgainstTruth(raised), videos)
    assert scores["depth_rmse"].value == pytest.approx(0.05, rel=0.01)


def test_inverted_depth_is_far_off() -> None:
    videos = [guessed(v, depth=1 - v.disparity) for v in VIDEOS]
    scores = scores_of(DepthAgainstTruth(TRUTH), videos)
    assert scores["depth_delta1"].value < 0.35 and scores["depth_rmse"].value > 0.4
    assert scores["depth_rmse"].per_video["clip 2"] == pytest.approx(
        depth_errors(VIDEOS[2].disparity, 1 - VIDEOS[2].disparity).rmse
    )


def test_a_painted_sky_is_right_only_where_it_is_not_scored() -> None:
    videos = [guessed(v, depth=colormap.decode(colormap.encode(v.disparity))) for v in VIDEOS]
    every = scores_of(DepthAgainstTruth(TRUTH), videos)["depth_delta1"]
    assert every.value == pytest.approx(1 - every.facts["truth_below_0.001"], abs=0.03)
    measure = DepthAgainstTruth(TRUTH, scored="above_least")
    assert scores_of(measure, videos)["depth_delta1"].value > 0.97
    assert measure.key != DepthAgainstTruth(TRUTH).key


class Halved:
    """Another model: half of the true depth."""

    name = key = "halved"

    def depth(self, rgb):
        return TRUTH.depth(rgb) / 2


def test_the_comparison_judges_the_other_model_and_not_the_video() -> None:
    bare = [guessed(video) for video in VIDEOS]
    measure = DepthComparison(TRUTH, other=Halved(), align=("none", "median"), scored="above_least")
    scores = scores_of(measure, bare)
    assert scores["depth_comparison_delta1"].value < 0.01
    assert scores["depth_comparison_delta1"].facts["model"] == "halved"
    assert scores["depth_comparison_delta1"].facts["truth"] == "stored with the videos"
    assert scores["depth_comparison_delta1_median"].value > 0.99
    assert measure.key != DepthAgainstTruth(TRUTH, align=("none", "median")).key


def small(ids, *, found=None) -> ArrayVideo:
    """A video of a few ids, whose frames are told apart by their number of entities."""
    frames = np.repeat(ids[..., None].astype(np.uint8), 3, axis=-1)
    return ArrayVideo(name="bars", frames=frames, ids=ids if found is None else found)


def test_merged_split_and_swapped_ids() -> None:
    truth = bars(frames=6, entities=4)
    measure = SegmentationAgainstTruth(StoredTruth([small(truth)]))
    merged = np.where(truth == 2, 1, truth).astype(np.int32)
    scores = scores_of(measure, [small(truth, found=merged)])
    assert scores["segmentation_miou"].value == pytest.approx(2.5 / 4)
    assert scores["entity_count_error"].value == 1
    assert scores["entity_count_error"].facts["found_minus_true"] == -1
    assert scores["segmentation_vpq"].value == pytest.approx(2 / (2 + 2 / 2 + 1 / 2))
    split = truth.copy()
    split[:, :3][truth[:, :3] == 1] = 9
    scores = scores_of(measure, [small(truth, found=split)])
    assert scores["entity_count_error"].facts["found_minus_true"] == 1
    assert scores["segmentation_miou"].value == pytest.approx(3.75 / 4)
    assert scores["segmentation_vpq"].value == pytest.approx(3.75 / (4 + 1 / 2))
    swapped = truth.copy()
    swapped[3:] = np.array([0, 2, 1, 3, 4], np.int32)[truth[3:]]
    scores = scores_of(measure, [small(truth, found=swapped)])
    assert scores["id_stability"].value == pytest.approx((2 + 2 / 2) / 4)
    assert scores["segmentation_vpq"].facts["vpq_1"] == 1
    assert scores["segmentation_vpq"].facts["vpq_5"] == pytest.approx(0.5)
    assert scores["segmentation_vpq"].value == pytest.approx(0.75)


def test_vpq_sums_counts_over_videos() -> None:
    one, many = bars(frames=2, entities=1), bars(frames=2, entities=9)
    videos = [small(one, found=one * 0), small(many)]
    videos[0] = ArrayVideo(name="one", frames=videos[0].frames, ids=videos[0].ids)
    measure = SegmentationAgainstTruth(StoredTruth([small(one), small(many)]))
    score = scores_of(measure, videos)["segmentation_vpq"]
    assert score.value == pytest.approx(9 / 9.5)
    assert score.per_video == {"one": 0, "bars": 1}
    assert score.interval is not None and score.interval[0] == 0 and score.interval[1] == 1


def test_where_nothing_is_found_twice_there_is_no_stability() -> None:
    truth = bars(frames=3)
    measure = SegmentationAgainstTruth(StoredTruth([small(truth)]))
    scores = scores_of(measure, [small(truth, found=truth * 0)])
    assert "id_stability" not in scores
    assert scores["segmentation_miou"].facts["without_id_stability"] == 1
    assert scores["segmentation_miou"].value == 0


def test_histograms_for_the_report() -> None:
    videos = [guessed(v, depth=np.minimum(v.disparity, 0.8) + np.float32(0.11)) for v in VIDEOS]
    measure = DepthAgainstTruth(TRUTH)
    of_videos = {v.name: measure.features(v) for v in videos}
    # Each is read by the scores or the histogram.
    assert set(next(iter(of_videos.values()))) == {
        "error_histogram", "share_below_least", "delta1_none", "rmse_none",
        "num_frames", "num_dropped",
    }  # fmt: skip
    (histogram,) = measure.histograms(of_videos, references={})
    shares = np.array(histogram.shares[""])
    assert histogram.name == "depth_error" and len(histogram.edges) == len(shares) + 1
    assert shares.sum() == pytest.approx(1)
    most = shares.argmax()
    assert histogram.edges[most] <= 0.11 < histogram.edges[most + 1]
    ids = SegmentationAgainstTruth(StoredTruth([small(bars(entities=2)), small(bars(entities=5))]))
    found = {
        "a": ids.features(small(bars(entities=2))),
        "b": ids.features(small(bars(entities=5), found=np.minimum(bars(entities=5), 2))),
    }
    (counts,) = ids.histograms(found, references={})
    assert counts.edges == (-0.5, 0.5, 1.5, 2.5, 3.5, 4.5, 5.5)
    assert counts.shares == {"true": (0, 0, 0.5, 0, 0, 0.5), "found": (0, 0, 1, 0, 0, 0)}


def test_depth_that_cannot_be_judged() -> None:
    measure, video = DepthAgainstTruth(TRUTH), VIDEOS[0]
    with pytest.raises(UnusableError, match="no depth"):
        measure.features(guessed(video))
    with pytest.raises(UnusableError, match="the depth is 4x48x72, the video 5x48x72"):
        measure.features(guessed(video, depth=video.disparity[:4]))
    with pytest.raises(UnusableError, match="the depth is 5x24x72, the video 5x48x72"):
        measure.features(guessed(video, depth=video.disparity[:, ::2]))
    broken = video.disparity.copy()
    broken[1, 2, 3:5] = np.nan
    with pytest.raises(UnusableError, match="2 of 17280 values of the depth are not finite"):
        measure.features(guessed(video, depth=broken))
    other = ArrayVideo(name="other", frames=video.frames[::-1], disparity=video.disparity)
    with pytest.raises(UnusableError, match="no truth is stored for these frames"):
        measure.features(other)
    with pytest.raises(
        ValueError, match=r"depth_scores\.align: expected some of none, median, lstsq"
    ):
        DepthAgainstTruth(TRUTH, align=())
    with pytest.raises(ValueError, match="expected all or above_least, got 'some'"):
        inspect.unwrap(DepthAgainstTruth.__init__)(measure, TRUTH, scored="some")


class Cut:
    """A truth of too few frames."""

    name = key = "cut"

    def depth(self, rgb):
        return TRUTH.depth(rgb)[:3]

    def entities(self, rgb):
        return TRUTH.entities(rgb)[:3]


class Unknown:
    """A truth that is nowhere finite."""

    name = key = "unknown"

    def depth(self, rgb):
        return TRUTH.depth(rgb) * np.float32(np.nan)


def test_a_truth_of_another_length_or_without_values() -> None:
    video, cut = VIDEOS[0], Cut()
    with pytest.raises(UnusableError, match="no value of the true depth can be scored"):
        DepthAgainstTruth(Unknown()).features(video)
    with pytest.raises(UnusableError, match="the depth is 5x48x72, the truth 3x48x72"):
        DepthAgainstTruth(cut).features(video)
    with pytest.raises(UnusableError, match="the entity map is 5x48x72, the truth 3x48x72"):
        SegmentationAgainstTruth(cut).features(video)
    bare = StoredTruth([guessed(video)])
    with pytest.raises(UnusableError, match="no true depth is stored"):
        DepthAgainstTruth(bare).features(video)
    with pytest.raises(UnusableError, match="no true entities are stored"):
        SegmentationAgainstTruth(bare).features(video)


def test_a_still_picture_has_depth_but_no_ids_over_time() -> None:
    video = VIDEOS[0]
    still = ArrayVideo(
        name="still", frames=video.frames[:1], disparity=video.disparity[:1], ids=video.ids[:1]
    )
    truth = StoredTruth([still])
    assert DepthAgainstTruth(truth).features(still)["num_frames"] == 1
    with pytest.raises(UnusableError, match="one frame: ids over time need 2 or more"):
        SegmentationAgainstTruth(truth).features(still)


def test_ids_that_cannot_be_judged() -> None:
    measure, video = SegmentationAgainstTruth(TRUTH), VIDEOS[0]
    with pytest.raises(UnusableError, match="no entity ids"):
        measure.features(guessed(video))
    with pytest.raises(UnusableError, match="the entity map is 3x48x72, the video 5x48x72"):
        measure.features(guessed(video, ids=video.ids[:3]))
    empty = StoredTruth([guessed(video, ids=video.ids * 0)])
    with pytest.raises(UnusableError, match="the truth has no entity"):
        SegmentationAgainstTruth(empty).features(video)


def test_a_set_of_nothing_has_no_score() -> None:
    with pytest.raises(ValueError, match="depth_delta1: no video could be judged"):
        DepthAgainstTruth(TRUTH).scores({}, references={})
    with pytest.raises(ValueError, match="segmentation_ari: no video could be judged"):
        SegmentationAgainstTruth(TRUTH).scores({}, references={})
