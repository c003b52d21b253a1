"""Pixelplanes: every entity of a clip is painted in one random colour, the same in all frames.

Unlabelled pixels (id 0) are black, and black is never drawn. Decoding is in `pixelplanes_decode.py`
and available here.
"""

import cv2
import numpy as np
from jaxtyping import Integer, UInt8

from sat_udpdiff.colormaps.clip_checks import check_entity_ids
from sat_udpdiff.colormaps.pixelplanes_decode import (
    DecodedSegmentation,
    decode,
    decode_with_palette,
)

__all__ = [
    "DecodedSegmentation",
    "decode",
    "decode_with_palette",
    "draw_colors",
    "encode",
]

_TRIES = 2000


def draw_colors(
    num_entities: int, *, generator: np.random.Generator, min_distance: float = 0.0
) -> UInt8[np.ndarray, "n 3"]:
    """Draw one colour per entity, each channel an integer in [0, 255], none of them twice.

    Args:
        num_entities: Colours to draw, >= 0.
        generator: Source of randomness; colours are a pure function of its state.
        min_distance: Least RGB distance (0..441) between two colours, and from each to black.
            0 is the paper's rule: unique, and not black.

    Raises:
        ValueError: The distance is negative, or so many colours so far apart were not found.
    """
    if num_entities < 0 or min_distance < 0:
        raise ValueError(
            f"draw_colors: expected num_entities >= 0 and min_distance >= 0, got {num_entities} "
            f"and {min_distance}"
        )
    least_square = max(min_distance**2, 1.0)
    taken = np.zeros((num_entities + 1, 3), np.int64)  # row 0 is black
    for row in range(1, num_entities + 1):
        # Trying in blocks keeps the draw fast when the cube is nearly full.
        for block in (8, 64, _TRIES):
            drawn = generator.integers(0, 256, size=(block, 3))
            squares = ((drawn[:, None] - taken[:row]) ** 2).sum(axis=-1).min(axis=1)
            fits = np.flatnonzero(squares >= least_square)
            if len(fits):
                taken[row] = drawn[fits[0]]
                break
        else:
            raise ValueError(
                f"draw_colors: {num_entities} colours at min_distance {min_distance:g} were not "
                f"found, {row - 1} fitted; lower min_distance"
            )
    return taken[1:].astype(np.uint8)


def check_range(*, largest: int, num_colors: int) -> None:
    """Raise ValueError where the largest id has no colour."""
    if largest > num_colors:
        raise ValueError(f"entity_ids: expected ids <= {num_colors} (colours), got {largest}")


def encode(
    entity_ids: Integer[np.ndarray, "t h w"], *, colors: UInt8[np.ndarray, "n 3"]
) -> UInt8[np.ndarray, "t h w 3"]:
    """Paint a clip: id k in `colors[k - 1]`, id 0 in black.

    Raises:
        ValueError: An id is negative or has no colour.
    """
    check_range(largest=check_entity_ids(entity_ids), num_colors=len(colors))
    table = np.zeros((len(colors) + 1, 4), np.uint8)
    table[1:, :3] = colors
    # One gather of 32-bit pixels is faster than one of 3-byte rows.
    packed = table.view(np.uint32)[:, 0]
    rgb = np.empty((*entity_ids.shape, 3), np.uint8)
    for t, ids in enumerate(entity_ids):
        # Copies three of four bytes, a third of the time of a strided assignment.
        cv2.cvtColor(packed.take(ids)[..., None].view(np.uint8), cv2.COLOR_BGRA2BGR, dst=rgb[t])
    return rgb
