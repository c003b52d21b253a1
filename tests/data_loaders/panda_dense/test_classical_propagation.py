import cv2
import numpy as np
import pytest

from data_loaders.panda_dense.classical_propagation import (
    ClassicalPropagationSettings,
    check_classical_propagation,
    contradicted,
    propagate_classically,
)
from data_loaders.panda_dense.optical_flow import DenseFlow, positions
from data_loaders.panda_dense.reprompting import (
    Reprompter,
    RepromptSettings,
    check_reprompt,
    find_new_entities,
)
from data_loaders.schema import DataError
from data_loaders.synthetic import make_clip
from data_loaders.synthetic_scene import WorldConfig


def things_iou(true, found, *, things):
    """Region IoU of the things of the first frame, means over things and frames."""
    values = []
    for i in np.intersect1d(np.unique(true[0]), np.arange(1, things + 1)):
        for a, b in zip(true == i, found == i, strict=True):
            union = (a | b).sum()
            values.append((a & b).sum() / union if union else 1.0)
    return np.mean(values)


# Measured .89 and .76, where a copy of the first frame has .38 and .30 and flow alone .63 and .45.
# More and larger clips, and figures to reach: tests/benchmarks/bench_propagation.py.
@pytest.mark.parametrize(("things", "least"), [(6, 0.83), (12, 0.69)])
def test_the_synthetic_world_is_followed(things, least):
    config = WorldConfig(frames=33, height=120, width=180, min_entities=things, max_entities=things)
    scores = []
    for index in range(3):
        sample = make_clip(index, seed=7, config=config)
        rgb, ids = sample.rgb[:13], sample.entity_ids[:13]
        still = things_iou(ids, np.broadcast_to(ids[:1], ids.shape), things=things)
        found = propagate_classically(rgb, ids[0])
        assert np.array_equal(found[0], ids[0]) and found.dtype == np.uint16
        assert set(np.unique(found)) <= set(np.unique(ids[0])) | {0}
        scores.append((things_iou(ids, found, things=things), still))
    followed, still = np.mean(scores, axis=0)
    assert still < 0.5, still  # they do move
    assert followed > least, scores


def disc(*, frames=8, speed=4, height=90, width=150, colour=(210, 60, 50), start=40):
    """A textured disc that moves right over a textured wall, and its mask."""
    rng = np.random.default_rng(1)
    wall = cv2.GaussianBlur(rng.normal(0, 60, (height, width)), (0, 0), 2)[..., None]
    skin = cv2.GaussianBlur(rng.normal(0, 60, (height, 4 * width)), (0, 0), 2)[..., None]
    y, x = np.mgrid[:height, :width]
    masks = np.stack(
        [(y - height / 2) ** 2 + (x - start - speed * t) ** 2 < 18**2 for t in range(frames)]
    )
    rgb = [
        np.where(
            mask[..., None],
            np.array(colour) + skin[:, 2 * width - speed * t : 3 * width - speed * t],
            np.array((40, 110, 60)) + wall,
        )
        for t, mask in enumerate(masks)
    ]
    return np.stack(rgb).clip(0, 255).astype(np.uint8), masks


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def test_colours_hold_what_flow_smears():
    rgb, masks = disc()
    ids = np.where(masks[0], 5, 2).astype(np.uint16)
    found = propagate_classically(rgb, ids)
    by_flow = propagate_classically(
        rgb, ids, settings=ClassicalPropagationSettings(colour_weight=0.0)
    )
    assert iou(found[-1] == 5, masks[-1]) > 0.93
    assert iou(found[-1] == 5, masks[-1]) > iou(by_flow[-1] == 5, masks[-1])


def test_large_pictures_are_worked_on_in_small():
    rgb, masks = disc()
    ids = np.where(masks[0], 5, 2).astype(np.uint16)
    found = propagate_classically(rgb, ids, settings=ClassicalPropagationSettings(rows=45))
    assert found.shape == masks.shape and np.array_equal(found[0], ids)
    assert iou(found[-1] == 5, masks[-1]) > 0.85


def test_what_comes_from_outside_stays_unlabelled():
    # The disc is not in the first picture, and has a colour that nothing there has.
    rgb, masks = disc(frames=12, speed=6, start=-30)
    assert not masks[0].any()
    ids = np.full(masks.shape[1:], 2, np.uint16)
    found = propagate_classically(rgb, ids)
    assert np.mean(found[-1][masks[-1]] == 0) > 0.8
    assert np.mean(found[-1][~masks[-1]] == 2) > 0.95


def test_labels_do_not_creep_into_neighbours_of_like_colours():
    # A standing wall, lighter to the right, of which a strip in the middle has its own label: a
    # colour of the strip is a larger part of its colours than of the wall's.
    rng = np.random.default_rng(0)
    wall = cv2.GaussianBlur(rng.normal(0, 30, (60, 120)), (0, 0), 2) + np.linspace(60, 180, 120)
    noise = rng.normal(0, 2, (20, 60, 120))
    rgb = np.repeat((wall + noise).clip(0, 255).astype(np.uint8)[..., None], 3, axis=-1)
    ids = np.ones((60, 120), np.uint16)
    ids[:, 50:70] = 2
    found = propagate_classically(rgb, ids)[-1]
    assert iou(found == 2, ids == 2) > 0.94
    crept = propagate_classically(rgb, ids, settings=ClassicalPropagationSettings(lead=0.0))[-1]
    assert iou(crept == 2, ids == 2) < 0.9


