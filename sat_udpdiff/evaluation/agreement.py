"""Does a dense map belong to its video? Measures that need no ground truth and no network.

Foreground is told from background by one rule for pictures and maps alike: with a camera that
stands still before a backdrop whose rows have one colour (the simple synthetic world), the median
of a row over columns and frames is its backdrop, and what differs from it is foreground. Boundaries
need no such assumption.
"""

import cv2
import numpy as np
from jaxtyping import Bool, Float64, UInt8

from sat_udpdiff.colormaps import depth

_FOREGROUND_DISTANCE = 40.0
"""RGB distance (0..441) from the backdrop: above the error of the codec, below that of things."""
_BOUNDARY_STEP = 40.0
_FLAT_RANGE = 24


def foreground(rgb: UInt8[np.ndarray, "t h w 3"]) -> Bool[np.ndarray, "t h w"]:
    """Pixels that differ from the median colour of their row by more than 40 (0..441)."""
    backdrop = np.median(rgb, axis=(0, 2)).astype(np.float32)  # (h, 3)
    distance = np.linalg.norm(rgb.astype(np.float32) - backdrop[:, None], axis=-1)
    return distance > _FOREGROUND_DISTANCE


def foreground_iou(rgb: UInt8[np.ndarray, "t h w 3"], dense: UInt8[np.ndarray, "t h w 3"]) -> float:
    """Intersection over union of the foregrounds of a video and a dense map, 0..1.

    Two empty foregrounds agree: 1.
    """
    of_rgb, of_dense = foreground(rgb), foreground(dense)
    union = int((of_rgb | of_dense).sum())
    return float((of_rgb & of_dense).sum() / union) if union else 1.0


def boundaries(rgb: UInt8[np.ndarray, "t h w 3"]) -> Bool[np.ndarray, "t h w"]:
    """Pixels whose right or lower neighbour differs by more than 40 in RGB (0..441)."""
    colours = rgb.astype(np.float32)
    edge = np.zeros(rgb.shape[:3], dtype=bool)
    edge[:, :, :-1] |= np.linalg.norm(np.diff(colours, axis=2), axis=-1) > _BOUNDARY_STEP
    edge[:, :-1] |= np.linalg.norm(np.diff(colours, axis=1), axis=-1) > _BOUNDARY_STEP
    return edge


def boundary_f(
    rgb: UInt8[np.ndarray, "t h w 3"], dense: UInt8[np.ndarray, "t h w 3"], *, tolerance: int = 2
) -> float:
    """F measure of the boundaries of a video and a dense map, 0..1, matched within `tolerance` px.

    Two videos without any boundary agree: 1.
    """
    of_rgb, of_dense = boundaries(rgb), boundaries(dense)
    if not of_rgb.any() and not of_dense.any():
        return 1.0
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * tolerance + 1, 2 * tolerance + 1))
    near_rgb, near_dense = (
        np.stack([cv2.dilate(frame.astype(np.uint8), kernel) > 0 for frame in edges])
        for edges in (of_rgb, of_dense)
    )
    precision = (of_dense & near_rgb).sum() / max(1, of_dense.sum())
    recall = (of_rgb & near_dense).sum() / max(1, of_rgb.sum())
    return float(2 * precision * recall / max(precision + recall, 1e-12))


def depth_map_distance(dense: UInt8[np.ndarray, "t h w 3"]) -> float:
    """Mean RGB distance (0..441) of the pixels to the nearest colour of the depth colormap."""
    return float(depth.distance_to_map(dense).mean())


def flat_share(dense: UInt8[np.ndarray, "t h w 3"]) -> float:
    """Share of pixels in whose 3x3 neighbourhood no channel ranges over more than 24 of 255.

    Near 1 for a piecewise-constant map; a shaded or ramped one has less.
    """
    kernel = np.ones((3, 3), dtype=np.uint8)
    flat = [
        (cv2.dilate(frame, kernel).astype(np.int16) - cv2.erode(frame, kernel)).max(-1)
        <= _FLAT_RANGE
        for frame in dense
    ]
    return float(np.mean(flat))


def frame_consistency(rgb: UInt8[np.ndarray, "t h w 3"], *, cell: int = 8) -> float:
    """Consistency of the frames, -1..1: VBench's subject consistency on coarse pixels.

    VBench takes DINO features; where no weights are to be had, the feature of a frame is its
    mean colours over `cell` x `cell` pixels, centred over the clip's channels. Each frame but the
    first counts with the mean of its cosine similarities to the first and to the previous frame.
    Not comparable with VBench's numbers.

    Raises:
        ValueError: The clip has less than two frames.
    """
    if len(rgb) < 2:
        raise ValueError(f"frame consistency: expected 2 or more frames, got {len(rgb)}")
    feature = np.stack([_coarse(frame, cell=cell) for frame in rgb])
    feature -= feature.mean(axis=(0, 1), keepdims=True)
    feature = feature.reshape(len(rgb), -1)
    feature /= np.maximum(np.linalg.norm(feature, axis=1, keepdims=True), 1e-12)
    to_first, to_previous = feature[1:] @ feature[0], (feature[1:] * feature[:-1]).sum(1)
    return float(((to_first + to_previous) / 2).mean())


def _coarse(frame: np.ndarray, *, cell: int) -> Float64[np.ndarray, "cells 3"]:
    rows, columns = max(1, frame.shape[0] // cell), max(1, frame.shape[1] // cell)
    small = cv2.resize(frame.astype(np.float64), (columns, rows), interpolation=cv2.INTER_AREA)
    return small.reshape(-1, 3)
