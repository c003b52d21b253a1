"""Find the colours of a painted clip: modes of the colour histogram of its flat pixels."""

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, UInt8
from scipy import ndimage

from sat_udpdiff.colormaps.nearest_color import COARSE_BINS, COARSE_WIDTH, coarse_codes

_CUT_OFF = 32
_MIN_RADIUS = 12.0
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


def pixel_noise(
    rgb: UInt8[np.ndarray, "t h w 3"], *, smooth: UInt8[np.ndarray, "t h w 3"]
) -> float:
    """Deviation (8 bit) of noise finer than 3 pixels: MAD of a clip against its 3x3 median."""
    stride = max(1, rgb.size // 1_500_000)
    center = smooth.reshape(-1, 3)[::stride].astype(np.int16)
    left = np.abs(rgb.reshape(-1, 3)[::stride] - center)
    return _robust_deviation(left[_inside(center)])


def color_spread(smooth: UInt8[np.ndarray, "t h w 3"], *, flat: Bool[np.ndarray, "t h w"]) -> float:
    """Deviation (8 bit, one channel) of the colours of one entity after the median.

    From pairs of pixels of a row, some pixels apart, with nothing but flat pixels between them:
    they belong to one entity, and see noise that is too smooth for `pixel_noise`.
    """
    frames, _, width = flat.shape
    lag = min(6, max(2, width // 16))
    few = slice(None, None, max(1, frames * smooth[0].size // 3_000_000))
    runs = np.cumsum(flat[few], axis=2, dtype=np.int16)
    joined = (runs[..., lag:] - runs[..., :-lag] == lag) & flat[few, :, :-lag]
    first = smooth[few, :, :-lag][joined].astype(np.int16)
    second = smooth[few, :, lag:][joined]
    return _robust_deviation(np.abs(first - second)[_inside(first)]) / np.sqrt(2)


def find_palette(
    colors: UInt8[np.ndarray, "n 3"], *, spread: float, min_share: float = 3e-4
) -> Float64[np.ndarray, "k 3"]:
    """Modes of the colours of flat pixels, the most frequent first.

    Args:
        colors: Colours of flat pixels of the whole clip.
        spread: Deviation of the colours of one entity, 8 bit, one channel.
        min_share: Modes with a smaller share of `colors` are dropped.

    Returns:
        Mean colour of each mode, finer than the histogram; empty where `colors` is.
    """
    if not len(colors):
        return np.zeros((0, 3))
    bins, counts, means = _histogram(colors)
    blur = max(0.8, spread / 2 / COARSE_WIDTH)
    density = np.zeros(COARSE_BINS**3, np.float32)
    density[bins] = counts
    density = ndimage.gaussian_filter(
        density.reshape((COARSE_BINS,) * 3), blur, mode="constant", truncate=3
    )
    centers = _modes(density, width=np.hypot(spread, blur * COARSE_WIDTH))
    radius = max(_MIN_RADIUS, 1.5 * spread)
    for _ in range(2):
        centers = _ball_means(centers, means=means, counts=counts, radius=radius)
    support = _support(centers, means=means, counts=counts, radius=radius)
    kept = support >= min_share * len(colors)
    return centers[kept][np.argsort(-support[kept], kind="stable")]


def _histogram(
    colors: UInt8[np.ndarray, "n 3"],
) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"], Float64[np.ndarray, "m 3"]]:
    """Occupied bins (blue, green, red order), their counts and mean colours."""
    codes = coarse_codes(colors[None])[0]
    all_counts = np.bincount(codes, minlength=COARSE_BINS**3)
    bins = np.flatnonzero(all_counts)
    sums = [np.bincount(codes, weights=channel, minlength=COARSE_BINS**3) for channel in colors.T]
    return bins, all_counts[bins], np.stack([s[bins] for s in sums], 1) / all_counts[bins, None]


def _modes(density: Float32[np.ndarray, "b g r"], *, width: float) -> Float64[np.ndarray, "k 3"]:
    """Local maxima that stronger ones do not explain, the densest first.

    An entity is a Gaussian of deviation `width` in colour space. A maximum within _MIN_RADIUS or
    1.2 widths of a kept one, or lower than _TAIL_FACTOR times the sum of their tails, is dropped.
    """
    peaks = (density == ndimage.maximum_filter(density, 3)) & (density > 1e-3 * density.max() / 64)
    heights = density[peaks]
    at = np.stack(np.nonzero(peaks), axis=1)[:, ::-1]  # (blue, green, red) -> (red, green, blue)
    at = (at + 0.5) * COARSE_WIDTH
    least_square = max(_MIN_RADIUS, 1.2 * width) ** 2
    tail = np.zeros(len(at))
    nearest = np.full(len(at), np.inf)
    kept = []
    for row in np.argsort(-heights, kind="stable"):
        if nearest[row] < least_square or heights[row] < _TAIL_FACTOR * tail[row]:
            continue
        kept.append(row)
        squares = ((at - at[row]) ** 2).sum(axis=1)
        nearest = np.minimum(nearest, squares)
        tail += heights[row] * np.exp(-squares / (2 * width**2))
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
