"""Measures without weights: on the labelled world, where the answer is known."""

import numpy as np
import pytest

from sat_udpdiff.evaluation import agreement
from sat_udpdiff.evaluation.arrays import ArrayVideo
from sat_udpdiff.evaluation.entity_counts import EntityCounts
from sat_udpdiff.evaluation.measure import Measure, Score, UnusableError
from sat_udpdiff.evaluation.pixel_measures import FrameConsistency, MapAgreement
from sat_udpdiff.tiny.clips import TinyWorld, paint

WORLD = TinyWorld()


def video(index: int, *, dense_of: int | None = None) -> ArrayVideo:
    clip, other = WORLD.clip(index), WORLD.clip(index if dense_of is None else dense_of)
    generator = np.random.default_rng(index)
    assert clip.entity_ids is not None
    return ArrayVideo(
        name=str(index),
        frames=clip.rgb,
        task="segmentation",
        colours=paint(other, view="segmentation", generator=generator),
        ids=clip.entity_ids.astype(np.int32),
    )


def scores_of(measure: Measure, videos: list[ArrayVideo], references=()) -> dict[str, Score]:
    features = {one.name: measure.features(one) for one in videos}
    real = {one.name: measure.features(one) for one in references}
    return {score.name: score for score in measure.scores(features, references=real)}


def test_agreement_is_that_of_the_functions_and_tells_own_from_other_maps() -> None:
    own = scores_of(MapAgreement(), [video(i) for i in range(4)])
    other = scores_of(MapAgreement(), [video(i, dense_of=i + 1) for i in range(4)])
    one = video(2)
    assert one.colours is not None
    by_hand = agreement.foreground_iou(one.frames, one.colours)
    assert own["map_foreground_iou"].per_video["2"] == by_hand
    assert own["map_foreground_iou"].value > 0.85 > 0.4 > other["map_foreground_iou"].value
    assert own["map_boundary_f"].value > other["map_boundary_f"].value
    assert own["map_flat_share"].value > 0.8


def test_maps_are_scored_as_maps_of_their_task() -> None:
    videos = [video(i) for i in range(2)]
    of_depth = [
        ArrayVideo(
            name=str(i),
            frames=WORLD.clip(i).rgb,
            task="depth",
            colours=paint(WORLD.clip(i), view="depth", generator=np.random.default_rng(i)),
        )
        for i in range(2)
    ]
    both = ["map_foreground_iou", "map_boundary_f"]
    assert list(scores_of(MapAgreement(), videos)) == [*both, "map_flat_share"]
    depth = scores_of(MapAgreement(), of_depth)
    assert list(depth) == [*both, "map_colour_distance"]
    assert depth["map_colour_distance"].value < 5


def test_consistency_is_that_of_the_function() -> None:
    found = scores_of(FrameConsistency(), [video(0), video(1)])["pixel_consistency"]
    by_hand = [agreement.frame_consistency(video(i).frames) for i in range(2)]
    assert list(found.per_video.values()) == by_hand
    assert found.value == pytest.approx(np.mean(by_hand)) and found.interval is not None


@pytest.mark.parametrize(
    ("measure", "reason"),
    [
        (FrameConsistency(), "expected 2 or more frames, got 1"),
        (MapAgreement(), r"expected a map of \(1, 16, 24\), got none"),
        (EntityCounts(), "no entity ids"),
    ],
)
def test_what_cannot_be_judged_says_why(measure: Measure, reason: str) -> None:
    still = ArrayVideo(name="still", frames=np.zeros((1, 16, 24, 3), np.uint8))
    with pytest.raises(UnusableError, match=reason):
        measure.features(still)


def ids(count: int) -> ArrayVideo:
    frames = np.zeros((2, 4, 8, 3), np.uint8)
    found = np.zeros((2, 4, 8), np.int32)
    found[1, 0, :count] = np.arange(1, count + 1) * 7
    return ArrayVideo(name=f"{count}", frames=frames, ids=found, task="segmentation")


def test_distance_of_entity_counts_by_hand() -> None:
    samples, real = [ids(1), ids(2), ids(6)], [ids(2), ids(3), ids(4)]
    (score,) = scores_of(EntityCounts(), samples, references=real).values()
    # In order of size 1-2, 2-3 and 6-4 are matched.
    assert score.value == pytest.approx(4 / 3)
    assert not score.per_video
    assert (score.facts["mean"], score.facts["reference_mean"]) == (3.0, 3.0)
    (same,) = scores_of(EntityCounts(), samples, references=samples[::-1]).values()
    assert same.value == 0.0
    with pytest.raises(ValueError, match="reference clips with entity ids, got 3 and 0"):
        scores_of(EntityCounts(), samples)
