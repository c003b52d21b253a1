"""Find the colours of a painted clip: modes of the colour histogram of its flat pixels."""

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64, UInt8
from scipy import ndimage

from sat_udpdiff.colormaps.nearest_color import COARSE_BINS, COARSE_WIDTH, coarse_codes

_CUT_OFF = 32
_MIN_RADIUS = 10.0
"""Colours closer than this cannot be told apart, even without noise."""
_TAIL_FACTOR = 4.0
"""A mode must be this much denser than the tails of stronger modes; less is their ripple."""


def flat_mask(smooth: UInt8[np.ndarray, "h w 3"], *, threshold: float) -> Bool[np.ndarray, "h w"]:
    """Pixels whose 3x3 neighbourhood varies by at most `threshold` in every channel."""
    window = np.ones((3, 3), np.uint8)
    red, green, blue = cv2.split(
        cv2.subtract(cv2.dilate(smooth, window), cv2.erode(smooth, window))
    )
    return cv2.max(cv2.max(red, green), blue) <= threshold


def flat_threshold(sigma: float) -> float:
    """Largest 3x3 range of a channel (8 bit) that passes as flat under pixel noise `sigma`."""
    return 8 + 2.2 * sigma


def _robust_deviation(absolute: np.ndarray) -> float:
    """1.4826 x median of integers 0..255, with the position inside the integer step."""
    if not absolute.size:
        return 0.0
    # The median of a histogram needs no sort; without the position it would jump by 1.48.
    counts = np.bincount(absolute.ravel(), minlength=256)
    middle = absolute.size / 2
    step = int(np.searchsorted(np.cumsum(counts), middle))
    if step == 0:
        return 0.0
    return 1.4826 * (step - 0.5 + (middle - counts[:step].sum()) / counts[step])


def _inside(values: np.ndarray) -> np.ndarray:
    # Near 0 and 255 noise is cut off; black ground would hide it.
    return (values >= _CUT_OFF) & (values <= 255 - _CUT_OFF)


def deep_mask(flat: Bool[np.ndarray, "h w"], *, window: int) -> Bool[np.ndarray, "h w"]:
    """Pixels with no edge in their `window` x `window` neighbourhood.

    An edge that crosses it is at least two pixels wide and takes 2 / window of its pixels; noise
    that passes for an edge here and there may take half of that.
    """
    share = cv2.boxFilter(flat.astype(np.uint8) * 255, -1, (window, window))
    return flat & (share >= 255 * (1 - 1 / window))


