"""The location-aware colormap of UniGS (ablation of the paper's Tab. 6).

An entity's colour comes from a fixed grid over the frame: the cell of its centroid in the first
frame in which it is visible; the colour is kept afterwards. Entities of one cell share a colour,
the stated defect of this map, unless `next_free` is asked for.
"""

from typing import Literal

import numpy as np
from jaxtyping import Int32, Int64, Integer, UInt8

from sat_udpdiff.colormaps import pixelplanes
from sat_udpdiff.colormaps.clip_checks import check_entity_ids

Collisions = Literal["share", "next_free"]
_LEVELS = np.array([0, 64, 128, 192, 255], np.uint8)

PALETTE: UInt8[np.ndarray, "124 3"] = np.stack(np.meshgrid(*[_LEVELS] * 3, indexing="ij"), axis=-1)
PALETTE = PALETTE.reshape(-1, 3)[1:].copy()
"""{0, 64, 128, 192, 255}^3 without black, blue running fastest; cells take it row by row."""
PALETTE.flags.writeable = False


def _check(*, grid: int, collisions: str) -> None:
    if not 1 <= grid**2 <= len(PALETTE) or grid < 1:
        raise ValueError(f"grid: expected 1..11 (124 colours), got {grid}")
    if collisions not in ("share", "next_free"):
        raise ValueError(f"collisions: expected 'share' or 'next_free', got {collisions!r}")


def color_index(
    entity_ids: Integer[np.ndarray, "t h w"], *, grid: int = 11, collisions: Collisions = "share"
) -> dict[int, int]:
    """Row of `PALETTE` of each entity id that occurs.

    Raises:
        ValueError: Bad grid or rule, or `next_free` with more than 124 entities.
    """
    _check(grid=grid, collisions=collisions)
    largest = check_entity_ids(entity_ids)
    cells: dict[int, int] = {}
    for frame in entity_ids:
        cells.update(_new_cells(frame, grid=grid, known=cells, largest=largest))
    if collisions == "share":
        return cells
    if len(cells) > len(PALETTE):
        raise ValueError(f"next_free: expected at most {len(PALETTE)} entities, got {len(cells)}")
    taken: set[int] = set()
    for entity, cell in cells.items():  # in order of appearance, then of id
        while cell in taken:
            cell = (cell + 1) % len(PALETTE)
        taken.add(cell)
        cells[entity] = cell
    return cells


def _new_cells(
    frame: Integer[np.ndarray, "h w"], *, grid: int, known: dict[int, int], largest: int
) -> dict[int, int]:
    height, width = frame.shape
    flat = frame.ravel()
    pixels: Int64[np.ndarray, " k"] = np.bincount(flat, minlength=largest + 1)
    fresh = [int(e) for e in np.flatnonzero(pixels) if e and int(e) not in known]
    if not fresh:
        return {}
    sums = []
    for size, axis in ((height, 0), (width, 1)):
        # Pixel centres, so that a centroid lies strictly inside the frame.
        centers = np.expand_dims((np.arange(size) + 0.5) / size, 1 - axis)
        weights = np.broadcast_to(centers, frame.shape).ravel()
        sums.append(np.bincount(flat, weights=weights, minlength=largest + 1))
    cells = {}
    for entity in fresh:
        row, column = (int(s[entity] / pixels[entity] * grid) for s in sums)
        cells[entity] = row * grid + column
    return cells


def encode(
    entity_ids: Integer[np.ndarray, "t h w"], *, grid: int = 11, collisions: Collisions = "share"
) -> UInt8[np.ndarray, "t h w 3"]:
    """Paint a clip; id 0 is black.

    Args:
        entity_ids: Entity of each pixel, the same id over the clip.
        grid: Cells per side, 1..11.
        collisions: What entities of one cell do: share its colour, or take the next free one (by
            order of appearance, then of id).

    Raises:
        ValueError: See `color_index`; negative ids.
    """
    colors = colors_of(entity_ids, grid=grid, collisions=collisions)
    return pixelplanes.encode(entity_ids, colors=colors)


def colors_of(
    entity_ids: Integer[np.ndarray, "t h w"], *, grid: int, collisions: Collisions
) -> UInt8[np.ndarray, "n 3"]:
    """Colour of id k in row k - 1."""
    index = color_index(entity_ids, grid=grid, collisions=collisions)
    colors = np.zeros((max(index, default=0), 3), np.uint8)
    for entity, row in index.items():
        colors[entity - 1] = PALETTE[row]
    return colors


def decode(
    rgb: UInt8[np.ndarray, "t h w 3"],
    *,
    grid: int = 11,
    collisions: Collisions = "share",
    min_area: int | None = None,
) -> Int32[np.ndarray, "t h w"]:
    """Row of `PALETTE` + 1 of each pixel; 0 = unlabelled.

    With `share` that is the number of the grid cell (row by row, from 1) where the entity first
    stood; entities that shared a cell come back as one.

    Args:
        rgb: Painted clip.
        grid: As encoded; fewer cells are fewer colours to confuse.
        collisions: As encoded; `next_free` may use all 124 colours.
        min_area: See `pixelplanes.decode_with_palette`.

    Raises:
        ValueError: Bad grid, rule or clip.
    """
    used = used_colors(grid=grid, collisions=collisions)
    return pixelplanes.decode(rgb, palette=used, min_area=min_area)


def used_colors(*, grid: int, collisions: Collisions) -> UInt8[np.ndarray, "n 3"]:
    """The rows of `PALETTE` that a clip may be painted with."""
    _check(grid=grid, collisions=collisions)
    return PALETTE[: grid**2] if collisions == "share" else PALETTE
