"""Clean label maps: labels at edges, majority votes, small components."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8, UInt16
from scipy import sparse
from scipy.sparse import csgraph

from sat_udpdiff.colormaps.palette_search import square_to_segment

_Labels = UInt16[np.ndarray, "h w"]
_SHADE = 48.0
"""RGB distance within which two colours may be shades of one entity."""
_SHADE_STEP = 0.7
"""Share of their distance that a border of two entities covers at least, in three pixels."""
_SHADE_BORDERS = 8
"""Fewer places where two labels meet tell nothing."""


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
    at = np.flatnonzero(doubtful)
    excess = _Excess(colors.reshape(-1, 3)[at].astype(np.float32), palette=palette)
    chosen = labels.ravel()[at]
    beside, best = chosen.copy(), np.full(len(at), np.inf, np.float32)
    for candidate in _labels_beside(labels, trusted=trusted, at=at, outside=len(palette)):
        square = excess(candidate)
        better = square < best
        best = np.minimum(best, square)
        beside = np.where(better, candidate, beside)
    if np.isfinite(margin):
        keeps = np.sqrt(excess.whole(excess(chosen))) + margin < np.sqrt(excess.whole(best))
        beside = np.where(keeps, chosen, beside)
    result = labels.copy()
    result.ravel()[at] = beside
    return result


def find_unmixed(
    labels: _Labels,
    *,
    flat: Bool[np.ndarray, "h w"],
    colors: UInt8[np.ndarray, "h w 3"],
    palette: UInt8[np.ndarray, "n 3"],
    tolerance: float,
) -> Bool[np.ndarray, "h w"]:
    """Pixels that are not flat, but farther than `tolerance` from every mixture beside them.

    Entities of a few pixels have no flat ones. No edge between the labels beside their middle
    (RGB distance to the line between two colours, own label apart) explains its colour.

    Args:
        labels: Row of `palette` nearest to each pixel.
        flat: Pixels whose label is trusted.
        colors: Denoised clip.
        palette: Colour of each label.
        tolerance: Reach of noise.

    Returns:
        Such pixels.
    """
    table = palette.astype(np.float32)
    at = np.flatnonzero(~flat)
    own = colors.reshape(-1, 3)[at].astype(np.float32)
    nearest = np.full(len(at), np.inf, np.float32)
    beside = list(_labels_beside(labels, trusted=flat, at=at, outside=len(palette)))
    for first, second in combinations(beside, 2):
        exist = (first < len(palette)) & (second < len(palette))
        ends = [table[label.clip(0, len(palette) - 1)] for label in (first, second)]
        square = square_to_segment(own, start=ends[0], end=ends[1])
        nearest = np.where(exist, np.minimum(nearest, square), nearest)
    unmixed = np.zeros(flat.shape, bool)
    unmixed.ravel()[at[nearest > tolerance**2]] = True
    return unmixed


def _labels_beside(
    labels: _Labels,
    *,
    trusted: Bool[np.ndarray, "h w"],
    at: Int64[np.ndarray, " n"],
    outside: int,
) -> Iterator[UInt16[np.ndarray, " n"]]:
    """Label of the nearest trusted pixel left, right, above and below each place; or `outside`."""
    height, width = trusted.shape
    rows, columns = np.divmod(at, width)
    left, right = _run_ends(~trusted, at=at)
    up, below = _run_ends(np.ascontiguousarray(~trusted.T), at=columns * height + rows)
    extended = np.append(labels.ravel(), np.uint16(outside))
    line = at - columns
    for place, exists in (
        (line + left, left >= 0),
        (line + right, right < width),
        (up * width + columns, up >= 0),
        (below * width + columns, below < height),
    ):
        yield extended.take(np.where(exists, place, labels.size))


class _Excess:
    """Squared distance of each pixel to the colour of a label, less the pixel's own square.

    The difference does not change which label is nearest, and needs one-dimensional look-ups only.
    Label `len(palette)` stands for "none" and is infinitely far.
    """

    def __init__(
        self, own: Float32[np.ndarray, "n 3"], *, palette: UInt8[np.ndarray, "k 3"]
    ) -> None:
        table = palette.astype(np.float32)
        self._own = own.T.copy()
        self._channels = [np.append(-2 * channel, np.float32(0)) for channel in table.T]
        self._norms = np.append((table**2).sum(axis=1), np.float32(np.inf))

    def __call__(self, label: UInt16[np.ndarray, " n"]) -> Float32[np.ndarray, " n"]:
        total = self._norms.take(label)
        for values, channel in zip(self._own, self._channels, strict=True):
            total += values * channel.take(label)
        return total

    def whole(self, excess: Float32[np.ndarray, " n"]) -> Float32[np.ndarray, " n"]:
        """The squared distance itself."""
        return np.maximum(excess + (self._own**2).sum(axis=0), 0)


def _run_ends(
    marked: Bool[np.ndarray, "h w"], *, at: Int64[np.ndarray, " n"]
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """Column before and after the horizontal run of marked pixels that each pixel `at` is in.

    `at` are places in reading order, all of them marked; the answer is -1 or the width where the
    run touches the border.
    """
    width = marked.shape[1]
    opens, closes = marked.copy(), marked.copy()
    opens[:, 1:] &= ~marked[:, :-1]
    closes[:, :-1] &= ~marked[:, 1:]
    first, last = np.flatnonzero(opens), np.flatnonzero(closes)
    run = np.searchsorted(first, at, side="right") - 1
    return (first % width - 1)[run], (last % width + 1)[run]


def vote(around: UInt16[np.ndarray, "s h w"]) -> _Labels:
    """Most frequent label of each 3x3 window over `s` frames (the middle one is answered).

    The own label wins ties, then the lowest.
    """
    frames, height, width = around.shape
    own = around[frames // 2]
    window = np.ones((3, 3), np.uint8)
    lowest, highest = around.min(axis=0), around.max(axis=0)
    at = np.flatnonzero(cv2.erode(lowest, window) != cv2.dilate(highest, window))
    result = own.copy()
    if not len(at):
        return result
    padded = np.pad(around, ((0, 0), (1, 1), (1, 1)), mode="edge")
    corner = at + 2 * (at // width)  # of the pixel's window, in a frame of `padded`
    shifts = [
        (s * (height + 2) + y) * (width + 2) + x
        for s in range(frames)
        for y in range(3)
        for x in range(3)
    ]
    votes = np.stack([padded.ravel().take(corner + shift) for shift in shifts])
    agree = (votes == own.ravel()[at]).sum(axis=0, dtype=np.uint8)
    # A strict majority cannot lose; only the few other pixels need a count of every label.
    weak = np.flatnonzero(2 * agree <= len(shifts))
    if not len(weak):
        return result
    at, votes, agree = at[weak], votes[:, weak].T.copy(), agree[weak]
    votes.sort(axis=1)
    position = np.arange(votes.shape[1], dtype=np.int8)
    starts = np.ones(votes.shape, bool)
    starts[:, 1:] = votes[:, 1:] != votes[:, :-1]
    run = position - np.maximum.accumulate(np.where(starts, position, np.int8(0)), axis=1)
    longest = run.argmax(axis=1)
    pixel = np.arange(len(at))
    wins = run[pixel, longest] + 1 > agree
    result.ravel()[at[wins]] = votes[pixel, longest][wins]
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class _Components:
    """4-connected components of equal label, by the horizontal runs they are made of."""

    starts: Int64[np.ndarray, " r"]
    """First pixel of each run, reading order."""
    lengths: Int64[np.ndarray, " r"]
    """Pixels of each run."""
    component: Int64[np.ndarray, " r"]
    """Component of each run."""
    sizes: Int64[np.ndarray, " c"]
    """Pixels of each component."""

    def of(self, pixels: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """Component of each pixel."""
        return self.component[np.searchsorted(self.starts, pixels, side="right") - 1]


def _components(labels: _Labels) -> _Components:
    width, flat = labels.shape[1], labels.ravel()
    changes = np.ones(labels.shape, bool)
    np.not_equal(labels[:, 1:], labels[:, :-1], out=changes[:, 1:])
    starts = np.flatnonzero(changes)
    lengths = np.diff(np.append(starts, labels.size))
    own = np.arange(len(starts))
    links = []
    # Two runs that touch begin to do so at the start of one of them.
    for inside, other in (
        (starts >= width, starts - width),
        (starts < labels.size - width, starts + width),
    ):
        touching = own[inside][flat[starts[inside]] == flat[other[inside]]]
        links.append((touching, np.searchsorted(starts, other[touching], side="right") - 1))
    first, second = (np.concatenate(side) for side in zip(*links, strict=True))
    graph = sparse.coo_array((np.ones(len(first), bool), (first, second)), shape=(len(starts),) * 2)
    count, component = csgraph.connected_components(graph, directed=False)
    sizes = np.bincount(component, weights=lengths, minlength=count).astype(np.int64)
    return _Components(
        starts=starts, lengths=lengths, component=component.astype(np.int64), sizes=sizes
    )


def absorb_small(labels: _Labels, *, min_area: int) -> _Labels:
    """Give components of fewer than `min_area` pixels the label that most of their border touches.

    Components that touch only small ones wait for these to be absorbed, at most two rounds.
    """
    result = labels
    for _ in range(2):
        components = _components(result)
        if components.sizes.min() >= min_area:
            break
        result, is_done = _absorb_once(result, components=components, min_area=min_area)
        if is_done:
            break
    return result


def _absorb_once(
    labels: _Labels, *, components: _Components, min_area: int
) -> tuple[_Labels, bool]:
    """New labels, and whether each small component touched a large one."""
    height, width = labels.shape
    small = components.sizes < min_area
    runs = np.flatnonzero(small[components.component])
    lengths = components.lengths[runs]
    ends = np.cumsum(lengths)
    pixels = np.repeat(components.starts[runs] - ends + lengths, lengths) + np.arange(ends[-1])
    owner = np.repeat(components.component[runs], lengths)
    columns = pixels % width
    pairs = []
    for shift, inside in (
        (1, columns < width - 1),
        (-1, columns > 0),
        (width, pixels < width * (height - 1)),
        (-width, pixels >= width),
    ):
        other = pixels[inside] + shift
        large = ~small[components.of(other)]
        # One number per (component, label) pair, so that unique() counts borders.
        pairs.append(owner[inside][large] << 16 | labels.ravel()[other[large]])
    pair, borders = np.unique(np.concatenate(pairs), return_counts=True)
    order = np.argsort(borders, kind="stable")  # the last write is the longest border
    winner = np.full(len(small), -1, np.int64)
    winner[pair[order] >> 16] = pair[order] & 0xFFFF
    new = winner[owner]
    known = new >= 0
    result = labels.copy()
    result.ravel()[pixels[known]] = new[known]
    return result, bool(known.all())


def find_shades(
    labels: UInt16[np.ndarray, "t h w"],
    *,
    colors: UInt8[np.ndarray, "t h w 3"],
    palette: UInt8[np.ndarray, "n 3"],
) -> UInt16[np.ndarray, " n"]:
    """Tell shades of one entity from entities of similar colours.

    A network paints an entity with a slow gradient at times, which gives it several modes. Where
    two labels meet, the colour of two entities steps from one to the other within three pixels;
    that of a gradient has gone part of the way only. Background (row 0) is nobody's shade.

    Args:
        labels: Row of `palette` of each pixel.
        colors: Denoised clip.
        palette: Colour of each label.

    Returns:
        For each row the one that it is a shade of: the largest of its group, or itself.
    """
    count = len(palette)
    table = palette.astype(np.float32)
    apart = table[None] - table[:, None]
    squares = (apart**2).sum(axis=-1)
    close = (squares > 0) & (squares < _SHADE**2)
    close[0] = close[:, 0] = False
    if not close.any():
        return np.arange(count, dtype=np.uint16)
    borders, steps = np.zeros((2, count * count))
    for frame, frame_colors in zip(labels, colors, strict=True):
        for own, own_colors in ((frame, frame_colors), (frame.T, frame_colors.swapaxes(0, 1))):
            first, second = own[:, 1:-2], own[:, 2:-1]
            # Two pixels of each label: the colours of thinner entities are mixtures.
            is_border = (first != second) & (own[:, :-3] == first) & (own[:, 3:] == second)
            rows, columns = np.nonzero(is_border)
            pair = (first[rows, columns], second[rows, columns])
            keep = close[pair]
            rows, columns, pair = rows[keep], columns[keep], (pair[0][keep], pair[1][keep])
            step = own_colors[rows, columns + 3].astype(np.float32) - own_colors[rows, columns]
            share = (step * apart[pair]).sum(axis=-1) / squares[pair]
            code = pair[0].astype(np.int64) * count + pair[1]
            borders += np.bincount(code, minlength=count * count)
            steps += np.bincount(code, weights=share, minlength=count * count)
    borders, steps = (x.reshape(count, count) + x.reshape(count, count).T for x in (borders, steps))
    is_gradient = (borders >= _SHADE_BORDERS) & (steps < _SHADE_STEP * borders)
    _, group = csgraph.connected_components(sparse.coo_array(is_gradient), directed=False)
    sizes = np.bincount(labels.ravel(), minlength=count)
    largest = np.zeros(group.max() + 1, np.uint16)
    order = np.argsort(sizes, kind="stable")
    largest[group[order]] = order  # the last write is the largest
    return largest[group]
