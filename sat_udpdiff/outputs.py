"""Files of one generated sample, for eyes and for programs.

video.mp4            the video
dense.mp4            the dense map as generated, in colours (lossy: for viewing)
ids.npz, ids/        task segmentation: entity ids, and as indexed PNGs (0 = unlabelled)
depth.npz, depth/    task depth: disparity in (0, 1], 1 = near, and as 16-bit PNGs (65535 = 1)
side_by_side.mp4     video, map and what the map says
contact_sheet.png    the same over time, one row each
config.yaml          the configuration, as `--base` takes it
sample.json          everything needed to make the sample again
"""

import colorsys
import json
import shutil
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32, UInt8
from PIL import Image, ImageDraw, ImageFont

from data_loaders.decode import encode_rgb
from sat_udpdiff.config import Config, Task
from sat_udpdiff.config_io import save_config
from sat_udpdiff.generation import GeneratedSample

RECORD_FILE = "sample.json"
_SHEET_COLUMNS = 5
_TILE_WIDTH = 192
_LABEL_WIDTH = 92
_GAP = 4
_LINE = 16
_SIDE_BY_SIDE_HEIGHT = 192
_GOLDEN_RATIO = 0.618034


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class View:
    """One aspect of a sample as frames to look at."""

    name: str
    frames: UInt8[np.ndarray, "t h w 3"]


