"""Agreement of a video and a dense map: hand-made frames and the labelled world."""

import numpy as np
import pytest

from sat_udpdiff.evaluation import agreement
from sat_udpdiff.tiny.clips import TinyWorld, paint

WORLD = TinyWorld()
CLIPS = [WORLD.clip(index) for index in range(6)]


def maps(view: str) -> list[np.ndarray]:
    return [paint(clip, view=view, generator=np.random.default_rng(7)) for clip in CLIPS]


def square(*, left: int, colour: tuple[int, int, int] = (255, 0, 0)) -> np.ndarray:
    frames = np.zeros((2, 16, 32, 3), np.uint8)
    frames[:, 4:12, left : left + 8] = colour
    return frames


def test_foreground_is_the_square() -> None:
    assert agreement.foreground(square(left=4)).sum() == 2 * 8 * 8


def test_iou_of_squares_that_share_half() -> None:
    assert agreement.foreground_iou(square(left=4), square(left=8)) == pytest.approx(1 / 3)
    assert agreement.foreground_iou(square(left=4), square(left=4, colour=(0, 255, 9))) == 1.0
    assert agreement.foreground_iou(square(left=0), square(left=20)) == 0.0


def test_two_empty_videos_agree() -> None:
    empty = np.full((2, 16, 32, 3), 90, np.uint8)
    assert agreement.foreground_iou(empty, empty) == 1.0
    assert agreement.boundary_f(empty, empty) == 1.0
    assert agreement.boundary_f(square(left=4), empty) == 0.0


def test_boundaries_match_within_the_tolerance() -> None:
    assert agreement.boundary_f(square(left=4), square(left=5), tolerance=2) == 1.0
    assert agreement.boundary_f(square(left=0), square(left=22), tolerance=2) == 0.0


@pytest.mark.parametrize("view", ["segmentation", "depth"])
def test_true_maps_agree_and_mismatched_ones_do_not(view: str) -> None:
    dense = maps(view)
    own = np.mean([agreement.foreground_iou(c.rgb, d) for c, d in zip(CLIPS, dense, strict=True)])
    other = np.mean(
        [
            agreement.foreground_iou(c.rgb, d)
            for c, d in zip(CLIPS, dense[1:] + dense[:1], strict=True)
        ]
    )
    assert own > 0.85
    assert other < 0.4


def test_the_tasks_are_told_apart() -> None:
    segmentation, depth = maps("segmentation"), maps("depth")
    assert max(agreement.depth_map_distance(d) for d in depth) == 0.0
    assert np.mean([agreement.depth_map_distance(d) for d in segmentation]) > 20
    flat = np.mean([agreement.flat_share(d) for d in segmentation])
    assert flat > 0.85 > 0.75 > np.mean([agreement.flat_share(d) for d in depth])


def test_consistency_falls_when_frames_come_from_different_clips() -> None:
    own = np.mean([agreement.frame_consistency(clip.rgb) for clip in CLIPS])
    mixed = np.stack([CLIPS[k % len(CLIPS)].rgb[k] for k in range(9)])
    assert own > agreement.frame_consistency(mixed) + 0.2
    still = np.repeat(CLIPS[0].rgb[:1], 3, axis=0)
    assert agreement.frame_consistency(still) == pytest.approx(1.0)


def test_consistency_needs_two_frames() -> None:
    with pytest.raises(ValueError, match="2 or more frames, got 1"):
        agreement.frame_consistency(CLIPS[0].rgb[:1])
