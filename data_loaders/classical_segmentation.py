"""Entity ids without a model: superpixels of the first frame, carried on by optical flow.

For trying the whole program on one's own clips where no weights are at hand. It finds regions of
one colour, not entities, and drifts over a clip: not for results.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from jaxtyping import Int32, UInt8, UInt16
from scipy.ndimage import distance_transform_edt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from skimage.measure import label
from skimage.segmentation import felzenszwalb

from data_loaders.geometry import fit_ids, fit_rgb
from data_loaders.optical_flow import DenseFlow, gray_frames, warp_ids

BACKEND = "classical"


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassicalSettings:
    """Numbers of the classical backend."""

    rows: int = 240
    """Larger pictures are made this high to work on, pixels; ids are enlarged afterwards."""
    scale: float = 400.0
    """felzenszwalb: larger gives larger regions."""
    sigma: float = 1.2
    """felzenszwalb: blur before, pixels."""
    min_area: float = 0.0025
    """Regions below this share of the picture join a neighbour."""
    thinnest: int = 5
    """Parts of regions that are narrower, in pixels, join a neighbour: rims of objects."""
    merge_distance: float = 9.0
    """Neighbours whose mean CIELAB colours differ by less are merged; about 2 is just visible."""
    new_area: float = 0.02
    """Unlabelled share of a frame from which it is looked at anew."""
    most_entities: int = 60
    """Of a clip; what comes later stays unlabelled."""


def segment_clip(
    rgb: UInt8[np.ndarray, "t h w 3"], *, settings: ClassicalSettings | None = None
) -> UInt16[np.ndarray, "t h w"]:
    """Entity ids of a clip.

    Args:
        rgb: Frames, 0..255.
        settings: Numbers; None = the defaults.

    Returns:
        Ids from 1, the same through the clip; 0 = unlabelled.
    """
    settings = settings or ClassicalSettings()
    height, width = rgb.shape[1:3]
    rows = min(height, settings.rows)
    small = fit_rgb(rgb, height=rows, width=max(1, round(width * rows / height)))
    return fit_ids(_propagate(small, settings=settings), height=height, width=width)


def _propagate(
    rgb: UInt8[np.ndarray, "t h w 3"], *, settings: ClassicalSettings
) -> UInt16[np.ndarray, "t h w"]:
    ids = _number(segment_frame(rgb[0], settings=settings), most=settings.most_entities)
    flow = DenseFlow()
    gray = gray_frames(rgb)
    clip = [ids]
    least = max(4, round(settings.min_area * ids.size / 4))
    used = int(ids.max())
    for t in range(1, len(rgb)):
        # Backward: where each pixel of this frame was in the one before.
        motion = flow(gray[t], gray[t - 1])
        ids = _absorb_small(warp_ids(ids, motion=motion), least=least)
        if np.mean(ids == 0) > settings.new_area:
            regions = segment_frame(rgb[t], settings=settings)
            ids = _label_new(ids, regions=regions, used=used, most=settings.most_entities)
            used = max(used, int(ids.max()))
        clip.append(ids)
    return np.stack(clip)


def segment_frame(
    frame: UInt8[np.ndarray, "h w 3"], *, settings: ClassicalSettings
) -> Int32[np.ndarray, "h w"]:
    """Regions of one picture, numbered from 1: superpixels, neighbours of like colour merged."""
    least = max(4, round(settings.min_area * frame.shape[0] * frame.shape[1]))
    regions = felzenszwalb(
        frame, scale=settings.scale, sigma=settings.sigma, min_size=least, channel_axis=2
    )
    regions = _absorb_thin(regions.astype(np.int32) + 1, width=settings.thinnest)
    return merge_alike(regions, frame=frame, distance=settings.merge_distance)


def merge_alike(
    regions: Int32[np.ndarray, "h w"], *, frame: UInt8[np.ndarray, "h w 3"], distance: float
) -> Int32[np.ndarray, "h w"]:
    """Join neighbouring regions whose mean colours are alike, in chains too.

    Args:
        regions: Numbered from 1.
        frame: The picture.
        distance: Euclidean, in CIELAB, below which two colours are alike.

    Returns:
        Regions, numbered from 1.
    """
    lab = cv2.cvtColor(frame.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    labels = regions.ravel() - 1
    areas = np.maximum(np.bincount(labels), 1)
    means = np.stack([np.bincount(labels, lab[..., c].ravel()) / areas for c in range(3)], axis=1)
    sides = [(regions[:, 1:], regions[:, :-1]), (regions[1:], regions[:-1])]
    pairs = np.concatenate([np.stack([a.ravel(), b.ravel()], axis=1) for a, b in sides]) - 1
    pairs = np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0)
    alike = np.linalg.norm(means[pairs[:, 0]] - means[pairs[:, 1]], axis=1) < distance
    one, other = pairs[alike].T
    graph = coo_array((np.ones(len(one), bool), (one, other)), shape=(len(areas), len(areas)))
    _, joined = connected_components(graph, directed=False)
    return (joined[labels] + 1).astype(np.int32).reshape(regions.shape)


def _number(regions: Int32[np.ndarray, "h w"], *, most: int) -> UInt16[np.ndarray, "h w"]:
    """Regions as ids 1, 2, ... by falling area; those beyond `most` become 0."""
    areas = np.bincount(regions.ravel())
    order = np.argsort(-areas, kind="stable")
    order = order[areas[order] > 0][:most]
    table = np.zeros(len(areas), np.uint16)
    table[order] = np.arange(1, len(order) + 1)
    return table[regions]


def _label_new(
    ids: UInt16[np.ndarray, "h w"],
    *,
    regions: Int32[np.ndarray, "h w"],
    used: int,
    most: int,
) -> UInt16[np.ndarray, "h w"]:
    """Label what came into the picture: by the entity its region belongs to, or as a new one."""
    ids = ids.copy()
    for region in np.unique(regions[ids == 0]):
        inside = regions == region
        gap = inside & (ids == 0)
        known = np.bincount(ids[inside], minlength=1)
        known[0] = 0
        # A region that an entity holds a third of is that entity, seen further.
        if 3 * known.max() >= inside.sum():
            ids[gap] = known.argmax()
        elif used < most:
            used += 1
            ids[gap] = used
    return ids


def _absorb_thin(regions: Int32[np.ndarray, "h w"], *, width: int) -> Int32[np.ndarray, "h w"]:
    """Give parts that a width x width square does not fit into the label next to them."""
    square = np.ones((width, width), np.uint8)
    thick = np.zeros(regions.shape, bool)
    for region in np.unique(regions):
        mask = (regions == region).astype(np.uint8)
        thick |= cv2.morphologyEx(mask, cv2.MORPH_OPEN, square).astype(bool)
    return _take_nearest(regions, gaps=~thick)


def _absorb_small(ids: UInt16[np.ndarray, "h w"], *, least: int) -> UInt16[np.ndarray, "h w"]:
    """Give connected pieces (and holes) below `least` pixels the label next to them."""
    # +1: skimage takes 0 for background and would not number the unlabelled pieces.
    pieces = np.asarray(label(ids.astype(np.int32) + 1, connectivity=1))
    small = np.bincount(pieces.ravel(), minlength=1) < least
    gaps = small[pieces]
    return _take_nearest(ids, gaps=gaps)


def _take_nearest(labels: np.ndarray, *, gaps: np.ndarray) -> np.ndarray:
    if not gaps.any() or gaps.all():
        return labels
    nearest: Any = distance_transform_edt(gaps, return_distances=False, return_indices=True)
    return labels[tuple(nearest)]
