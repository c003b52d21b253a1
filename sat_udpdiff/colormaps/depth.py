"""Depth as colours: disparity d in [0, 1] painted with matplotlib's `Spectral_r`, near (1) = red.

The same picture is `Spectral` on depth (near = 0). Decoding is the nearest of the sampled colours
per pixel; the paper samples P_c = P_d(k / 256), k = 1..256.
"""

from functools import lru_cache
from typing import Literal

import cv2
import numpy as np
from jaxtyping import Bool, Float32, UInt8, UInt16

from sat_udpdiff.colormaps.clip_checks import check_rgb_clip
from sat_udpdiff.colormaps.nearest_color import NearestColor

Inverse = Literal["paper", "midbin"]

# ColorBrewer's 11-class Spectral, the anchors of matplotlib's map of that name.
_ANCHORS = (
    (158, 1, 66),
    (213, 62, 79),
    (244, 109, 67),
    (253, 174, 97),
    (254, 224, 139),
    (255, 255, 191),
    (230, 245, 152),
    (171, 221, 164),
    (102, 194, 165),
    (50, 136, 189),
    (94, 79, 162),
)
NUM_COLORS = 256


def _spectral_r() -> UInt8[np.ndarray, "256 3"]:
    # matplotlib's order of operations, reversed anchors first: rounding decides entry 68.
    anchors = np.array(_ANCHORS[::-1], np.float64) / 255.0
    at = (NUM_COLORS - 1) * (1 - np.linspace(0.0, 1.0, len(anchors)))[::-1]
    entries = (NUM_COLORS - 1) * np.linspace(0.0, 1.0, NUM_COLORS)
    upper = np.searchsorted(at, entries)[1:-1]
    share = (entries[1:-1] - at[upper - 1]) / (at[upper] - at[upper - 1])
    inner = share[:, None] * (anchors[upper] - anchors[upper - 1]) + anchors[upper - 1]
    table = np.concatenate([anchors[:1], inner, anchors[-1:]])
    return (table * 255).astype(np.uint8)


COLORS: UInt8[np.ndarray, "256 3"] = _spectral_r()
"""Colour of each of the 256 bins of d; bin i holds d in [i / 256, (i + 1) / 256)."""
COLORS.flags.writeable = False


def encode(depth: Float32[np.ndarray, "t h w"]) -> UInt8[np.ndarray, "t h w 3"]:
    """Paint disparity.

    Args:
        depth: Disparity in [0, 1]; 1 = near. Values outside are clipped, as matplotlib does.

    Raises:
        ValueError: `depth` is not finite.
    """
    rgb = np.empty((*depth.shape, 3), np.uint8)
    table = np.zeros((NUM_COLORS, 4), np.uint8)
    table[:, :3] = COLORS
    packed = table.view(np.uint32)[:, 0]
    for t, frame in enumerate(depth):
        low, high = frame.min(), frame.max()
        if not np.isfinite(low + high):
            raise ValueError("depth: expected finite disparity in [0, 1], got nan or infinity")
        index = np.clip(frame * np.float32(NUM_COLORS), 0, NUM_COLORS - 1).astype(np.uint8)
        # Copies three of four bytes, a third of the time of a strided assignment.
        cv2.cvtColor(packed.take(index)[..., None].view(np.uint8), cv2.COLOR_BGRA2BGR, dst=rgb[t])
    return rgb


@lru_cache(maxsize=2)
def nearest_sample(inverse: Inverse) -> NearestColor:
    """The search for the nearest of the sampled colours of an inverse."""
    return NearestColor(COLORS if inverse == "midbin" else COLORS[1:])


def sample_values(inverse: Inverse) -> Float32[np.ndarray, " n"]:
    """Disparity of each row of the palette searched.

    midbin: all 256 bins, (i + 1/2) / 256. paper: k / 256, k = 1..255; the map paints k = 256 in the
    colour of k = 255, and bin 0 is not among the paper's samples.
    """
    if inverse == "midbin":
        return ((np.arange(NUM_COLORS) + 0.5) / NUM_COLORS).astype(np.float32)
    if inverse == "paper":
        return (np.arange(1, NUM_COLORS) / NUM_COLORS).astype(np.float32)
    raise ValueError(f"inverse: expected 'paper' or 'midbin', got {inverse!r}")


def decode(
    rgb: UInt8[np.ndarray, "t h w 3"],
    *,
    inverse: Inverse = "midbin",
    reject_distance: float | None = None,
) -> Float32[np.ndarray, "t h w"]:
    """Disparity of the nearest colour of the map, per pixel.

    Args:
        rgb: Painted clip.
        inverse: Value of a colour. `midbin`: centre of its bin, largest error 1/512; `paper`:
            k / 256 for k = 1..255, largest error 1/256.
        reject_distance: Pixels farther than this (RGB, 0..441) from every colour of the map, such
            as the mixed colours at edges, take the median of their trusted 3x3 neighbours, from
            the rim inwards. About 25 suits compressed video. None = trust all.

    Returns:
        Disparity in (0, 1], 1 = near.

    Raises:
        ValueError: Wrong shape, dtype or name of the inverse.
    """
    check_rgb_clip(rgb)
    values = sample_values(inverse)
    nearest = nearest_sample(inverse)
    depth = np.empty(rgb.shape[:3], np.float32)
    for frame, out in zip(rgb, depth, strict=True):
        index = nearest(frame)
        values.take(index, out=out, mode="clip")  # "raise" would buffer the whole output
        if reject_distance is not None:
            trusted = _squared_distance(frame, index, nearest.palette) <= reject_distance**2
            _refill(out, trusted=trusted)
    return depth


def distance_to_map(rgb: UInt8[np.ndarray, "t h w 3"]) -> Float32[np.ndarray, "t h w"]:
    """RGB distance (0..441) of each pixel to the nearest colour of the map."""
    check_rgb_clip(rgb)
    nearest = nearest_sample("midbin")
    squares = np.stack([_squared_distance(f, nearest(f), nearest.palette) for f in rgb])
    return np.sqrt(squares, dtype=np.float32)


def _squared_distance(
    frame: UInt8[np.ndarray, "h w 3"],
    index: UInt16[np.ndarray, "h w"],
    palette: UInt8[np.ndarray, "n 3"],
) -> np.ndarray:
    difference = frame.astype(np.int32) - palette.astype(np.int32)[index]
    return np.einsum("hwc,hwc->hw", difference, difference)


def _refill(depth: Float32[np.ndarray, "h w"], *, trusted: Bool[np.ndarray, "h w"]) -> None:
    """Replace untrusted pixels, ring by ring, by the median of trusted neighbours; in place."""
    height, width = depth.shape
    values = np.full((height + 2, width + 2), np.nan, np.float32)
    values[1:-1, 1:-1] = np.where(trusted, depth, np.nan)
    rows, columns = np.nonzero(~trusted)
    shifts = [(y, x) for y in range(3) for x in range(3) if (y, x) != (1, 1)]
    while len(rows):
        around = np.stack([values[rows + y, columns + x] for y, x in shifts])
        reached = np.isfinite(around).any(axis=0)
        if not reached.any():  # a frame without any trusted pixel stays as decoded
            return
        filled = np.nanmedian(around[:, reached], axis=0)
        values[rows[reached] + 1, columns[reached] + 1] = filled
        depth[rows[reached], columns[reached]] = filled
        rows, columns = rows[~reached], columns[~reached]
