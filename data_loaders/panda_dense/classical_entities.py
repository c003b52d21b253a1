"""First-frame entities without a model: superpixels, neighbours of like colour merged.

For trying the whole program on one's own clips where no weights are at hand. It finds regions of
one colour, not entities: not for results.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from jaxtyping import Int32, UInt8, UInt16
from scipy.ndimage import distance_transform_edt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from skimage.segmentation import felzenszwalb

from data_loaders.geometry import fit_ids, fit_rgb
from data_loaders.panda_dense.entity_masks import FirstFrame
from data_loaders.panda_dense.models import ModelFacts, Pieces, library_version

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
    most_entities: int = 60
    """The largest; the rest stays unlabelled."""


class ClassicalSegmenter:
    """Regions of one colour in single pictures.

    Args:
        settings: Numbers; None = the defaults.
    """

    def __init__(self, settings: ClassicalSettings | None = None):
        self.facts = ModelFacts(backend=BACKEND, version=library_version("scikit-image"))
        self._settings = settings or ClassicalSettings()
        self.pieces = Pieces(1)  # it fills no device

    def segment(self, frames: UInt8[np.ndarray, "b h w 3"]) -> list[FirstFrame]:
        """Entities of each frame, ids from 1 by falling area; no scores, so each is 1.

        Args:
            frames: RGB, 0..255.
        """
        found = [segment_picture(frame, settings=self._settings) for frame in frames]
        return [FirstFrame(ids=ids, scores=(1.0,) * int(ids.max())) for ids in found]


def segment_picture(
    frame: UInt8[np.ndarray, "h w 3"], *, settings: ClassicalSettings
) -> UInt16[np.ndarray, "h w"]:
    """Regions of a picture of any size, the largest first.

    Args:
        frame: RGB, 0..255.
        settings: Numbers.

    Returns:
        Ids from 1 by falling area; 0 beyond `most_entities` of them.
    """
    height, width = frame.shape[:2]
    rows = min(height, settings.rows)
    small = fit_rgb(frame[None], height=rows, width=max(1, round(width * rows / height)))[0]
    ids = _number(segment_frame(small, settings=settings), most=settings.most_entities)
    return fit_ids(ids[None], height=height, width=width)[0]


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


def _absorb_thin(regions: Int32[np.ndarray, "h w"], *, width: int) -> Int32[np.ndarray, "h w"]:
    """Give parts that a width x width square does not fit into the label next to them."""
    square = np.ones((width, width), np.uint8)
    thick = np.zeros(regions.shape, bool)
    for region in np.unique(regions):
        mask = (regions == region).astype(np.uint8)
        thick |= cv2.morphologyEx(mask, cv2.MORPH_OPEN, square).astype(bool)
    return _take_nearest(regions, gaps=~thick)


def _take_nearest(labels: np.ndarray, *, gaps: np.ndarray) -> np.ndarray:
    if not gaps.any() or gaps.all():
        return labels
    nearest: Any = distance_transform_edt(gaps, return_distances=False, return_indices=True)
    return labels[tuple(nearest)]
