"""What is measured of a clip's pictures, each a pure function of its frames.

All of them work on pictures shrunk to one height, so that a score means the same for a clip of 360
and of 1080 rows.
"""

from itertools import pairwise

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

WORKING_ROWS = 256
"""Rows of the pictures that are measured; what is smaller is left as it is."""

BLACK_LEVEL = 25
"""Luma below which ffmpeg's blackdetect calls a pixel black: its pix_th 0.10 of 255."""
BLACK_SHARE = 0.98
"""Share of black pixels from which it calls a picture black: its pic_th."""
_DARK_LEVEL, _BRIGHT_LEVEL = 5, 250
"""Full-range luma that 8 bits clip, give or take what a codec does to it."""
_STILL_LEVEL = 0.5
"""Mean difference of luma, of 255, up to which two pictures are the same one coded twice."""


def working_gray(
    frames: UInt8[np.ndarray, "t h w 3"], *, rows: int = WORKING_ROWS
) -> UInt8[np.ndarray, "t h2 w2"]:
    """Luma (BT.601, 0..255) at the working size, each pixel the mean of the area it covers."""
    return np.stack(
        [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in shrink(frames, rows=rows)]
    )


def shrink(
    frames: UInt8[np.ndarray, "t h w 3"], *, rows: int = WORKING_ROWS
) -> UInt8[np.ndarray, "t h2 w2 3"]:
    """Frames with at most so many rows, the aspect ratio kept."""
    height, width = frames.shape[1:3]
    if height <= rows:
        return frames
    size = (max(1, round(width * rows / height)), rows)
    return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames])


def sharpness(gray: UInt8[np.ndarray, "t h w"]) -> float:
    """Variance of the Laplacian (4-neighbour kernel), the median over the frames.

    0 for a plain picture; 50 to 3000 for sharp ones; below about 20 a picture is out of focus, or
    was enlarged.
    """
    return float(np.median([cv2.Laplacian(frame, cv2.CV_32F).var() for frame in gray]))


def exposure(gray: UInt8[np.ndarray, "t h w"]) -> tuple[float, float, float]:
    """(share of pixels clipped to black, share clipped to white, mean luma), each 0..1."""
    dark = np.mean(gray <= _DARK_LEVEL)
    bright = np.mean(gray >= _BRIGHT_LEVEL)
    return float(dark), float(bright), float(gray.mean() / 255)


def black_frames(gray: UInt8[np.ndarray, "t h w"]) -> float:
    """Share of black frames, 0..1, by the rule of ffmpeg's blackdetect."""
    return float(np.mean(np.mean(gray < BLACK_LEVEL, axis=(1, 2)) >= BLACK_SHARE))


def letterbox(gray: UInt8[np.ndarray, "t h w"]) -> float:
    """Share of the picture, 0..1, in black borders: rows and columns from an edge inwards.

    A row or column counts when `BLACK_SHARE` of its pixels are black over the whole clip, so that
    a caption within a bar does not hide it. 1 for a clip that is all black.
    """
    black = gray < BLACK_LEVEL
    rows = _kept(np.mean(black, axis=(0, 2)) >= BLACK_SHARE)
    # Within the rows that are left: a bar at the side may be lit above and below by nothing.
    columns = _kept(np.mean(black[:, rows], axis=(0, 1)) >= BLACK_SHARE) if rows.any() else rows
    return float(1 - rows.mean() * columns.mean())


def _kept(is_bar: Bool[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
    """Lines between the bars at both ends."""
    inside = np.flatnonzero(~is_bar)
    kept = np.zeros(len(is_bar), bool)
    if len(inside):
        kept[inside[0] : inside[-1] + 1] = True
    return kept


def still_steps(gray: UInt8[np.ndarray, "t h w"]) -> float:
    """Share of steps from frame to frame, 0..1, in which nothing changes: a slide, a frozen clip.

    1 for a single frame. Pictures count as the same up to half a level of mean luma difference,
    which is what a codec adds.
    """
    if len(gray) < 2:
        return 1.0
    changes = [cv2.norm(a, b, cv2.NORM_L1) / a.size for a, b in pairwise(gray)]
    return float(np.mean(np.asarray(changes) <= _STILL_LEVEL))
