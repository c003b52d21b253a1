"""Edges of a dense map against those of its video, and of another video."""

from functools import lru_cache

import numpy as np
import pytest

from data_loaders.synthetic import WorldConfig, make_clip
from sat_udpdiff.evaluation.arrays import ArrayVideo
from sat_udpdiff.evaluation.edge_agreement import (
    EdgeAgreement,
    EdgeSettings,
    edge_precision,
    find_edges,
)
from sat_udpdiff.evaluation.measure import Score, UnusableError
from sat_udpdiff.tiny.clips import paint
from tests.evaluation.loose_video import LooseVideo

SETTINGS = EdgeSettings()


def square(left: int, *, high: int = 200) -> np.ndarray:
    frame = np.zeros((40, 60, 3), np.uint8)
    frame[10:30, left : left + 15] = high
    return frame


def test_edges_of_a_square_are_its_outline() -> None:
    edges = find_edges(square(20), settings=SETTINGS)
    rows, columns = np.nonzero(edges)
    assert 60 <= edges.sum() <= 80  # the outline has 66 pixels
    assert (rows.min(), rows.max()) in {(9, 29), (9, 30), (10, 29), (10, 30)}
    assert 19 <= columns.min() and columns.max() <= 35


def test_weak_steps_and_large_pictures() -> None:
    assert not find_edges(square(20, high=5), settings=SETTINGS).any()
    large = np.repeat(np.repeat(square(20), 12, axis=0), 12, axis=1)
    assert find_edges(large, settings=SETTINGS).shape == (96, 144)


def test_an_edge_of_one_channel_counts() -> None:
    frame = np.full((40, 60, 3), 128, np.uint8)
    frame[10:30, 20:35, 2] = 160
    assert find_edges(frame, settings=SETTINGS).sum() >= 60


def test_precision_by_hand() -> None:
    rgb = np.zeros((1, 5, 7), bool)
    dense = rgb.copy()
    rgb[0, :, 2] = True
    dense[0, :, 3] = True
    dense[0, 0, 6] = True
    assert edge_precision(rgb, dense, tolerance=1) == pytest.approx(5 / 6)
    assert edge_precision(rgb, dense, tolerance=0) == 0
    assert edge_precision(rgb, dense & False, tolerance=1) == 0


@lru_cache
def full_clip(index: int):
    config = WorldConfig(frames=5, height=64, width=96, max_entities=12)
    return make_clip(index, seed=0, config=config)


def clip_video(index: int, *, view, fault=None):
    clip = full_clip(index)
    colours = paint(clip, view=view, generator=np.random.default_rng(index))
    if fault == "mirrored":
        colours = colours[:, :, ::-1].copy()
    return ArrayVideo(name=f"clip {index}", frames=clip.rgb, colours=colours, task=view)


def agreement_of(videos) -> dict[str, Score]:
    measure = EdgeAgreement()
    features = {video.name: measure.features(video) for video in videos}
    return {score.name: score for score in measure.scores(features, references={})}


def scores_of(videos) -> dict[str, float]:
    return {name: score.value for name, score in agreement_of(videos).items()}


@pytest.mark.parametrize("view", ["segmentation", "depth"])
def test_true_maps_lie_far_above_chance_and_others_do_not(view) -> None:
    own = scores_of([clip_video(index, view=view) for index in range(6)])
    wrong = scores_of([clip_video(index, view=view, fault="mirrored") for index in range(6)])
    assert own["edge_agreement"] > (0.9 if view == "segmentation" else 0.65)
    assert own["edge_agreement_above_chance"] > 0.3
    assert abs(wrong["edge_agreement_above_chance"]) < 0.15


def test_the_level_by_chance_is_told_and_not_scored() -> None:
    """No video is good or bad by it."""
    scores = agreement_of([clip_video(index, view="segmentation") for index in range(3)])
    assert list(scores) == ["edge_agreement", "edge_agreement_above_chance"]
    own, above = scores.values()
    chance = own.facts["by_chance"]
    assert isinstance(chance, float) and "by_chance" not in above.facts
    assert above.value == pytest.approx(own.value - chance)


def test_features_are_small_and_do_not_hold_the_video() -> None:
    features = EdgeAgreement().features(clip_video(0, view="depth"))
    assert sum(array.nbytes for array in features.values()) < 5 * 64 * 96 / 8 * 2 + 100


def test_one_video_has_no_chance_level() -> None:
    measure = EdgeAgreement()
    video = clip_video(0, view="depth")
    with pytest.raises(ValueError, match=r"2 or more videos of one size, .* got 1"):
        measure.scores({"a": measure.features(video)}, references={})


def test_videos_of_another_size_are_counted_and_left_out() -> None:
    measure = EdgeAgreement()
    videos = [clip_video(index, view="depth") for index in range(2)]
    small = ArrayVideo(
        name="small", frames=videos[0].frames[:, :32], colours=videos[0].colours[:, :32]
    )
    features = {video.name: measure.features(video) for video in [*videos, small]}
    score = measure.scores(features, references={})[0]
    assert set(score.per_video) == {"clip 0", "clip 1"}
    assert score.facts["alone_of_their_size"] == 1


def test_videos_that_cannot_be_judged() -> None:
    measure, frames = EdgeAgreement(), np.zeros((3, 16, 24, 3), np.uint8)
    with pytest.raises(UnusableError, match="no dense map"):
        measure.features(ArrayVideo(name="a", frames=frames))
    with pytest.raises(UnusableError, match="dense map is 2x16x24, the video 3x16x24"):
        measure.features(LooseVideo(frames=frames, colours=frames[:2]))
    still = ArrayVideo(name="a", frames=frames[:1], colours=frames[:1])
    assert measure.features(still)["shape"].tolist() == [1, 16, 24]
    assert EdgeAgreement(EdgeSettings(tolerance=2)).key != measure.key
