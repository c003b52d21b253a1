from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from data_loaders.panda_dense.reprompting import Reprompter, RepromptSettings
from data_loaders.panda_dense.sam2_cost import clip_flop, sam2_size
from data_loaders.panda_dense.sam2_inputs import (
    default_dtype,
    grid_points,
    load_sam2,
    prepare_picture,
)
from data_loaders.panda_dense.sam2_video import (
    Sam2Propagator,
    Sam2Settings,
    _Contest,
    check_sam2,
)
from data_loaders.schema import DataError
from tests.data_loaders.panda_dense.tiny_sam2 import SIZE, save_tiny_sam2_video

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sam2") / "video"
    save_tiny_sam2_video(folder)
    return folder


@pytest.fixture(scope="module")
def propagator(weights):
    return Sam2Propagator.load(Sam2Settings(weights=str(weights)), device=CPU)


def drifting_squares(*, frames=6, height=80, width=112, bright=True):
    """Three blocks on noise: two that drift apart, one that rests; and their ids."""
    rng = np.random.default_rng(0)
    rgb = np.stack([rng.integers(0, 90, (height, width, 3), dtype=np.uint8)] * frames)
    ids = np.zeros((frames, height, width), np.uint16)
    for t in range(frames):
        for number, (top, left) in {3: (8, 40 - 2 * t), 7: (8, 72 + 2 * t), 200: (50, 20)}.items():
            place = t, slice(top, top + 26), slice(left, left + 28)
            ids[place] = number
            rgb[place] = (number * 37 % 200 + 55, number % 255, 220 if bright else 0)
    return rgb, ids


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def test_pictures_are_those_of_the_processor():
    # From transformers 5.23's Sam2VideoVideoProcessor(size=...) with torchvision 0.28 on a CPU.
    y, x = np.mgrid[:24, :36]
    frame = np.stack([(7 * x + 3 * y) % 256, x * y % 256, (255 - 5 * x + 11 * y) % 256], axis=-1)
    expected = {
        16: (786.0820305510424, [-0.062934, 0.502801, -0.514684], [1.992037, -1.808123, -0.270675]),
        32: (3310.0365824890323, [-0.148557, 0.327731, -0.532113], [2.060536, -2.035714, -0.39268]),
        64: (
            13328.221967317164,
            [-0.131433, 0.345238, -0.584401],
            [2.077661, -2.035714, -0.410109],
        ),
    }
    for size, (total, inner, corner) in expected.items():
        picture = prepare_picture(frame.astype(np.uint8), size=size)
        assert picture.double().abs().sum().item() == pytest.approx(total, rel=1e-7)
        assert picture[:, size // 2, size // 3].tolist() == pytest.approx(inner, abs=1e-6)
        assert picture[:, 0, -1].tolist() == pytest.approx(corner, abs=1e-6)


def test_a_picture_of_the_right_size_is_only_normalised():
    picture = prepare_picture(np.full((8, 8, 3), 255, np.uint8), size=8)
    assert picture[:, 0, 0].tolist() == pytest.approx([2.2489, 2.4286, 2.64], abs=1e-4)


def test_grid_points_lie_in_the_middle_of_their_cells():
    points = grid_points(2, height=40, width=100)
    assert points.tolist() == [[25, 10], [75, 10], [25, 30], [75, 30]]
    points = grid_points(12, height=480, width=720)
    assert (
        len(points) == 144 and points[1].tolist() == [90, 20] and points[-1].tolist() == [690, 460]
    )


def test_the_first_frame_comes_back(propagator):
    rgb, ids = drifting_squares(frames=1)
    clip = propagator.propagate(rgb, ids[0])
    assert clip.shape == ids.shape and clip.dtype == np.uint16
    assert set(np.unique(clip)) == {0, 3, 7, 200}
    for number in (3, 7, 200):
        assert iou(clip[0] == number, ids[0] == number) > 0.95, number


def test_ids_stay_on_later_frames(propagator):
    rgb, ids = drifting_squares()
    clip = propagator.propagate(rgb, ids[0])
    assert set(np.unique(clip)) <= {0, 3, 7, 200}
    # The weights are random, the objects' places too; but there they are.
    assert all(len(np.unique(frame)) > 2 for frame in clip[1:])


def test_frames_matter(propagator):
    rgb, ids = drifting_squares()
    other, _ = drifting_squares(bright=False)
    one, two = (propagator.propagate(frames, ids[0]) for frames in (rgb, other))
    assert not np.array_equal(one[1:], two[1:])


def whole_session(weights, rgb, ids):
    """As transformers' documentation does it, all objects and all frames kept."""
    from transformers import Sam2VideoInferenceSession, Sam2VideoModel

    model = Sam2VideoModel.from_pretrained(weights).eval()
    video = torch.stack([prepare_picture(frame, size=SIZE) for frame in rgb])
    session = Sam2VideoInferenceSession(
        video=video, video_height=rgb.shape[1], video_width=rgb.shape[2], dtype=torch.float32
    )
    numbers = [int(i) for i in np.unique(ids) if i > 0]
    for number in numbers:
        mask = torch.from_numpy(ids == number).float()[None, None]
        square = interpolate(mask, size=(SIZE, SIZE), mode="bilinear", antialias=True)
        session.add_mask_inputs(session.obj_id_to_idx(number), 0, (square >= 0.5).float())
    session.obj_with_new_inputs = numbers
    clip = []
    for out in model.propagate_in_video_iterator(session, start_frame_idx=0):
        logits = interpolate(out.pred_masks.float(), size=ids.shape, mode="bilinear")[:, 0]
        best, place = logits.max(dim=0)
        named = torch.tensor(out.object_ids)[place]
        clip.append(torch.where(best > 0, named, 0).numpy().astype(np.uint16))
    return np.stack(clip)


def test_what_is_forgotten_is_never_looked_at(weights, propagator):
    # More frames than memories and pointers reach back (6 and 15).
    rgb, ids = drifting_squares(frames=20)
    expected = whole_session(weights, rgb, ids[0])
    assert np.array_equal(propagator.propagate(rgb, ids[0]), expected)


def test_groups_do_not_change_the_result(weights):
    rgb, ids = drifting_squares()
    grid = np.zeros_like(ids[0])
    for number in range(12):
        grid[6 * number : 6 * number + 6, 8 * number : 8 * number + 14] = number + 1
    grid = np.where(ids[0] > 0, ids[0], grid).astype(np.uint16)
    clips = []
    for per_pass in (64, 5, 1):
        settings = Sam2Settings(weights=str(weights), objects_per_pass=per_pass)
        clips.append(Sam2Propagator.load(settings, device=CPU).propagate(rgb, grid))
    assert len(np.unique(clips[0])) > 6
    # The memory encoder sums in another order for another number of objects.
    assert all(np.mean(clip == clips[0]) > 0.999 for clip in clips[1:])


def test_shrinking_ends_at_one_object(weights):
    propagator = Sam2Propagator.load(
        Sam2Settings(weights=str(weights), objects_per_pass=5), device=CPU
    )
    assert [propagator.pieces.shrink() for _ in range(4)] == [True, True, False, False]
    rgb, ids = drifting_squares(frames=2)
    assert len(np.unique(propagator.propagate(rgb, ids[0])[0])) == 4


def test_two_hundred_objects_and_none(propagator):
    rgb, _ = drifting_squares(frames=2, height=100, width=160)
    rows, columns = np.mgrid[:100, :160]
    ids = (1 + rows // 10 * 20 + columns // 8).astype(np.uint16)
    clip = propagator.propagate(rgb, ids)
    assert len(np.unique(clip[0])) > 190
    assert not propagator.propagate(rgb, np.zeros_like(ids)).any()


def test_points_become_objects(propagator):
    rgb, _ = drifting_squares()
    points = grid_points(3, height=80, width=112)
    clip = propagator.propagate_points(rgb, points)
    assert clip.shape == rgb.shape[:3] and 1 < len(np.unique(clip)) and clip.max() <= 9
    moved = propagator.propagate_points(rgb, points[:, ::-1].copy())
    assert not np.array_equal(clip, moved)


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_the_same_bytes_twice(weights, dtype):
    rgb, ids = drifting_squares(frames=3)
    settings = Sam2Settings(weights=str(weights), dtype=dtype)
    clips = [Sam2Propagator.load(settings, device=CPU).propagate(rgb, ids[0]) for _ in range(2)]
    assert np.array_equal(*clips)
    assert all(iou(clips[0][0] == i, ids[0] == i) > 0.95 for i in (3, 7, 200))


def test_the_highest_logit_wins_and_the_first_of_equals():
    contest = _Contest((2, 3), device=CPU)
    logits = torch.tensor([[[1.0, 2, -1], [3, -2, 0]], [[2.0, 1, -1], [3, -3, 0]]])
    contest.enter(logits, ids=[4, 9])
    assert contest.ids().tolist() == [[9, 4, 0], [4, 0, 0]]
    contest.enter(torch.tensor([[[2.0, 5, 1], [3, -1, 0]]]), ids=[300])
    assert contest.ids().tolist() == [[9, 300, 300], [4, 0, 0]]


def test_entities_that_enter_are_found_when_asked(propagator):
    rgb, ids = drifting_squares()
    entering = np.zeros_like(ids[0])
    entering[30:70, 70:110] = 1

    seen = []

    def segment(frame):
        seen.append(frame)
        return entering

    settings = RepromptSettings(every=2, max_overlap=1.0, min_area=0.001)
    start = np.where(ids[0] == 200, ids[0], 0).astype(np.uint16)
    clip = propagator.propagate(
        rgb, start, reprompter=Reprompter(segment=segment, settings=settings)
    )
    assert len(seen) == 2 and np.array_equal(seen[0], rgb[2])
    assert 201 not in clip[:2] and 201 in clip[2]
    # Where nothing was labelled, the newcomer has what it was prompted with; but the border of
    # what a random model labels is ragged.
    plain = propagator.propagate(rgb, start)
    assert np.array_equal(clip[:2], plain[:2])
    free = (plain[2] == 0) & (entering > 0)
    assert iou(clip[2] == 201, free) > 0.6
    off = Reprompter(segment=segment, settings=RepromptSettings())
    assert np.array_equal(propagator.propagate(rgb, start, reprompter=off), plain)


def test_facts_name_weights_and_licence(weights, propagator):
    facts = propagator.facts
    assert facts.backend == "model" and facts.license == "Apache-2.0"
    assert facts.model == str(weights) and len(facts.revision) == 12
    assert facts.version.startswith("transformers ")


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"propagation\.sam2\.weights: no folder .*hf download"):
        Sam2Propagator.load(Sam2Settings(weights=str(tmp_path / "x")), device=CPU)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"here\.weights: cannot load the folder"):
        Sam2Propagator.load(Sam2Settings(weights=str(tmp_path)), device=CPU, section="here")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weights": ""}, "s.weights: expected a folder or hub id"),
        ({"dtype": "int8"}, "s.dtype: expected fp32, bf16, fp16 or null"),
        ({"objects_per_pass": 0}, "s.objects_per_pass: expected >= 1"),
    ],
)
def test_settings_are_checked(values, message):
    with pytest.raises(DataError, match=message.replace(".", r"\.")):
        # beartype would stop the wrong type itself.
        check_sam2(_unchecked(Sam2Settings, values), section="s")
    check_sam2(Sam2Settings(), section="s")


