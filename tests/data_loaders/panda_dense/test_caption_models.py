import numpy as np
import pytest
import torch

from data_loaders.panda_dense.caption_models import (
    AskedModel,
    PatchShape,
    batch_questions,
    llava_pixels,
    make_question,
    qwen_pixels,
    qwen_size,
    sample_frames,
)
from data_loaders.panda_dense.pixels import CLIP_MEAN, CLIP_STD
from tests.data_loaders.panda_dense import tiny_caption

KINDS = {
    "video_llava": tiny_caption.save_tiny_video_llava,
    "qwen2_5_vl": tiny_caption.save_tiny_qwen2_5_vl,
    "qwen3_vl": tiny_caption.save_tiny_qwen3_vl,
}
PIXELS = (1000, 20_000)


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """Of each kind: what decides how it is asked."""
    from transformers import AutoConfig, AutoTokenizer

    found = {}
    for kind, save in KINDS.items():
        folder = tmp_path_factory.mktemp(kind)
        save(folder)
        found[kind] = AskedModel(
            kind=kind,
            config=AutoConfig.from_pretrained(folder),
            tokenizer=AutoTokenizer.from_pretrained(folder),
        )
    return found


def clip_of(frames=17, height=48, width=72, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def question(model, *, clip=None, fps=8.0, count=8, prompt="Describe this video"):
    clip = clip_of() if clip is None else clip
    shown = sample_frames(clip, fps=fps, count=count)
    return make_question(shown, model=model, prompt=prompt, frame_pixels=PIXELS)


def test_frames_lie_evenly_over_the_clip_with_both_ends() -> None:
    shown = sample_frames(clip_of(49), fps=8.0, count=8)
    assert shown.indices == (0, 6, 13, 20, 27, 34, 41, 48)
    assert (shown.rgb == clip_of(49)[list(shown.indices)]).all()
    assert sample_frames(clip_of(3), fps=8.0, count=8).indices == (0, 0, 0, 0, 1, 1, 1, 2)
    assert sample_frames(clip_of(9), fps=8.0, count=1).indices == (0,)


def test_llava_sees_what_clips_own_processor_makes() -> None:
    from PIL import Image
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
    )
    for size in ((48, 72), (90, 41), (28, 28), (20, 33)):
        rgb = clip_of(2, *size) // 2 + 64
        images = [Image.fromarray(frame) for frame in rgb]
        theirs = processor(images=images, return_tensors="np")["pixel_values"]
        # Pillow rounds and clips between rows and columns too: no overshoot here, and one level.
        level = 1 / 255 / min(CLIP_STD)
        np.testing.assert_allclose(llava_pixels(rgb, side=28), theirs, atol=1.01 * level)


def test_qwen_sees_what_its_own_processor_makes_of_a_still_picture() -> None:
    from PIL import Image
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    processor = Qwen2VLImageProcessorPil(size={"shortest_edge": PIXELS[0], "longest_edge": 20_000})
    shape = PatchShape(patch=14, merge=2, pair=2, frame_pixels=PIXELS, mean=CLIP_MEAN, std=CLIP_STD)
    for size in ((48, 72), (200, 120), (20, 33)):
        frame = clip_of(1, *size) // 2 + 64
        theirs = processor(images=Image.fromarray(frame[0]), return_tensors="np")
        patches, grid = qwen_pixels(np.concatenate([frame, frame]), shape=shape)
        assert list(grid) == theirs["image_grid_thw"][0].tolist()
        level = 1 / 255 / min(CLIP_STD)
        np.testing.assert_allclose(patches, theirs["pixel_values"], atol=1.01 * level)


def test_qwen_patches_hold_their_pair_of_frames_in_order() -> None:
    # Frame t has the value t everywhere; three frames: the last stands in for a fourth.
    rgb = np.repeat(np.arange(3, dtype=np.uint8), 28 * 56 * 3).reshape(3, 28, 56, 3)
    shape = PatchShape(
        patch=14, merge=2, pair=2, frame_pixels=(1, 10_000), mean=(0.0,) * 3, std=(1.0,) * 3
    )
    patches, grid = qwen_pixels(rgb, shape=shape)
    assert grid == (2, 2, 4)
    assert patches.shape == (16, 3 * 2 * 14 * 14)
    values = (patches * 255).round().reshape(2, 8, 3, 2, 14, 14)
    assert (values[0, :, :, 0] == 0).all()
    assert (values[0, :, :, 1] == 1).all()
    assert (values[1] == 2).all()


