"""Clean label maps: labels at edges, majority votes, small components."""

import cv2
import numpy as np
from jaxtyping import Bool, Int32, Int64, UInt8, UInt16

_Labels = UInt16[np.ndarray, "h w"]


def label_from_beside(  # noqa: PLR0913  one picture, what is known of it, one number
    labels: _Labels,
    *,
    trusted: Bool[np.ndarray, "h w"],
    doubtful: Bool[np.ndarray, "h w"],
    colors: UInt8[np.ndarray, "h w 3"],
    palette: UInt8[np.ndarray, "n 3"],
    margin: float = np.inf,
) -> _Labels:
    """Give doubtful pixels a label that is seen beside them.

    A blurred edge runs through colours of its own, which may be those of a third entity. So such
    a pixel may only take the label of the nearest trusted pixel to its left, right, top or bottom,
    whichever label's colour is closest to its own. Without any, it keeps its label.

    Args:
        labels: Row of `palette` nearest to each pixel.
        trusted: Pixels that may give their label.
        doubtful: Pixels that take one; none of them trusted.
        colors: Denoised clip.
        palette: Colour of each label.
        margin: A pixel whose own label's colour is closer than the best one beside it by more than
            this (RGB distance) keeps its own.

    Returns:
        New labels.
    """
    height, width = trusted.shape
    at = np.flatnonzero(doubtful)
    rows, columns = np.divmod(at, width)
    left, right = _run_ends(~trusted, at=at)
    up, below = _run_ends(np.ascontiguousarray(~trusted.T), at=columns * height + rows)
    own = colors.reshape(-1, 3)[at].astype(np.int32)
    chosen = labels.ravel()[at]
    table = palette.astype(np.int32)
    best = np.full(len(at), np.iinfo(np.int32).max, np.int32)
    beside = chosen.copy()
    for y, x in ((rows, left), (rows, right), (up, columns), (below, columns)):
        exists = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        candidate = labels[y.clip(0, height - 1), x.clip(0, width - 1)]
        square = _squares(own - table[candidate])
        better = exists & (square < best)
        best[better] = square[better]
        beside[better] = candidate[better]
    if np.isfinite(margin):
        keeps = np.sqrt(_squares(own - table[chosen])) + margin < np.sqrt(best)
        beside[keeps] = chosen[keeps]
    result = labels.copy()
    result.ravel()[at] = beside
    return result


def _squares(difference: Int32[np.ndarray, "n 3"]) -> Int32[np.ndarray, " n"]:
    return np.einsum("nc,nc->n", difference, difference)


def _run_ends(
    marked: Bool[np.ndarray, "h w"], *, at: Int64[np.ndarray, " n"]
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """Column before and after the horizontal run of marked pixels that each pixel `at` is in.

    `at` are places in reading order, all of them marked; the answer is -1 or the width where the
    run touches the border.
    """
    width = marked.shape[1]
    places = np.flatnonzero(marked)
    column = places % width
    starts = np.ones(len(places), bool)
    starts[1:] = (np.diff(places) > 1) | (column[1:] == 0)
    first = np.flatnonzero(starts)
    lengths = np.diff(np.append(first, len(places)))
    run = np.searchsorted(places[first], at, side="right") - 1
    before = column[first][run] - 1
    return before, before + lengths[run] + 1


def vote(around: UInt16[np.ndarray, "s h w"]) -> _Labels:
    """Most frequent label of each 3x3 window over `s` frames (the middle one is answered).

    The own label wins ties, then the lowest.
    """
    frames, height, width = around.shape
    padded = np.pad(around, ((0, 0), (1, 1), (1, 1)), mode="edge")
    own = around[frames // 2]
    windows = [
        padded[s, y : y + height, x : x + width]
        for s in range(frames)
        for y in range(3)
        for x in range(3)
    ]
    agree = np.zeros(own.shape, np.uint8)
    for window in windows:
        agree += window == own
    # A strict majority cannot lose; only the few other pixels need a count of every label.
    rows, columns = np.nonzero(2 * agree <= len(windows))
    result = own.copy()
    if not len(rows):
        return result
    votes = np.stack([window[rows, columns] for window in windows], axis=1)
    votes.sort(axis=1)
    position = np.arange(votes.shape[1], dtype=np.int8)
    starts = np.ones(votes.shape, bool)
    starts[:, 1:] = votes[:, 1:] != votes[:, :-1]
    run = position - np.maximum.accumulate(np.where(starts, position, np.int8(0)), axis=1)
    longest = run.argmax(axis=1)
    pixel = np.arange(len(rows))
    wins = run[pixel, longest] + 1 > agree[rows, columns]
    result[rows[wins], columns[wins]] = votes[pixel, longest][wins]
    return result


def _components(labels: _Labels) -> tuple[np.ndarray, Int64[np.ndarray, " n"]]:
    """4-connected components of equal label: component of each pixel (int32), component sizes.

    OpenCV labels binary pictures only. On a grid of twice the size, pixels are nodes and the
    places between two pixels are open where their labels are equal.
    """
    height, width = labels.shape
    grid = np.zeros((2 * height - 1, 2 * width - 1), np.uint8)
    grid[::2, ::2] = 1
    grid[::2, 1::2] = labels[:, 1:] == labels[:, :-1]
    grid[1::2, ::2] = labels[1:] == labels[:-1]
    _, numbered = cv2.connectedComponents(grid, connectivity=4, ltype=cv2.CV_32S)
    component = np.ascontiguousarray(numbered[::2, ::2]) - 1  # 0 is the closed places
    return component, np.bincount(component.ravel())


def absorb_small(labels: _Labels, *, min_area: int) -> _Labels:
    """Give components of fewer than `min_area` pixels the label that most of their border touches.

    Components that touch only small ones wait for these to be absorbed, at most two rounds.
    """
    result = labels
    for _ in range(2):
        component, sizes = _components(result)
        small = sizes < min_area
        if not small.any():
            break
        result, left_over = _absorb_once(result, component=component, small=small)
        if not left_over:
            break
    return result


def _absorb_once(
    labels: _Labels, *, component: np.ndarray, small: Bool[np.ndarray, " n"]
) -> tuple[_Labels, bool]:
    """New labels, and whether a component touched none that is large."""
    height, width = labels.shape
    rows, columns = np.divmod(np.flatnonzero(small[component]), width)
    owners, touched = [], []
    for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        y, x = rows + dy, columns + dx
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        y, x = y[inside], x[inside]
        large = ~small[component[y, x]]
        owners.append(component[rows[inside], columns[inside]][large])
        touched.append(labels[y, x][large])
    # One number per (component, label) pair, so that unique() counts borders.
    pairs, borders = np.unique(
        np.concatenate(owners).astype(np.int64) << 16 | np.concatenate(touched), return_counts=True
    )
    order = np.argsort(borders, kind="stable")  # the last write is the longest border
    winner = np.full(len(small), -1, np.int64)
    winner[pairs[order] >> 16] = pairs[order] & 0xFFFF
    new = winner[component[rows, columns]]
    result = labels.copy()
    known = new >= 0
    result[rows[known], columns[known]] = new[known]
    return result, not known.all()
