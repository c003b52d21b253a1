"""What each captioner is asked and shown: prompts, frames and the tensors made of them.

As the processors of transformers make them, without torchvision, which they need.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from data_loaders.panda_dense.models import Dtype
from data_loaders.panda_dense.pixels import CLIP_MEAN, CLIP_STD, normalized, resize_cubic

ModelKind = Literal["video_llava", "qwen2_5_vl", "qwen3_vl"]

_VIDEO_TYPE = 2
"""Of a token that stands for video, where 0 is text and 1 a picture."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KindFacts:
    """What is fixed about a kind of model."""

    network: str
    """Class of transformers."""
    on_gpu: Dtype
    """Precision its weights were published in."""
    prompt: str
    """Around the user's words; {video} stands for the frames."""
    get: str
    """How to obtain the weights, for messages."""


_QWEN_END = "{prompt}<|im_end|>\n<|im_start|>assistant\n"
KINDS: dict[str, KindFacts] = {
    "video_llava": KindFacts(
        network="VideoLlavaForConditionalGeneration",
        on_gpu="fp16",
        prompt="USER: {video}\n{prompt} ASSISTANT:",
        get="fetch it: hf download LanguageBind/Video-LLaVA-7B-hf",
    ),
    "qwen2_5_vl": KindFacts(
        network="Qwen2_5_VLForConditionalGeneration",
        on_gpu="bf16",
        prompt="<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|>{video}<|vision_end|>" + _QWEN_END,
        get="fetch it: hf download Qwen/Qwen2.5-VL-7B-Instruct",
    ),
    # Each pair of frames has its own marks and its time in words. Late 5.x processors of
    # transformers leave one more pair of marks around them all, which training did not have.
    "qwen3_vl": KindFacts(
        network="Qwen3VLForConditionalGeneration",
        on_gpu="bf16",
        prompt="<|im_start|>user\n{video}" + _QWEN_END,
        get="fetch it: hf download Qwen/Qwen3-VL-8B-Instruct",
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class AskedModel:
    """What of a model decides how it is asked."""

    kind: ModelKind
    """Of the model."""
    config: Any
    """transformers' own."""
    tokenizer: Any
    """transformers' own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PatchShape:
    """How Qwen cuts frames up."""

    patch: int
    """Pixels along the side of a patch."""
    merge: int
    """Patches along the side of what becomes one token."""
    pair: int
    """Frames in a patch."""
    frame_pixels: tuple[int, int]
    """Least and most pixels of a resized frame."""
    mean: tuple[float, float, float]
    """Of red, green and blue, values 0..1."""
    std: tuple[float, float, float]
    """Likewise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SampledClip:
    """Frames of a clip that a model is shown."""

    rgb: UInt8[np.ndarray, "n h w 3"]
    """0..255."""
    indices: tuple[int, ...]
    """Which frames of the clip they are."""
    num_frames: int
    """Of the clip."""
    fps: float
    """Of the clip."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What is asked about one clip."""

    input_ids: tuple[int, ...]
    """Tokens of the prompt, with a placeholder for every token of the video."""
    pixels: Float[Tensor, "..."]
    """Video-LLaVA: (n, 3, side, side). Qwen: (patches, values)."""
    grid: tuple[int, int, int] | None
    """Qwen: patches along time, height and width."""
    seconds_per_grid: float
    """Qwen: seconds from one pair of frames to the next."""


def sample_frames(rgb: UInt8[np.ndarray, "t h w 3"], *, fps: float, count: int) -> SampledClip:
    """Frames evenly over the clip, the first and the last among them; some twice in a short one."""
    # Downwards, as the authors of Video-LLaVA pick them.
    indices = np.linspace(0, len(rgb) - 1, count, dtype=int)
    return SampledClip(
        rgb=rgb[indices], indices=tuple(indices.tolist()), num_frames=len(rgb), fps=fps
    )


def make_question(
    clip: SampledClip, *, model: AskedModel, prompt: str, frame_pixels: tuple[int, int]
) -> Question:
    """Tokens and pixels of one clip.

    Args:
        clip: Its frames.
        model: Whom to ask.
        prompt: The user's words.
        frame_pixels: Qwen: least and most pixels of a frame.

    Raises:
        ValueError: Tokenizer or prompt do not fit the model: placeholders are missing or too many.
    """
    kind, config, tokenizer = model.kind, model.config, model.tokenizer
    vision = config.vision_config
    if kind == "video_llava":
        pixels, grid = llava_pixels(clip.rgb, side=vision.image_size), None
        # The video tower keeps its class token, unlike the one for pictures.
        count = len(clip.rgb) * ((vision.image_size // vision.patch_size) ** 2 + 1)
    else:
        shape = PatchShape(
            patch=vision.patch_size,
            merge=vision.spatial_merge_size,
            pair=vision.temporal_patch_size,
            frame_pixels=frame_pixels,
            mean=CLIP_MEAN if kind == "qwen2_5_vl" else (0.5, 0.5, 0.5),
            std=CLIP_STD if kind == "qwen2_5_vl" else (0.5, 0.5, 0.5),
        )
        pixels, grid = qwen_pixels(clip.rgb, shape=shape)
        count = grid[0] * grid[1] * grid[2] // vision.spatial_merge_size**2
    token = str(tokenizer.convert_ids_to_tokens(config.video_token_id))
    if kind == "qwen3_vl":
        assert grid is not None
        video = _timed_video(clip, token=token, steps=grid[0], count=count // grid[0])
    else:
        video = token * count
    ids = tokenizer(KINDS[kind].prompt.format(video=video, prompt=prompt))["input_ids"]
    if ids.count(config.video_token_id) != count:
        raise ValueError(
            f"expected {count} tokens for the video, got {ids.count(config.video_token_id)}: the "
            f"tokenizer does not know {token!r} as one token, or the prompt contains it"
        )
    # As the processor counts: frames shown per second of the clip.
    shown_fps = len(clip.indices) / clip.num_frames * clip.fps
    pair = 1 if grid is None else vision.temporal_patch_size
    return Question(
        input_ids=tuple(ids), pixels=pixels, grid=grid, seconds_per_grid=pair / shown_fps
    )


def _timed_video(clip: SampledClip, *, token: str, steps: int, count: int) -> str:
    """Qwen3-VL: each pair of frames after the mean of their times."""
    seconds = [index / clip.fps for index in clip.indices]
    pair = -(-len(seconds) // steps)
    seconds += [seconds[-1]] * (steps * pair - len(seconds))
    return "".join(
        f"<{(seconds[i * pair] + seconds[(i + 1) * pair - 1]) / 2:.1f} seconds>"
        f"<|vision_start|>{token * count}<|vision_end|>"
        for i in range(steps)
    )


def batch_questions(
    questions: Sequence[Question], *, model: AskedModel, pad: int
) -> dict[str, Tensor]:
    """Arguments of `generate`, on the host; shorter prompts are padded on their left.

    On the left, so that every answer begins right after its prompt; the mask hides the padding.
    """
    longest = max(len(question.input_ids) for question in questions)
    gaps = [longest - len(question.input_ids) for question in questions]
    ids = torch.tensor(
        [[pad] * gap + list(q.input_ids) for gap, q in zip(gaps, questions, strict=True)]
    )
    mask = (torch.arange(longest) >= torch.tensor(gaps)[:, None]).long()
    batch = {"input_ids": ids, "attention_mask": mask}
    if model.kind == "video_llava":
        return batch | {"pixel_values_videos": torch.stack([q.pixels for q in questions])}
    batch["pixel_values_videos"] = torch.cat([q.pixels for q in questions])
    batch["video_grid_thw"] = torch.tensor([q.grid for q in questions])
    batch["mm_token_type_ids"] = (
        (ids == model.config.video_token_id).int() * _VIDEO_TYPE * mask.int()
    )
    if model.kind == "qwen2_5_vl":
        batch["second_per_grid_ts"] = torch.tensor([q.seconds_per_grid for q in questions])
    return batch


def llava_pixels(rgb: UInt8[np.ndarray, "n h w 3"], *, side: int) -> Float[Tensor, "n 3 s s"]:
    """Shorter side resized to `side`, the middle square of it, CLIP's mean 0 and deviation 1."""
    height, width = rgb.shape[1:3]
    if height <= width:
        size = side, int(side * width / height)
    else:
        size = int(side * height / width), side
    rgb = resize_cubic(rgb, height=size[0], width=size[1])
    # Python rounds halves to even, as the processor does.
    top, left = round((size[0] - side) / 2), round((size[1] - side) / 2)
    square = rgb[:, top : top + side, left : left + side]
    return normalized(square, mean=CLIP_MEAN, std=CLIP_STD)


def qwen_pixels(
    rgb: UInt8[np.ndarray, "n h w 3"], *, shape: PatchShape
) -> tuple[Float[Tensor, "patches values"], tuple[int, int, int]]:
    """Patches of pairs of frames, neighbours that are merged later next to each other.

    Args:
        rgb: Frames, 0..255; the last is repeated where they do not fill the last pair.
        shape: Of the patches.

    Returns:
        The patches, values of a patch by colour, frame, row and column; and how many there are
        along time, height and width.
    """
    height, width = qwen_size(
        rgb.shape[1],
        rgb.shape[2],
        factor=shape.patch * shape.merge,
        frame_pixels=shape.frame_pixels,
    )
    resized = resize_cubic(rgb, height=height, width=width)
    frames = normalized(resized, mean=shape.mean, std=shape.std)
    frames = torch.cat([frames, frames[-1:].expand(-len(frames) % shape.pair, -1, -1, -1)])
    patches = rearrange(
        frames,
        "(t p) c (gh mh ph) (gw mw pw) -> (t gh gw mh mw) (c p ph pw)",
        p=shape.pair,
        mh=shape.merge,
        mw=shape.merge,
        ph=shape.patch,
        pw=shape.patch,
    )
    return patches, (len(frames) // shape.pair, height // shape.patch, width // shape.patch)


def qwen_size(
    height: int, width: int, *, factor: int, frame_pixels: tuple[int, int]
) -> tuple[int, int]:
    """Nearest multiples of `factor`; smaller or larger ones where a frame has too many pixels."""
    least, most = frame_pixels
    rows, columns = round(height / factor) * factor, round(width / factor) * factor
    if rows * columns > most:
        scale = (most / (height * width)) ** 0.5
        rows = int(height * scale / factor) * factor
        columns = int(width * scale / factor) * factor
    elif rows * columns < least:
        scale = (least / (height * width)) ** 0.5
        rows = -int(-height * scale // factor) * factor
        columns = -int(-width * scale // factor) * factor
    return max(factor, rows), max(factor, columns)
