"""Find the colours of a painted clip: modes of the colour histogram of its flat pixels."""

import cv2
import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt8
from scipy import ndimage

from sat_udpdiff.colormaps.nearest_color import pack

_BINS = 64  # per channel
_BIN_WIDTH = 256 // _BINS


def flat_threshold(sigma: float) -> float:
    """Largest 3x3 range of a channel (8 bit) that passes as flat under noise `sigma`."""
    return 8 + 2.2 * sigma


def noise_level(
    rgb: UInt8[np.ndarray, "t h w 3"], *, smooth: UInt8[np.ndarray, "t h w 3"]
) -> float:
    """Standard deviation (8 bit) of pixel noise, from the MAD of a clip against its 3x3 median.

    Noise that is smooth over more than the window is not seen.
    """
    stride = max(1, rgb.size // 3_000_000)
    left = rgb.reshape(-1, 3)[::stride].astype(np.int16) - smooth.reshape(-1, 3)[::stride]
    # Residuals are integers: the median of a histogram is exact and needs no sort.
    counts = np.bincount(np.abs(left).ravel(), minlength=256)
    half = np.searchsorted(np.cumsum(counts), counts.sum() / 2)
    below = counts[:half].sum()
    # Position inside the integer step, else small noise levels would jump by 1.48.
    mad = max(0.0, half - 0.5 + (counts.sum() / 2 - below) / max(counts[half], 1))
    return 1.4826 * mad if half else 0.0


def find_palette(
    colors: UInt8[np.ndarray, "n 3"], *, sigma: float, min_share: float = 3e-4
) -> Float64[np.ndarray, "k 3"]:
    """Modes of the colours of flat pixels, the most frequent first.

    Args:
        colors: Colours of flat pixels of the whole clip.
        sigma: Noise level, 8 bit.
        min_share: Modes with a smaller share of `colors` are dropped.

    Returns:
        Mean colour of each mode, sub-bin exact; empty where `colors` is.
    """
    if not len(colors):
        return np.zeros((0, 3))
    bins, counts, means = _histogram(colors)
    density = np.zeros(_BINS**3, np.float32)
    density[bins] = counts
    density = ndimage.gaussian_filter(
        density.reshape(_BINS, _BINS, _BINS), max(0.8, sigma / 8), mode="constant", truncate=3
    )
    peaks = (density == ndimage.maximum_filter(density, 3)) & (density > min_share * 0.01)
    at = np.stack(np.nonzero(peaks), axis=1)[:, ::-1]  # (blue, green, red) -> (red, green, blue)
    order = np.argsort(-density[peaks], kind="stable")
    radius = max(12.0, 2 * sigma)
    centers = _suppress((at[order] + 0.5) * _BIN_WIDTH, radius=radius)
    for _ in range(2):
        centers = _ball_means(centers, means=means, counts=counts, radius=radius)
    centers = _suppress(centers, radius=radius)
    support = _support(centers, means=means, counts=counts, radius=radius)
    kept = support >= min_share * len(colors)
    return centers[kept][np.argsort(-support[kept], kind="stable")]


def _histogram(
    colors: UInt8[np.ndarray, "n 3"],
) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"], Float64[np.ndarray, "m 3"]]:
    """Occupied bins (blue, green, red order), their counts and mean colours."""
    codes = pack(colors[None])[0]
    coarse = (codes >> 6 & 0x3F000) | (codes >> 4 & 0xFC0) | (codes >> 2 & 0x3F)
    all_counts = np.bincount(coarse, minlength=_BINS**3)
    bins = np.flatnonzero(all_counts)
    sums = np.stack(
        [np.bincount(coarse, weights=colors[:, c], minlength=_BINS**3)[bins] for c in range(3)], 1
    )
    return bins, all_counts[bins], sums / all_counts[bins, None]


def _suppress(centers: Float64[np.ndarray, "k 3"], *, radius: float) -> Float64[np.ndarray, "m 3"]:
    """Keep each centre that is not within `radius` of an earlier one."""
    kept: list[np.ndarray] = []
    for center in centers:
        if all(((center - other) ** 2).sum() >= radius**2 for other in kept):
            kept.append(center)
    return np.array(kept).reshape(-1, 3)


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
    squares = ((means[:, None] - centers) ** 2).sum(axis=-1)
    return counts @ (squares <= radius**2)


def flat_mask(smooth: UInt8[np.ndarray, "h w 3"], *, threshold: float) -> Bool[np.ndarray, "h w"]:
    """Pixels whose 3x3 neighbourhood varies by at most `threshold` in every channel."""
    window = np.ones((3, 3), np.uint8)
    spread = cv2.subtract(cv2.dilate(smooth, window), cv2.erode(smooth, window))
    return (spread <= threshold).all(axis=-1)
