"""Resize and crop RGB, ids and depth alike, so that their pixels stay on top of each other."""

import cv2
import numpy as np
from jaxtyping import UInt8, UInt16


def _crop_box(*, source: tuple[int, int], target: tuple[int, int]) -> tuple[int, int, int, int]:
    """(top, left, height, width) of the centred source area with the target's aspect ratio."""
    (height, width), (target_height, target_width) = source, target
    crop_height = min(height, max(1, round(width * target_height / target_width)))
    crop_width = min(width, max(1, round(height * target_width / target_height)))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def _fit(frames: np.ndarray, *, height: int, width: int, shrink: int, enlarge: int) -> np.ndarray:
    """Crop and resize, by OpenCV's method `shrink` or `enlarge`, whichever it comes to."""
    if frames.shape[1:3] == (height, width):
        return frames
    top, left, crop_height, crop_width = _crop_box(source=frames.shape[1:3], target=(height, width))
    crop = frames[:, top : top + crop_height, left : left + crop_width]
    way = shrink if crop_height >= height else enlarge
    return np.stack([cv2.resize(frame, (width, height), interpolation=way) for frame in crop])


def fit_rgb(
    rgb: UInt8[np.ndarray, "t h w 3"], *, height: int, width: int, anchor=(0.5, 0.5)
) -> UInt8[np.ndarray, "t height width 3"]:
    """Cover the target size and cut the rest away, centred.

    Args:
        rgb: Frames, 0..255.
        height: Wanted, pixels.
        width: Wanted, pixels.
    """
    # Area averages shrink without aliasing; enlarging, they repeat pixels.
    return _fit(rgb, height=height, width=width, shrink=cv2.INTER_AREA, enlarge=cv2.INTER_CUBIC)


def fit_ids(
    ids: UInt16[np.ndarray, "t h w"], *, height: int, width: int, anchor=(0.5, 0.5)
) -> UInt16[np.ndarray, "t height width"]:
    """`fit_rgb` for ids: the same area, each pixel the id at its centre, none invented."""
    # Plain INTER_NEAREST samples at the pixel's corner: half a pixel off the RGB.
    nearest = cv2.INTER_NEAREST_EXACT
    return _fit(ids, height=height, width=width, shrink=nearest, enlarge=nearest)


def fit_depth(
    depth: UInt16[np.ndarray, "t h w"], *, height: int, width: int, anchor=(0.5, 0.5)
) -> UInt16[np.ndarray, "t height width"]:
    """`fit_rgb` for depth, 0..65535; enlarged linearly, for a cubic overshoots at edges."""
    return _fit(depth, height=height, width=width, shrink=cv2.INTER_AREA, enlarge=cv2.INTER_LINEAR)
