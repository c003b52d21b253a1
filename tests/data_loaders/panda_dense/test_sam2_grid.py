import numpy as np
import pytest
import torch

from data_loaders.panda_dense.sam2_grid import (
    Sam2Grid,
    Sam2GridSettings,
    check_sam2_grid,
    mask_boxes,
    paint_masks,
    stability,
    suppress_boxes,
)
from data_loaders.schema import DataError
from tests.data_loaders.panda_dense.tiny_sam2 import save_tiny_sam2_image

CPU = torch.device("cpu")
# A random model is good at nothing, and its masks are all as wide as the picture.
ANY = {"least_iou": 0.0, "least_stability": 0.0, "most_box_overlap": 1.0}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sam2") / "image"
    save_tiny_sam2_image(folder)
    return str(folder)


def picture(height=72, width=100):
    y, x = np.mgrid[:height, :width]
    return np.stack([2 * x, 3 * y, (x // 20 + y // 20) % 2 * 200], axis=-1).astype(np.uint8)


def test_stability_is_the_iou_of_two_thresholds():
    logits = torch.full((4, 4, 5), -9.0)
    logits[0, :2, :4] = 0.5  # 8 pixels between the thresholds,
    logits[0, 3, 0:2] = 3.0  # 2 above both
    logits[1, 0] = 2.0  # 5 of 5
    logits[2, 0] = 0.5  # 0 of 5
    scores = stability(logits, offset=1.0)
    assert scores[:3].tolist() == pytest.approx([0.2, 1.0, 0.0])
    assert scores[3].isnan()  # an empty mask, which no threshold lets through
    assert stability(logits, offset=0.25)[:3].tolist() == [1.0, 1.0, 1.0]
    # Both comparisons are strict.
    assert stability(torch.tensor([[[1.0, 2.0, -1.0]]]), offset=1.0).tolist() == [0.5]


def test_boxes_hold_their_masks():
    masks = np.zeros((3, 5, 7), bool)
    masks[0, 1:3, 2:6] = True
    masks[1, 4, 6] = True
    assert mask_boxes(masks).tolist() == [[2, 1, 5, 2], [6, 4, 6, 4], [0, 0, 0, 0]]


def suppressed(boxes, scores, most_overlap=0.5):
    kept = suppress_boxes(
        np.array(boxes, np.int64), scores=np.array(scores, np.float32), most_overlap=most_overlap
    )
    return kept.tolist()


def test_the_better_of_two_boxes_stays():
    # IoU of the first two: 8 x 10 of 12 x 10.
    boxes = [[0, 0, 10, 10], [2, 0, 12, 10], [50, 50, 60, 60]]
    assert suppressed(boxes, [0.8, 0.9, 0.1]) == [1, 2]
    assert suppressed(boxes, [0.9, 0.8, 0.95]) == [2, 0]
    assert suppressed(boxes, [0.9, 0.8, 0.1], most_overlap=0.7) == [0, 1, 2]
    assert suppressed(boxes, [0.9, 0.9, 0.1]) == [0, 2]


def test_an_overlap_of_exactly_the_limit_is_allowed():
    assert suppressed([[0, 0, 4, 1], [0, 0, 2, 1]], [2, 1], most_overlap=0.5) == [0, 1]
    assert suppressed([[0, 0, 4, 1], [0, 0, 2, 1]], [2, 1], most_overlap=0.499) == [0]


def test_what_was_dropped_drops_nothing():
    # The second overlaps the first and goes; the third overlaps the second alone.
    boxes = [[0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]]
    assert suppressed(boxes, [3, 2, 1], most_overlap=0.4) == [0, 2]


def test_lines_and_points_are_not_suppressed():
    boxes = [[0, 0, 9, 0], [0, 0, 9, 0], [3, 3, 3, 3], [0, 0, 9, 9]]
    assert suppressed(boxes, [4, 3, 2, 1]) == [0, 1, 2, 3]
    assert suppressed(np.zeros((0, 4)), []) == []


def test_the_first_mask_has_what_two_claim():
    masks = np.zeros((3, 2, 4), bool)
    masks[0, :, :2] = True
    masks[1, 0, :2] = True  # covered
    masks[2, 1] = True
    assert paint_masks(masks).tolist() == [[1, 1, 0, 0], [1, 1, 2, 2]]


def test_masks_of_a_picture(weights):
    grid = Sam2Grid.load(Sam2GridSettings(weights=weights, **ANY), device=CPU)
    ids = grid.segment(picture())
    assert ids.shape == (72, 100) and ids.dtype == np.uint16
    found = np.unique(ids[ids > 0])
    assert len(found) > 3 and found.tolist() == list(range(1, len(found) + 1))
    assert grid.facts.license == "Apache-2.0" and grid.facts.model == weights


def test_the_best_predicted_mask_is_whole(weights):
    grid = Sam2Grid.load(Sam2GridSettings(weights=weights, **ANY), device=CPU)
    with torch.inference_mode():
        masks, scores = grid._candidates(picture())
    assert len(masks) == 3 * 64 and ((scores > 0) & (scores < 1)).all()
    best = masks[scores.argmax()]
    assert np.array_equal(grid.segment(picture()) == 1, best)


@pytest.mark.parametrize("name", ["least_iou", "least_stability"])
def test_thresholds_leave_masks_out(weights, name):
    counts = []
    for value in (0.0, 0.5, 1.0):
        settings = Sam2GridSettings(weights=weights, **{**ANY, name: value})
        with torch.inference_mode():
            counts.append(len(Sam2Grid.load(settings, device=CPU)._candidates(picture())[0]))
    assert counts[0] == 192 > counts[1] > counts[2] == 0


def test_no_mask_is_no_error(weights):
    settings = Sam2GridSettings(weights=weights, least_iou=1.0)
    assert not Sam2Grid.load(settings, device=CPU).segment(picture()).any()


def test_passes_do_not_change_the_masks(weights):
    settings = Sam2GridSettings(weights=weights, points_per_side=3, points_per_pass=4, **ANY)
    grid = Sam2Grid.load(settings, device=CPU)
    maps = [grid.segment(picture())]
    while grid.pieces.shrink():
        maps.append(grid.segment(picture()))
    assert len(maps) == 3
    assert all(np.mean(ids == maps[0]) > 0.999 for ids in maps)


def test_bf16_finds_nearly_the_same(weights):
    maps = []
    for dtype in ("fp32", "bf16"):
        settings = Sam2GridSettings(weights=weights, dtype=dtype, **ANY)
        grid = Sam2Grid.load(settings, device=CPU)
        with torch.inference_mode():
            masks, _ = grid._candidates(picture())
        maps.append(masks)
    assert np.mean(maps[0] == maps[1]) > 0.97


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("weights", ""),
        ("dtype", "int8"),
        ("reading", "crops"),
        ("points_per_side", 0),
        ("points_per_side", 256),
        ("points_per_pass", 0),
        ("least_iou", 1.5),
        ("least_stability", -0.1),
        ("most_box_overlap", 2.0),
        ("stability_offset", -1.0),
    ],
)
def test_settings_are_checked(name, value):
    settings = Sam2GridSettings()
    object.__setattr__(settings, name, value)
    with pytest.raises(DataError, match=rf"entities\.sam2_grid\.{name}: expected .*got"):
        check_sam2_grid(settings, section="entities.sam2_grid")
    check_sam2_grid(Sam2GridSettings(points_per_side=12), section="s")