def pixel_noise(
    rgb: UInt8[np.ndarray, "t h w 3"], *, smooth: UInt8[np.ndarray, "t h w 3"]
) -> float:
    """Deviation (8 bit) of noise finer than 3 pixels: MAD of a clip against its 3x3 median."""
    stride = max(1, rgb.size // 1_500_000)
    center = smooth.reshape(-1, 3)[::stride].astype(np.int16)
    left = np.abs(rgb.reshape(-1, 3)[::stride] - center)
    return _robust_deviation(left[_inside(center)])


def color_spread(
    colors: UInt8[np.ndarray, "t h w 3"], *, flat: Bool[np.ndarray, "t h w"], lag: int
) -> float:
    """Deviation (8 bit, one channel) of the colours of one entity in a denoised clip.

    From pairs of pixels of a row, `lag` apart, with nothing but flat pixels between them: they
    belong to one entity, and see noise that is too smooth for `pixel_noise`. 0 without such pairs.
    """
    frames = len(flat)
    few = slice(None, None, max(1, frames * colors[0].size // 1_500_000))
    runs = np.cumsum(flat[few], axis=2, dtype=np.int16)
    joined = (runs[..., lag:] - runs[..., :-lag] == lag) & flat[few, :, :-lag]
    first = colors[few, :, :-lag][joined].astype(np.int16)
    second = colors[few, :, lag:][joined]
    return _robust_deviation(np.abs(first - second)[_inside(first)]) / np.sqrt(2)


def find_palette(
    colors: UInt8[np.ndarray, "n 3"],
    *,
    spread: float,
    min_support: float,
    known: Float64[np.ndarray, "m 3"] | None = None,
) -> Float64[np.ndarray, "k 3"]:
    """Modes of the colours of flat pixels, the most frequent first.

    Args:
        colors: Colours of flat pixels of the whole clip.
        spread: Deviation of the colours of one entity, 8 bit, one channel.
        min_support: Modes with fewer pixels within reach are dropped.
        known: Colours known to be there, which explain modes near them.

    Returns:
        Mean colour of each new mode, finer than the histogram; empty where `colors` is.
    """
    if not len(colors):
        return np.zeros((0, 3))
    bins, counts, means = _histogram(colors)
    blur = max(0.8, 0.5 * spread / COARSE_WIDTH)
    density = np.zeros(COARSE_BINS**3, np.float32)
    density[bins] = counts
    density = ndimage.gaussian_filter(
        density.reshape((COARSE_BINS,) * 3), blur, mode="constant", truncate=3
    )
    known = np.zeros((0, 3)) if known is None else known
    centers = _modes(density, width=np.hypot(spread, blur * COARSE_WIDTH), known=known)
    radius = max(_MIN_RADIUS, 1.5 * spread)
    for _ in range(2):
        centers = _ball_means(centers, means=means, counts=counts, radius=radius)
    support = _support(centers, means=means, counts=counts, radius=radius)
    order = np.argsort(-support, kind="stable")
    order = order[support[order] >= min_support]
    return _apart(centers[order], known=known)


def _apart(
    centers: Float64[np.ndarray, "k 3"], *, known: Float64[np.ndarray, "m 3"]
) -> Float64[np.ndarray, "n 3"]:
    """Leave out what the refinement moved onto a stronger or a known colour."""
    kept = list(known)
    for center in centers:
        if all(((center - other) ** 2).sum() >= _MIN_RADIUS**2 for other in kept):
            kept.append(center)
    return np.array(kept[len(known) :]).reshape(-1, 3)


def drop_mixtures(
    modes: Float64[np.ndarray, "k 3"], *, known: Float64[np.ndarray, "m 3"], tolerance: float
) -> Float64[np.ndarray, "n 3"]:
    """Leave out modes that lie between another mode and any colour, or are a stronger one's twin.

    The blurred rim of an entity that is nowhere flat runs through such colours; the entity's own
    is at the far end.
    """
    kept: list[np.ndarray] = []
    for mode in modes:
        apart = ((modes - mode) ** 2).sum(axis=1) > tolerance**2
        others, ends = modes[apart], np.concatenate([known, modes])
        starts = np.repeat(others, len(ends), axis=0)
        points = np.broadcast_to(mode, starts.shape)
        lines = square_to_segment(points, start=starts, end=np.tile(ends, (len(others), 1)))
        away = ((np.tile(ends, (len(others), 1)) - mode) ** 2).sum(axis=1) > tolerance**2
        twin = any(((mode - other) ** 2).sum() <= (2 * tolerance) ** 2 for other in kept)
        if not twin and not (away & (lines <= tolerance**2)).any():
            kept.append(mode)
    return np.array(kept).reshape(-1, 3)


def square_to_segment(
    points: Float[np.ndarray, "n 3"],
    *,
    start: Float[np.ndarray, "n 3"],
    end: Float[np.ndarray, "n 3"],
) -> Float[np.ndarray, " n"]:
    """Squared distance of each colour to the mixtures of two."""
    along, offset = end - start, points - start
    length = np.maximum((along**2).sum(axis=1), 1e-6)
    share = ((offset * along).sum(axis=1) / length).clip(0, 1)
    return ((offset - share[:, None] * along) ** 2).sum(axis=1)


def _histogram(
    colors: UInt8[np.ndarray, "n 3"],
) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"], Float64[np.ndarray, "m 3"]]:
    """Occupied bins (blue, green, red order), their counts and mean colours."""
    codes = coarse_codes(colors[None])[0]
    all_counts = np.bincount(codes, minlength=COARSE_BINS**3)
    bins = np.flatnonzero(all_counts)
    sums = [np.bincount(codes, weights=channel, minlength=COARSE_BINS**3) for channel in colors.T]
    return bins, all_counts[bins], np.stack([s[bins] for s in sums], 1) / all_counts[bins, None]


def _modes(
    density: Float32[np.ndarray, "b g r"], *, width: float, known: Float64[np.ndarray, "m 3"]
) -> Float64[np.ndarray, "k 3"]:
    """Local maxima that stronger ones and the known colours do not explain, the densest first.

    An entity is a Gaussian of deviation `width` in colour space. A maximum within _MIN_RADIUS or
    2 widths of an accepted one, or lower than _TAIL_FACTOR times the sum of their tails, is
    dropped.
    """
    peaks = (density == ndimage.maximum_filter(density, 3)) & (density > density.max() / 64_000)
    bins = np.stack(np.nonzero(peaks), axis=1)[:, ::-1]  # (blue, green, red) -> (red, green, blue)
    at, heights = (bins + 0.5) * COARSE_WIDTH, density[peaks]
    order = np.argsort(-heights, kind="stable")
    at, heights = at[order], heights[order]
    least_square = max(_MIN_RADIUS, 2 * width) ** 2
    tail = np.zeros(len(at))
    is_free = np.ones(len(at), bool)

    def accept(center: np.ndarray, *, height: float) -> None:
        squares = ((at - center) ** 2).sum(axis=1)
        is_free[squares < least_square] = False
        tail[:] += height * np.exp(-squares / (2 * width**2))

    for center in known:
        red, green, blue = (center / COARSE_WIDTH).astype(np.int64)
        accept(center, height=float(density[blue, green, red]))
    kept = []
    for row, (center, height) in enumerate(zip(at, heights, strict=True)):
        if is_free[row] and height >= _TAIL_FACTOR * tail[row]:
            kept.append(row)
            accept(center, height=float(height))
    return at[kept]


def _ball_means(
    centers: Float64[np.ndarray, "k 3"],
    *,
    means: Float64[np.ndarray, "m 3"],
    counts: Int64[np.ndarray, " m"],
    radius: float,
) -> Float64[np.ndarray, "k 3"]:
    refined = centers.copy()
    for row, center in enumerate(centers):
        inside = ((means - center) ** 2).sum(axis=1) <= radius**2
        if inside.any():
            refined[row] = np.average(means[inside], axis=0, weights=counts[inside])
    return refined


def _support(
    centers: Float64[np.ndarray, "k 3"],
    *,
    means: Float64[np.ndarray, "m 3"],
    counts: Int64[np.ndarray, " m"],
    radius: float,
) -> np.ndarray:
    """Pixels within `radius` of each centre."""
    return np.array(
        [counts[((means - c) ** 2).sum(axis=1) <= radius**2].sum() for c in centers], np.int64
    )