def test_it_is_found_when_asked_for():
    rgb, masks = disc(frames=12, speed=6, start=-30)
    ids = np.full(masks.shape[1:], 2, np.uint16)

    def segment(frame):
        return np.where(frame[..., 0] > 125, 1, 0).astype(np.uint16)

    settings = RepromptSettings(every=5, min_area=0.02)
    found = propagate_classically(
        rgb, ids, reprompter=Reprompter(segment=segment, settings=settings)
    )
    assert set(np.unique(found)) == {0, 2, 3}
    first = min(t for t in range(12) if (found[t] == 3).any())
    assert first in (5, 10)
    assert iou(found[-1] == 3, masks[-1]) > 0.8


def test_nothing_labelled_stays_so_and_one_frame_is_enough():
    rgb, _ = disc(frames=3)
    ids = np.zeros(rgb.shape[1:3], np.uint16)
    assert not propagate_classically(rgb, ids).any()
    ids[:, :70] = 65535
    assert np.array_equal(propagate_classically(rgb[:1], ids)[0], ids)


def test_a_still_picture_keeps_its_labels():
    rgb, masks = disc(frames=4, speed=0)
    ids = np.where(masks[0], 300, 2).astype(np.uint16)
    assert np.mean(propagate_classically(rgb, ids) == ids) > 0.995


def test_black_and_white_frames_do_not_fail():
    ids = np.ones((40, 60), np.uint16)
    ids[:20] = 2
    for level in (0, 255):
        found = propagate_classically(np.full((3, 40, 60, 3), level, np.uint8), ids)
        assert found.shape == (3, 40, 60)


def test_flow_leads_back_to_where_a_pixel_was():
    rgb, masks = disc(frames=2, speed=5)
    gray = [frame.mean(axis=-1).astype(np.uint8) for frame in rgb]
    motion = DenseFlow()(gray[1], gray[0])
    assert np.median(motion[masks[1]][:, 0]) == pytest.approx(-5, abs=0.7)
    where = positions(motion).round().astype(int)
    assert masks[0][where[masks[1]][:, 1], where[masks[1]][:, 0]].mean() > 0.9


def test_positions_are_the_pixels_own_and_their_motion():
    motion = np.zeros((3, 4, 2), np.float32)
    motion[..., 0] = -1.2
    motion[2, :, 1] = 5
    assert positions(motion)[1, 3].tolist() == pytest.approx([1.8, 1.0])


def test_ways_that_do_not_lead_back_are_contradicted():
    back = np.zeros((4, 6, 2), np.float32)
    forth = np.zeros_like(back)
    back[:, 3:, 0] = -2  # those pixels were two to the left
    forth[:, 1:4, 0] = 2  # and from there went two to the right, but for one column
    assert np.array_equal(contradicted(back, forth)[0], [False, True, True, False, False, False])


def test_new_entities_lie_where_nothing_is_known():
    found = np.zeros((10, 10), np.uint16)
    found[:2] = 4  # unlabelled
    found[2:4] = 2  # known for three quarters
    found[4:6, :2] = 9  # too small
    found[6:10] = 1  # half of it known
    known = np.zeros_like(found)
    known[2:4, :] = 50
    known[2, :5] = 0
    known[6:8] = 51
    settings = RepromptSettings(every=1, max_overlap=0.5, min_area=0.05)
    new = find_new_entities(found, known=known, next_id=60, settings=settings)
    expected = np.zeros_like(found)
    expected[:2] = 61  # in the order of the segmenter's ids
    expected[8:] = 60
    assert np.array_equal(new, expected)
    none = RepromptSettings(every=1, max_overlap=0.4, min_area=0.3)
    assert not find_new_entities(found, known=known, next_id=60, settings=none).any()
    last = find_new_entities(found, known=known, next_id=65535, settings=settings)
    assert np.unique(last).tolist() == [0, 65535]
    assert not find_new_entities(found, known=known, next_id=65536, settings=settings).any()


def test_looks_are_due_every_nth_frame():
    def segment(frame):
        return np.zeros(frame.shape[:2], np.uint16)

    looks = Reprompter(segment=segment, settings=RepromptSettings(every=4))
    assert [t for t in range(10) if looks.is_due(t)] == [4, 8]
    never = Reprompter(segment=segment, settings=RepromptSettings())
    assert not any(never.is_due(t) for t in range(10))


@pytest.mark.parametrize(
    ("check", "settings", "message"),
    [
        (check_reprompt, RepromptSettings(every=0), "s.every: expected >= 1 or null, got 0"),
        (check_reprompt, RepromptSettings(max_overlap=1.5), "s.max_overlap: expected a share"),
        (check_reprompt, RepromptSettings(min_area=-0.1), "s.min_area: expected a share"),
        (
            check_classical_propagation,
            ClassicalPropagationSettings(rows=8),
            "s.rows: expected 16..4096, got 8",
        ),
        (
            check_classical_propagation,
            ClassicalPropagationSettings(near=0.0),
            "s.near: expected 0.3..100, got 0.0",
        ),
        (
            check_classical_propagation,
            ClassicalPropagationSettings(colour_change=1.5),
            "s.colour_change: expected 0..1, got 1.5",
        ),
    ],
)
def test_settings_are_checked(check, settings, message):
    with pytest.raises(DataError) as raised:
        check(settings, section="s")
    assert message in str(raised.value)
    check(type(settings)(), section="s")