def write_sample(
    sample: GeneratedSample,
    folder: Path,
    *,
    config: Config,
    record: dict[str, Any],
    overwrite: bool = False,
) -> None:
    """Write all files of a sample; the folder appears complete or not at all.

    Args:
        sample: What was generated.
        folder: Where to; its parent is made if need be.
        config: The configuration of the run; `data.fps` is the speed of the videos.
        record: Content of sample.json.
        overwrite: Replace what is there.

    Raises:
        FileExistsError: The folder exists and `overwrite` is false.
    """
    if folder.exists() and not overwrite:
        raise FileExistsError(f"{folder}: exists already")
    staging = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        _write_videos(sample, staging, fps=config.data.fps)
        _write_product(sample, staging)
        contact_sheet(sample).save(staging / "contact_sheet.png", optimize=True)
        save_config(config, staging / "config.yaml")
        (staging / RECORD_FILE).write_text(
            json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        if folder.exists():
            shutil.rmtree(folder)
        staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def views(sample: GeneratedSample) -> list[View]:
    """The video, the dense map, and what the map says; the video alone without a map."""
    return views_of(
        sample.rgb,
        task=sample.task,
        dense=sample.dense,
        entity_ids=sample.entity_ids,
        depth=sample.depth,
    )


def views_of(
    rgb: UInt8[np.ndarray, "t h w 3"],
    *,
    task: Task | None,
    dense: UInt8[np.ndarray, "t h w 3"] | None,
    entity_ids: Int32[np.ndarray, "t h w"] | None,
    depth: Float32[np.ndarray, "t h w"] | None,
) -> list[View]:
    """`views` of the parts of a sample; those that are None are not shown."""
    shown = [View(name="video", frames=rgb)]
    if dense is not None:
        shown.append(View(name=f"{task} map", frames=dense))
    if entity_ids is not None:
        shown.append(View(name="entities", frames=paint_ids(entity_ids)))
    if depth is not None:
        gray = np.rint(depth * 255).astype(np.uint8)
        shown.append(View(name="depth, near = white", frames=gray[..., None].repeat(3, axis=-1)))
    return shown


def id_palette() -> UInt8[np.ndarray, "256 3"]:
    """Colours for looking at ids 0..255: 0 black, neighbours far apart in hue."""
    colors = [
        colorsys.hsv_to_rgb((k * _GOLDEN_RATIO) % 1, (0.85, 0.55)[k % 2], (1.0, 0.75)[k // 2 % 2])
        for k in range(1, 256)
    ]
    return np.rint(np.array([(0.0, 0.0, 0.0), *colors]) * 255).astype(np.uint8)


def paint_ids(entity_ids: Int32[np.ndarray, "t h w"]) -> UInt8[np.ndarray, "t h w 3"]:
    """Ids in the colours of `id_palette`; above 255 the colours repeat."""
    return id_palette()[np.where(entity_ids > 0, (entity_ids - 1) % 255 + 1, 0)]


def contact_sheet(sample: GeneratedSample) -> Image.Image:
    """One picture of a sample: a row per view, frames from the first to the last as columns."""
    rows = views(sample)
    num_frames, height, width = sample.rgb.shape[:3]
    columns = np.linspace(0, num_frames - 1, min(_SHEET_COLUMNS, num_frames)).round().astype(int)
    tile = (_TILE_WIDTH, max(1, round(_TILE_WIDTH * height / width)))
    size_x = _LABEL_WIDTH + len(columns) * (tile[0] + _GAP)
    seed = f"seed {sample.seed}" + (f", {sample.task}" if sample.task else "")
    title = [*textwrap.wrap(sample.prompt, width=size_x // 7), seed]
    top = _LINE * (len(title) + 2)
    sheet = Image.new("RGB", (size_x, top + len(rows) * (tile[1] + _GAP)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    draw.text((_GAP, _GAP), "\n".join(title), fill="black", font=font)
    for column, frame in enumerate(columns):
        x = _LABEL_WIDTH + column * (tile[0] + _GAP)
        draw.text((x, top - _LINE), f"frame {frame}", fill="gray", font=font)
        for row, view in enumerate(rows):
            y = top + row * (tile[1] + _GAP)
            sheet.paste(_resized(view.frames[frame], tile), (x, y))
            if column == 0:
                label = "\n".join(textwrap.wrap(view.name, width=12))
                draw.text((_GAP, y), label, fill="black", font=font)
    return sheet


def side_by_side(sample: GeneratedSample) -> UInt8[np.ndarray, "t h w 3"]:
    """All views in one video; small ones enlarged by a whole factor, so pixels stay pixels."""
    frames = np.concatenate([view.frames for view in views(sample)], axis=2)
    factor = -(-_SIDE_BY_SIDE_HEIGHT // frames.shape[1])
    return frames.repeat(factor, axis=1).repeat(factor, axis=2)


def _resized(frame: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]) -> Image.Image:
    enlarges = size[0] >= frame.shape[1]
    # Enlarging must not invent colours between the map's.
    how = Image.Resampling.NEAREST if enlarges else Image.Resampling.BOX
    return Image.fromarray(frame).resize(size, how)


def _write_videos(sample: GeneratedSample, folder: Path, *, fps: float) -> None:
    videos = {"video": sample.rgb}
    if sample.dense is not None:
        videos |= {"dense": sample.dense, "side_by_side": side_by_side(sample)}
    for name, frames in videos.items():
        (folder / f"{name}.mp4").write_bytes(encode_rgb(frames, fps=fps, codec="h264"))


def _write_product(sample: GeneratedSample, folder: Path) -> None:
    if sample.entity_ids is not None:
        np.savez_compressed(folder / "ids.npz", ids=sample.entity_ids)
        _write_frames(folder / "ids", [_ids_image(frame) for frame in sample.entity_ids])
    if sample.depth is not None:
        np.savez_compressed(folder / "depth.npz", depth=sample.depth)
        _write_frames(folder / "depth", [_depth_image(frame) for frame in sample.depth])


def _write_frames(folder: Path, images: list[Image.Image]) -> None:
    folder.mkdir()
    for number, image in enumerate(images):
        image.save(folder / f"{number:05d}.png")


def _ids_image(entity_ids: Int32[np.ndarray, "h w"]) -> Image.Image:
    """Pixel values are the ids; indexed, so that viewers show colours, while one byte is enough."""
    if entity_ids.max() > 255:
        return Image.fromarray(entity_ids.astype(np.uint16))
    image = Image.fromarray(entity_ids.astype(np.uint8))
    image.putpalette(id_palette().tobytes())
    return image


def _depth_image(depth: Float32[np.ndarray, "h w"]) -> Image.Image:
    return Image.fromarray(np.rint(depth * 65535).astype(np.uint16))