def _unchecked(owner, values):
    settings = owner()
    for name, value in values.items():
        object.__setattr__(settings, name, value)
    return settings


def test_gpus_get_bf16_by_default():
    assert default_dtype(torch.device("cuda")) == torch.bfloat16
    assert default_dtype(CPU) == torch.float32


def test_a_video_checkpoint_serves_as_an_image_model(weights):
    # The checkpoints of the hub are video models.
    loaded = load_sam2("image", str(weights), key="k", dtype=None, device=CPU)
    assert type(loaded.model).__name__ == "Sam2Model" and loaded.size == SIZE


def test_operations_are_those_that_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import Sam2VideoConfig, Sam2VideoInferenceSession, Sam2VideoModel

    class Frames(dict):
        def __getitem__(self, t):
            return torch.empty(3, 1024, 1024, device="meta")

    with torch.device("meta"):
        # transformers' defaults are the tiny model.
        model = Sam2VideoModel._from_config(Sam2VideoConfig(), attn_implementation="eager").eval()
    on_meta = {f"{what}_device": "meta" for what in ("inference", "inference_state")}
    session = Sam2VideoInferenceSession(
        video_height=480, video_width=720, dtype=torch.float32, **on_meta
    )
    session.processed_frames = Frames.fromkeys(range(49))
    mask = torch.empty(1, 1, 1024, 1024, device="meta")
    session.add_mask_inputs(session.obj_id_to_idx(1), 0, mask)
    session.obj_with_new_inputs = [1]
    with FlopCounterMode(display=False) as counter:
        for t in range(9):
            model(session, frame_idx=t)
            if t in (0, 1, 8):
                expected = clip_flop("tiny", frames=t + 1, objects=1)
                assert counter.get_total_flops() == pytest.approx(expected, rel=0.01)


def test_sizes_are_read_from_names():
    assert sam2_size("facebook/sam2.1-hiera-base-plus") == "base-plus"
    assert sam2_size("/data/sam2.1_hiera_large") == "large"
    assert sam2_size(str(Path("/somewhere/else"))) is None
    one, two = (clip_flop("large", frames=49, objects=n) for n in (0, 20))
    assert one == 49 * 1825e9 and two - one == pytest.approx(20 * 28.3e12, rel=0.01)
