"""Nearest colour of a palette, exact for every 8-bit RGB value, by table look-up."""

import cv2
import numpy as np
from jaxtyping import Int32, Int64, UInt8, UInt16

_CELL = 16  # colours per side of a cell; 4096 cells share the cube of 2^24 colours
_UNKNOWN = np.uint16(0xFFFF)
_KEY_BITS = 13
COARSE_BINS = 64
COARSE_WIDTH = 256 // COARSE_BINS
"""8-bit levels per bin of the coarse colour cube."""
MAX_COLORS = 1 << _KEY_BITS
"""Squared distance (18 bits) and index travel in one int32."""


def _cell_bounds(
    values: Int64[np.ndarray, " n"], *, cells: Int64[np.ndarray, " m"]
) -> tuple[Int64[np.ndarray, "m n"], Int64[np.ndarray, "m n"]]:
    """Smallest and largest squared distance of each value to each 16-wide interval."""
    low = cells[:, None] * _CELL
    high = low + _CELL - 1
    below, above = low - values, values - high
    nearest = np.maximum(np.maximum(below, above), 0)
    farthest = np.maximum(np.abs(below), np.abs(above))
    return nearest**2, farthest**2


class NearestColor:
    """Index of the nearest palette colour (Euclidean, RGB), lowest index on ties.

    The table of all 2^24 colours takes seconds to fill, a clip touches few of them. It is filled in
    cells of 16^3 colours, when a colour of the cell is first asked for; a cell compares only those
    palette colours that can win somewhere in it. Threads may share one object: two of them that
    fill the same cell write the same values, so no cell is skipped because another began it.

    Args:
        palette: Colours, 1 to 8192 of them.

    Raises:
        ValueError: The palette has a wrong shape or size.
    """

    def __init__(self, palette: UInt8[np.ndarray, "n 3"]) -> None:
        if palette.ndim != 2 or palette.shape[1] != 3 or not 1 <= len(palette) <= MAX_COLORS:
            raise ValueError(f"palette: expected (n, 3), n in 1..{MAX_COLORS}, got {palette.shape}")
        self.palette = palette
        self._table = np.full(1 << 24, _UNKNOWN, np.uint16)  # index: blue << 16 | green << 8 | red

    def __call__(self, rgb: UInt8[np.ndarray, "h w 3"]) -> UInt16[np.ndarray, "h w"]:
        """Index of the nearest palette colour of each pixel."""
        codes = pack(rgb)
        index = self._table.take(codes)
        missing = index == _UNKNOWN
        if missing.any():
            self._fill(codes[missing])
            index = self._table.take(codes)
        return index

    def full_table(self) -> UInt16[np.ndarray, "256 256 256"]:
        """The whole table, indexed [blue, green, red]; fills what is missing (about a second)."""
        every_cell = np.stack(np.meshgrid(*[np.arange(0, 256, _CELL)] * 3), -1).reshape(-1, 3)
        self._fill(every_cell @ np.array([1, 1 << 8, 1 << 16]))
        return self._table.reshape(256, 256, 256)

    def _fill(self, codes: np.ndarray) -> None:
        cube = self._table.reshape(16, _CELL, 16, _CELL, 16, _CELL)
        cells = np.unique((codes >> 20 << 8) | (codes >> 12 & 15) << 4 | (codes >> 4 & 15))
        cells = cells.astype(np.int64)  # codes may be unsigned, distances may not
        blue, green, red = cells >> 8, cells >> 4 & 15, cells & 15
        near = far = np.int64(0)
        for channel, cell in enumerate((red, green, blue)):
            bounds = _cell_bounds(self.palette[:, channel].astype(np.int64), cells=cell)
            near, far = near + bounds[0], far + bounds[1]
        candidates = near <= far.min(axis=1, keepdims=True)
        for b, g, r, mask in zip(blue, green, red, candidates, strict=True):
            cube[b, :, g, :, r, :] = self._nearest_in_cell(b, g, r, np.flatnonzero(mask))

    def _nearest_in_cell(
        self, b: np.integer, g: np.integer, r: np.integer, candidates: Int64[np.ndarray, " m"]
    ) -> Int32[np.ndarray, "16 16 16"]:
        colors = self.palette[candidates].astype(np.int32)
        offsets = np.arange(_CELL, dtype=np.int32)
        squares = [
            (int(cell) * _CELL + offsets - colors[:, channel, None]) ** 2
            for channel, cell in enumerate((r, g, b))
        ]
        # The index in the low bits makes one minimum both argmin and tie-break.
        key = (squares[2] << _KEY_BITS | candidates[:, None].astype(np.int32))[:, :, None, None] + (
            (squares[1][:, :, None] + squares[0][:, None, :]) << _KEY_BITS
        )[:, None]
        return key.min(axis=0) & (MAX_COLORS - 1)


def pack(rgb: UInt8[np.ndarray, "h w 3"]) -> np.ndarray:
    """Each pixel as one number, blue << 16 | green << 8 | red, uint32 (h, w)."""
    # OpenCV's conversion is several times faster than three strided shifts.
    padded = cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2RGBA)
    return padded.view("<u4")[..., 0] & np.uint32(0xFFFFFF)


def coarse_codes(rgb: UInt8[np.ndarray, "h w 3"]) -> np.ndarray:
    """Bin of each pixel among 64^3: blue << 12 | green << 6 | red, uint32 (h, w)."""
    codes = pack(rgb)
    return (codes >> 6 & 0x3F000) | (codes >> 4 & 0xFC0) | (codes >> 2 & 0x3F)


def coarse_nearest(palette: UInt8[np.ndarray, "n 3"]) -> UInt16[np.ndarray, " 262144"]:
    """Nearest palette colour of the centre of each bin of `coarse_codes`.

    Off by at most 2 levels per channel, far below the noise it is used under, and small enough to
    stay in the processor's cache.
    """
    centers = (np.arange(COARSE_BINS) * COARSE_WIDTH + (COARSE_WIDTH - 1) / 2).astype(np.float32)
    red, green, blue = ((centers - c[:, None]) ** 2 for c in palette.T.astype(np.float32))
    plane = green[:, :, None] + red[:, None, :]
    table = np.empty((COARSE_BINS,) * 3, np.uint16)
    for level in range(COARSE_BINS):
        table[level] = (plane + blue[:, level, None, None]).argmin(axis=0)
    return table.reshape(-1)
