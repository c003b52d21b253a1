"""Samples of all networks side by side: one picture per prompt, the same seed in every row."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

_FRAMES = 4
_TILE_WIDTH = 120
_LABEL_WIDTH = 150
_GAP, _LINE = 3, 15


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Strip:
    """One row of a sheet."""

    label: str
    rgb: UInt8[np.ndarray, "t h w 3"]
    dense: UInt8[np.ndarray, "t h w 3"] | None


def sheet(strips: Sequence[Strip], *, title: str) -> Image.Image:
    """Frames of every video from first to last, then those of its dense map.

    Args:
        strips: At least one; all of one size.
        title: The prompt.
    """
    count, height, width = strips[0].rgb.shape[:3]
    times = np.linspace(0, count - 1, min(_FRAMES, count)).round().astype(int)
    tile = (_TILE_WIDTH, max(1, round(_TILE_WIDTH * height / width)))
    font = ImageFont.load_default()
    columns = 2 * len(times)
    lines = textwrap.wrap(title, width=(_LABEL_WIDTH + columns * _TILE_WIDTH) // 6)
    top = _GAP + _LINE * len(lines)
    size = (
        _LABEL_WIDTH + columns * (tile[0] + _GAP) + _GAP,
        top + len(strips) * (tile[1] + _GAP) + _GAP,
    )
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    for number, line in enumerate(lines):
        draw.text((_GAP, _GAP + number * _LINE), line, fill="black", font=font)
    for number, strip in enumerate(strips):
        y = top + _GAP + number * (tile[1] + _GAP)
        label = "\n".join(textwrap.wrap(strip.label, width=24))
        draw.text((_GAP, y), label, fill="black", font=font)
        shown = [strip.rgb[t] for t in times]
        shown += [] if strip.dense is None else [strip.dense[t] for t in times]
        for column, frame in enumerate(shown):
            # Pixels stay pixels where they are enlarged.
            how = Image.Resampling.NEAREST if width <= tile[0] else Image.Resampling.BOX
            place = (_LABEL_WIDTH + column * (tile[0] + _GAP), y)
            picture.paste(Image.fromarray(frame).resize(tile, how), place)
    return picture
