"""What the tests of the whole pipeline share: raw videos with a table, and tiny random models."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from data_loaders.clip_writer import write_shards
from data_loaders.decode import encode_rgb
from data_loaders.schema import Sample, SampleMeta
from data_loaders.synthetic import make_clip
from data_loaders.synthetic_scene import WorldConfig
from tests.data_loaders.panda_dense.tiny_caption import LENIENT, save_tiny_video_llava
from tests.data_loaders.panda_dense.tiny_depth import SMALL_DEPTHCRAFTER, save_tiny_depthcrafter
from tests.data_loaders.panda_dense.tiny_entities import (
    TINY_LONG_SIDE,
    TINY_MIN_SCORE,
    TINY_SHORT_SIDE,
    save_tiny_cropformer,
)
from tests.data_loaders.panda_dense.tiny_sam2 import save_tiny_sam2_video

FRAMES, HEIGHT, WIDTH, FPS = 5, 64, 96, 8.0
CLIP_SECONDS = 1.0

# Every clip is of some use, however small and short the world is.
CLIPS = [
    f"clip.num_frames={FRAMES}",
    f"clip.height={HEIGHT}",
    f"clip.width={WIDTH}",
    "select.thresholds.min_source_rows=null",
    "select.thresholds.min_sharpness=null",
    "select.thresholds.max_still=null",
    "select.thresholds.min_motion=null",
    "select.sample.per_video=null",
    "select.sample.most_held_out=0.4",
    "select.sample.held_out_clips=2",
    "write.samples_per_shard=2",
    "run.clips_per_part=2",
    "run.device=cpu",
    "run.wait_seconds=0.2",
]


def model_words(weights: Path) -> list[str]:
    """Settings for the weights of `save_models`."""
    words = {
        "segment.entityseg.weights": weights / "entities",
        "segment.entityseg.min_score": TINY_MIN_SCORE,
        "segment.entityseg.short_side": TINY_SHORT_SIDE,
        "segment.entityseg.long_side": TINY_LONG_SIDE,
        "propagate.sam2.weights": weights / "sam2",
        "propagate.min_coverage": 0,
        "depth.depthcrafter.unet": weights / "depthcrafter" / "unet",
        "depth.depthcrafter.base": weights / "depthcrafter" / "svd",
        "caption.captioner.weights": weights / "llava",
        "caption.captioner.clips_per_batch": 2,
    }
    words |= {f"depth.depthcrafter.{name}": value for name, value in SMALL_DEPTHCRAFTER.items()}
    words |= {f"caption.captioner.{name}": value for name, value in LENIENT.items()}
    return [f"{key}={value}" for key, value in words.items()]


def save_models(folder: Path) -> Path:
    """Tiny random models of the classes that the real weights have."""
    save_tiny_cropformer(folder / "entities")
    save_tiny_sam2_video(folder / "sam2")
    save_tiny_depthcrafter(folder / "depthcrafter")
    save_tiny_video_llava(folder / "llava")
    return folder


def save_videos(folder: Path, *, videos: int = 3, clips: int = 2) -> Path:
    """Source videos of some shots each, and Panda-70M's table of them, with what is wrong in it.

    Returns:
        The table, beside the folder.
    """
    folder.mkdir(parents=True)
    rows = []
    for number in range(videos):
        shots = [_shot(number * clips + clip) for clip in range(clips)]
        name = f"video_{number:02d}aaa"
        (folder / f"{name}.mp4").write_bytes(
            encode_rgb(np.concatenate(shots), fps=FPS, codec="h264")
        )
        rows.append(_row(name, spans=[(k, k + CLIP_SECONDS) for k in range(clips)]))
    black = np.zeros((8, HEIGHT, WIDTH, 3), np.uint8)
    (folder / "black_00aaa.mp4").write_bytes(encode_rgb(black, fps=FPS, codec="h264"))
    (folder / "short_00aaa.mp4").write_bytes(encode_rgb(_shot(0)[:3], fps=FPS, codec="h264"))
    (folder / "noise_00aaa.mp4").write_bytes(bytes(range(256)) * 40)
    others = ("black_00aaa", "short_00aaa", "noise_00aaa", "never_00aaa")
    rows += [_row(name, spans=[(0.0, CLIP_SECONDS)]) for name in others]
    table = folder.with_suffix(".csv")
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["videoID", "url", "timestamp", "caption", "matching_score"])
        writer.writerows(rows)
        writer.writerow(["broken_0aaa", "u", "[['0:00", "['a']", "[1]"])
    return table


def save_table(folder: Path, *, table: Path) -> None:
    """Panda-70M's table for videos that lie somewhere: two clips of a second each."""
    rows = [
        _row(path.stem, spans=[(0.0, 1.0), (1.0, 2.0)]) for path in sorted(folder.glob("*.mp4"))
    ]
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["videoID", "url", "timestamp", "caption", "matching_score"])
        writer.writerows(rows)


def save_crowd(folder: Path) -> None:
    """Shards with a clip of 200 entities, one of none, and one without any labels."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    ids = (rows * 10 // HEIGHT * 20 + columns * 20 // WIDTH + 1).astype(np.uint16)
    colours = rng.integers(0, 256, (201, 3), np.uint8)
    shape = (FRAMES, HEIGHT, WIDTH)
    depth = np.broadcast_to(np.linspace(0, 65535, WIDTH).astype(np.uint16), shape)

    def sample(key: str, ids: np.ndarray | None) -> Sample:
        rgb = colours[np.zeros(shape, int) if ids is None else ids]
        return Sample(
            key=key,
            rgb=np.ascontiguousarray(rgb),
            entity_ids=ids,
            depth=np.ascontiguousarray(depth) if ids is not None else None,
            caption_short=f"A {key}.",
            caption_long=f"A {key}.",
            fps=FPS,
            meta=SampleMeta(source="made"),
        )

    clip = np.broadcast_to(ids, shape).astype(np.uint16)
    write_shards([sample("crowd", clip), sample("nobody", clip * 0), sample("bare", None)], folder)


def _shot(number: int) -> np.ndarray:
    frames = round(CLIP_SECONDS * FPS)
    config = WorldConfig(frames=frames, height=HEIGHT, width=WIDTH, fps=FPS, max_entities=4)
    return make_clip(number, seed=3, config=config).rgb


def _row(name: str, *, spans: list[tuple[float, float]]) -> list[str]:
    stamps = [[_stamp(start), _stamp(end)] for start, end in spans]
    captions = [f"Something {k} moves in {name}." for k in range(len(spans))]
    url = f"https://www.youtube.com/watch?v={name}"
    return [name, url, repr(stamps), repr(captions), repr([0.5] * len(spans))]


def _stamp(seconds: float) -> str:
    return f"0:00:{seconds:06.3f}"