def test_qwen_patches_that_become_one_token_are_neighbours() -> None:
    # The value of a pixel is its column of patches.
    columns = np.repeat(np.arange(8, dtype=np.uint8), 14)
    rgb = np.broadcast_to(columns[None, None, :, None], (2, 56, 112, 3))
    shape = PatchShape(
        patch=14, merge=2, pair=2, frame_pixels=(1, 10_000), mean=(0.0,) * 3, std=(1.0,) * 3
    )
    patches, _ = qwen_pixels(np.ascontiguousarray(rgb), shape=shape)
    order = (patches[:, 0] * 255).round().int().tolist()
    assert order[:16] == [0, 1, 0, 1, 2, 3, 2, 3, 4, 5, 4, 5, 6, 7, 6, 7]


def test_qwen_sizes_are_those_of_its_processor() -> None:
    limits = (100_352, 602_112)
    assert qwen_size(480, 720, factor=28, frame_pixels=limits) == (476, 728)
    assert qwen_size(480, 720, factor=32, frame_pixels=limits) == (480, 704)
    assert qwen_size(1080, 1920, factor=28, frame_pixels=limits) == (560, 1008)
    assert qwen_size(100, 200, factor=28, frame_pixels=limits) == (224, 448)


def test_llavas_question_has_a_token_for_every_patch_and_class(asked) -> None:
    model = asked["video_llava"]
    asking = question(model)
    video = model.config.video_token_id
    assert asking.input_ids.count(video) == 8 * (4 + 1)
    words = [i for i in asking.input_ids if i != video]
    text = model.tokenizer.decode(words)
    assert text == "<s> USER : Describe this video ASSISTANT :"
    first = asking.input_ids.index(video)
    assert model.tokenizer.decode(asking.input_ids[:first]) == "<s> USER :"


def test_qwens_questions_have_their_marks_and_times(asked) -> None:
    model = asked["qwen2_5_vl"]
    asking = question(model)
    assert asking.grid == (4, 4, 6)
    assert asking.input_ids.count(model.config.video_token_id) == 4 * 4 * 6 // 4
    # 8 of 17 frames at 8 per second, two to a step.
    assert asking.seconds_per_grid == pytest.approx(2 / (8 / 17 * 8))

    model = asked["qwen3_vl"]
    asking = question(model)
    ids = list(asking.input_ids)
    start, end = model.config.vision_start_token_id, model.config.vision_end_token_id
    assert ids.count(start) == ids.count(end) == asking.grid[0] == 4
    token = model.config.video_token_id
    text = model.tokenizer.decode([i for i in ids if i != token])
    # Frames 0, 2, 4, 6, 9, 11, 13, 16 of 17: 0.125, 0.625, 1.25, 1.8125 s are the middles.
    parts = text.split("<|vision_start|> <|vision_end|>")
    times = ["0 . 1", "0 . 6", "1 . 2", "1 . 8"]
    for part, time in zip(parts, times, strict=False):
        assert part.endswith(f"< {time} seconds > ")
    assert parts[4].startswith(" Describe this video <|im_end|> <|im_start|> assistant")


def test_shorter_questions_are_padded_on_the_left_and_hidden(asked) -> None:
    model = asked["qwen2_5_vl"]
    pair = [question(model), question(model, clip=clip_of(17, 100, 100))]
    short, long = sorted(len(q.input_ids) for q in pair)
    batch = batch_questions(pair, model=model, pad=1)
    assert batch["input_ids"].shape == (2, long)
    assert batch["attention_mask"].sum(dim=1).tolist() == [len(q.input_ids) for q in pair]
    row = batch["input_ids"][0]
    assert (row[: long - short] == 1).all()
    assert tuple(row[long - short :].tolist()) == pair[0].input_ids
    video = batch["input_ids"] == model.config.video_token_id
    assert torch.equal(batch["mm_token_type_ids"] == 2, video)
    assert batch["video_grid_thw"].tolist() == [list(q.grid) for q in pair]
    assert len(batch["pixel_values_videos"]) == sum(len(q.pixels) for q in pair)


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_that_holds_the_videos_token_is_an_error(asked, kind) -> None:
    token = "<video>" if kind == "video_llava" else "<|video_pad|>"
    with pytest.raises(ValueError, match=r"expected \d+ tokens for the video, got \d+"):
        question(asked[kind], prompt=f"Look at {token}")
