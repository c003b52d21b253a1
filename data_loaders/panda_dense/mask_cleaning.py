"""Tidying entity ids: specks dropped, small holes and thin gaps closed, large gaps left black.

The paper fills "unlabelled areas" without numbers; ours come from what the network can show. A cell
of the video VAE's latents is 8 x 8 pixels of 480x720, a token of the network 16 x 16: what is
smaller cannot be learnt and is noise of the segmentation. Ids are never changed nor renumbered: an
entity whose every piece is a speck is missing from then on, and leaves a gap in the numbers.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, UInt16
from skimage.measure import label

from data_loaders.schema import DataError

_REFERENCE = 480 * 720


@dataclass(frozen=True, kw_only=True, slots=True)
class CleaningSettings:
    """Sizes, in pixels of 480x720; for other pictures they are scaled with the picture's area."""

    speck_area: int = 64
    """Smaller pieces of an entity are dropped, pixels: one 8 x 8 cell of the latents."""
    hole_area: int = 256
    """Smaller unlabelled pieces are filled, pixels: one 16 x 16 token of the network."""
    gap_width: int = 8
    """Unlabelled parts this narrow or narrower are closed, pixels: one cell of the latents."""


def check_cleaning(settings: CleaningSettings, *, section: str) -> None:
    """Check the values.

    Raises:
        DataError: A negative size, naming `section` and the field.
    """
    for name in ("speck_area", "hole_area", "gap_width"):
        value = getattr(settings, name)
        if value < 0:
            raise DataError(f"{section}.{name}: expected >= 0 pixels, got {value}")


def clean_masks(
    ids: UInt16[np.ndarray, "t h w"], *, settings: CleaningSettings | None = None
) -> UInt16[np.ndarray, "t h w"]:
    """Clean every frame by itself.

    In each frame: connected pieces (8 neighbours) of an entity below `speck_area` become
    unlabelled; then unlabelled pieces (4 neighbours) below `hole_area`, and those parts of larger
    ones into which no square wider than `gap_width` fits, get the label that is the fewest steps
    away. The rest stays 0, in its shape. Cleaning twice is cleaning once.

    Args:
        ids: 0 = unlabelled.
        settings: Sizes; None = the defaults.

    Returns:
        Cleaned ids, the same numbers as before. A frame without labels stays so.
    """
    settings = settings or CleaningSettings()
    scale = ids[0].size / _REFERENCE
    speck, hole = settings.speck_area * scale, settings.hole_area * scale
    gap = round(settings.gap_width * scale**0.5)
    return np.stack([_clean(frame, speck, hole, gap) for frame in ids])


def _clean(
    ids: UInt16[np.ndarray, "h w"], speck: float, hole: float, gap: int
) -> UInt16[np.ndarray, "h w"]:
    ids = _without_specks(ids, least=speck)
    # Closing a thin part can cut a large gap into small ones, which are closed in their turn.
    # Labels only grow here, so that there is an end.
    while (filled := _fill(ids, hole=hole, gap=gap)) is not ids:
        ids = filled
    return ids


def _without_specks(ids: UInt16[np.ndarray, "h w"], *, least: float) -> UInt16[np.ndarray, "h w"]:
    # Pieces of all entities at once; skimage numbers those of 0 as 0.
    pieces = np.asarray(label(ids, connectivity=2))
    small = np.bincount(pieces.ravel()) < least
    small[0] = False
    return np.where(small[pieces], np.uint16(0), ids) if small.any() else ids


def _fill(ids: UInt16[np.ndarray, "h w"], *, hole: float, gap: int) -> UInt16[np.ndarray, "h w"]:
    """One round of filling; `ids` itself where there is nothing to fill."""
    empty = ids == 0
    if not empty.any() or empty.all():
        return ids
    wanted = _small_pieces(empty, least=hole) | _narrow_parts(empty, width=gap)
    if not wanted.any():
        return ids
    filled = _grow(ids, into=wanted)
    return ids if np.array_equal(filled, ids) else filled


def _small_pieces(empty: Bool[np.ndarray, "h w"], *, least: float) -> Bool[np.ndarray, "h w"]:
    _, pieces, stats, _ = cv2.connectedComponentsWithStats(empty.astype(np.uint8), connectivity=4)
    small = stats[:, cv2.CC_STAT_AREA] < least
    small[0] = False  # the labelled pixels
    return np.asarray(small)[pieces.astype(np.intp)]


def _narrow_parts(empty: Bool[np.ndarray, "h w"], *, width: int) -> Bool[np.ndarray, "h w"]:
    if width < 1:
        return np.zeros_like(empty)
    square = np.ones((width + 1, width + 1), np.uint8)
    # Beyond the picture counts as labelled, so that strips along its border are narrow too. Where
    # a square fits stays as it is, where none does goes: unlike growing the labels by some pixels,
    # this leaves large gaps their shape.
    wide = cv2.morphologyEx(
        empty.astype(np.uint8),
        cv2.MORPH_OPEN,
        square,
        borderType=cv2.BORDER_CONSTANT,
        borderValue=0,  # pyright: ignore[reportArgumentType]
    )
    return empty & (wide == 0)


def _grow(
    ids: UInt16[np.ndarray, "h w"], *, into: Bool[np.ndarray, "h w"]
) -> UInt16[np.ndarray, "h w"]:
    """Let labels grow into the marked pixels, a step to all four sides at a time.

    By steps and not by straight distance: so every pixel is joined to the entity it is given to,
    and no new speck comes about.
    """
    padded = np.pad(ids, 1)
    line, columns = padded.reshape(-1), padded.shape[1]
    places = np.flatnonzero(np.pad(into, 1))
    while len(places):
        found = np.zeros(len(places), np.uint16)
        for step in (-1, 1, -columns, columns):
            found = np.where(found == 0, line[places + step], found)
        reached = found > 0
        if not reached.any():
            break
        line[places[reached]] = found[reached]
        places = places[~reached]
    return padded[1:-1, 1:-1]
