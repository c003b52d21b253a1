"""From a segmentation video, as a network paints it, to entity ids of the whole clip.

1. 3x3 median; noise level; pixels with a flat neighbourhood.
2. One palette for the clip: modes of the colour histogram of its flat pixels. As an entity keeps
   its colour, equal colours in different frames are the same entity, and ids hold over time.
3. Flat pixels take the nearest colour; the others only what is flat beside them.
4. Majority vote over 3x3x3 pixels; small components take the label around them.
5. Labels that meet without an edge are shades of one entity.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, UInt8, UInt16

from sat_udpdiff.colormaps import label_cleaning, palette_search
from sat_udpdiff.colormaps.clip_checks import check_rgb_clip
from sat_udpdiff.colormaps.nearest_color import NearestColor, coarse_codes, coarse_nearest, pack

_BLACK_RADIUS = 12.0
_MIN_SHARE = 3e-4
"""Share of the flat pixels of a clip below which a colour is no entity."""
_CORE_REACH = 8.0
"""RGB distance to its colour within which a thin entity's middle lies, without noise."""
_RIPPLE = 60.0
"""RGB distance within which a codec's overshoot at an edge lies from the colour beside it."""
_RIPPLE_WIDTH = 4
"""Pixels that it is wide."""
_MOSTLY = 0.8
_CODEC_ERROR = 14.0
"""How much farther its other pixels may lie."""
_SMALL_PICTURE = 200_000
_MIN_PIXELS = 24.0
"""Fewer pixels, of the whole clip, are no entity."""
_NO_NOISE = 1.0
_QUIET = 2.0
"""Below this spread (8 bit) larger windows have nothing to add."""
_NETWORK_NOISE = 1.5, 4.0
"""Noise of maps that may hold shades. With less, no network painted them; more hides how a colour
changes along a border."""
_EXPLAINED = 3.0
"""Distance in deviations within which a colour may be another, disturbed by noise."""
_MAX_CLEAN_COLORS = 1024
_MAX_SMALL_STEPS = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodedSegmentation:
    """Entities of a clip."""

    entity_ids: Int32[np.ndarray, "t h w"]
    """Entity of each pixel, the same id over the whole clip; 0 = unlabelled (black)."""
    colors: UInt8[np.ndarray, "n 3"]
    """Colour of id k in row k - 1; the given palette, or found ones, the largest entity first."""


def default_min_area(*, height: int, width: int) -> int:
    """Pixels below which a component counts as noise: 1/4000 of the picture, at least 3."""
    return max(3, round(height * width / 4000))


def decode(
    rgb: UInt8[np.ndarray, "t h w 3"],
    *,
    palette: UInt8[np.ndarray, "n 3"] | None = None,
    min_area: int | None = None,
) -> Int32[np.ndarray, "t h w"]:
    """Entity ids alone; see `decode_with_palette`."""
    return decode_with_palette(rgb, palette=palette, min_area=min_area).entity_ids


def decode_with_palette(
    rgb: UInt8[np.ndarray, "t h w 3"],
    *,
    palette: UInt8[np.ndarray, "n 3"] | None = None,
    min_area: int | None = None,
) -> DecodedSegmentation:
    """Entity ids and colours of a painted clip, under noise and blurred edges.

    A clip of few different colours (a map that went through no network and no lossy file) is read
    as it is, every colour an entity.

    Args:
        rgb: Painted clip.
        palette: Colours of ids 1..n where they are known; None = find them.
        min_area: Components of fewer pixels (in one frame) are absorbed by their neighbours.
            None = 1/4000 of the picture, at least 3.

    Raises:
        ValueError: Wrong shape or dtype of the clip or the palette.
    """
    check_rgb_clip(rgb)
    if palette is not None and (palette.dtype != np.uint8 or palette.shape[1:] != (3,)):
        raise ValueError(f"palette: expected uint8 (n, 3), got {palette.dtype} {palette.shape}")
    clean = _clean_colors(rgb)
    if clean is not None:
        return _read_clean(rgb, found=clean, palette=palette)
    height, width = rgb.shape[1:3]
    area = default_min_area(height=height, width=width) if min_area is None else min_area
    cues = _find_cues(rgb)
    if palette is None:
        rows = _found_rows(cues)
    else:
        rows = np.concatenate([np.zeros((1, 3), np.uint8), palette])
    labels = _label(cues, rows=rows, min_area=area)
    if palette is None and _NETWORK_NOISE[0] <= cues.noise < _NETWORK_NOISE[1]:
        labels = label_cleaning.find_shades(labels, colors=cues.colors, palette=rows)[labels]
    return _number(labels, rows=rows, keep=palette is not None)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Cues:
    """What a clip's pixels say, before any colour is named."""

    colors: UInt8[np.ndarray, "t h w 3"]
    """Denoised: the mean of a large window where `deep`, else the 3x3 median."""
    flat: Bool[np.ndarray, "t h w"]
    """No edge in the 3x3 neighbourhood."""
    deep: Bool[np.ndarray, "t h w"]
    """No edge in the large window."""
    flat_spread: float
    """Deviation of an entity's colour at flat pixels that are not deep (8 bit, one channel)."""
    deep_spread: float
    """The same at deep pixels."""
    noise: float
    """Deviation of the noise of the clip as it came."""
    window: int
    """Side of the large window; 1 where it was not used."""


def _find_cues(rgb: UInt8[np.ndarray, "t h w 3"]) -> _Cues:
    frames, height = rgb.shape[:2]
    smooth = np.stack(_each(frames, lambda t: cv2.medianBlur(rgb[t], 3)))
    noise = palette_search.pixel_noise(rgb, smooth=smooth)
    if noise < _NO_NOISE:
        smooth = rgb  # the median would only round corners and thin entities
    limit = palette_search.flat_threshold(noise)
    flat = np.stack(_each(frames, lambda t: palette_search.flat_mask(smooth[t], threshold=limit)))
    window = min(9, max(5, height // 13 | 1))
    spread = palette_search.color_spread(smooth, flat=flat, lag=window // 2 + 4)
    total = float(np.hypot(noise, spread))
    deep = np.stack(_each(frames, lambda t: palette_search.deep_mask(flat[t], window=window)))
    if spread < _QUIET:
        return _Cues(
            colors=smooth,
            flat=flat,
            deep=deep,
            flat_spread=spread,
            deep_spread=spread,
            noise=total,
            window=1,
        )

    def denoise(t: int) -> np.ndarray:
        mean = cv2.boxFilter(smooth[t], -1, (window, window))
        return cv2.copyTo(mean, deep[t].view(np.uint8), smooth[t].copy())

    colors = np.stack(_each(frames, denoise))
    return _Cues(
        colors=colors,
        flat=flat,
        deep=deep,
        flat_spread=spread,
        deep_spread=palette_search.color_spread(colors, flat=deep, lag=window + 3),
        noise=total,
        window=window,
    )


def _each(count: int, work: Callable[[int], np.ndarray]) -> list[np.ndarray]:
    """`work` for each frame, on the processor's cores (OpenCV and numpy release the lock)."""
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        return list(pool.map(work, range(count)))


def _clean_colors(rgb: UInt8[np.ndarray, "t h w 3"]) -> UInt8[np.ndarray, "n 3"] | None:
    """The colours of a clean map; None for a clip with noise, blur or too many colours."""
    seen = np.zeros(1 << 24, bool)
    for t, frame in enumerate(rgb):
        seen[pack(frame)] = True
        # A painted clip with noise is known by its first frame; the rest need not be read.
        if t in (0, len(rgb) - 1) and np.count_nonzero(seen) > _MAX_CLEAN_COLORS:
            return None
    if _small_steps(rgb) > _MAX_SMALL_STEPS:
        return None
    codes = np.flatnonzero(seen)
    return np.stack([codes & 255, codes >> 8 & 255, codes >> 16], axis=1).astype(np.uint8)


def _small_steps(rgb: UInt8[np.ndarray, "t h w 3"]) -> float:
    """Share of small steps (1 to 6 levels) among the steps between neighbours of a row.

    Weak noise on a simple picture makes few colours too, but its steps are small.
    """
    small = steps = 0
    for frame in rgb:
        step = cv2.absdiff(frame[:, 1:], frame[:, :-1]).max(axis=-1)
        steps += np.count_nonzero(step)
        small += np.count_nonzero(step[step <= 6])
    return small / max(steps, 1)


def _read_clean(
    rgb: UInt8[np.ndarray, "t h w 3"],
    *,
    found: UInt8[np.ndarray, "n 3"],
    palette: UInt8[np.ndarray, "m 3"] | None,
) -> DecodedSegmentation:
    rows = found[found.any(axis=1)] if palette is None else palette
    rows = np.concatenate([np.zeros((1, 3), np.uint8), rows])
    nearest = NearestColor(rows)
    labels = np.stack(_each(len(rgb), lambda t: nearest(rgb[t])))
    return _number(labels, rows=rows, keep=palette is not None)


def _found_rows(cues: _Cues) -> UInt8[np.ndarray, "n 3"]:
    """Black in row 0, whether it occurs or not, and the colours found."""
    height, width = cues.flat.shape[1:]
    stride = max(1, round((height * width / 21_600) ** 0.5))
    few = (slice(None), slice(stride // 2, None, stride), slice(stride // 2, None, stride))
    colors, flat, deep = cues.colors[few], cues.flat[few], cues.deep[few]
    least = max(_MIN_SHARE * np.count_nonzero(flat), _MIN_PIXELS)
    # Means of overlapping windows move together: their support counts in windows.
    windows = max(least, 2 * (cues.window / stride) ** 2)
    found = palette_search.find_palette(colors[deep], spread=cues.deep_spread, min_support=windows)
    # Entities too small to have deep pixels.
    more = palette_search.find_palette(
        colors[flat & ~deep], spread=cues.flat_spread, min_support=least, known=found
    )
    found = np.concatenate([found, _without_ripples(cues, more, known=found)])
    if len(found) and _thin_entities_matter(cues):
        thin = _thin_colors(cues, found=found, min_support=least)
        found = np.concatenate([found, _without_ripples(cues, thin, known=found)])
    # Noise on black is cut off below 0, which makes it 0.4 deviations brighter in each channel.
    norms = np.sqrt((found**2).sum(axis=1))
    black = norms <= _BLACK_RADIUS + 0.4 * np.sqrt(3) * cues.noise
    ground = found[black][norms[black].argmin()][None] if black.any() else np.zeros((1, 3))
    return np.concatenate([ground, found[~black]]).round().astype(np.uint8)


def _without_ripples(
    cues: _Cues, modes: Float64[np.ndarray, "k 3"], *, known: Float64[np.ndarray, "m 3"]
) -> Float64[np.ndarray, "n 3"]:
    """Leave out what a codec paints beside edges: shades of a known colour along its border."""
    kept = []
    for mode in modes:
        near = known[((known - mode) ** 2).sum(axis=1) < _RIPPLE**2]
        if len(near) == 0 or _share_beside(cues, mode, others=near) < _MOSTLY:
            kept.append(mode)
    return np.array(kept).reshape(-1, 3)


def _share_beside(
    cues: _Cues, color: Float64[np.ndarray, " 3"], *, others: Float64[np.ndarray, "k 3"]
) -> float:
    """Share of the pixels of a colour within _RIPPLE_WIDTH of pixels of the others."""
    window = np.ones((2 * _RIPPLE_WIDTH + 1,) * 2, np.uint8)
    pixels = beside = 0
    for frame in cues.colors:
        own = _near(frame, color)
        around = np.logical_or.reduce([_near(frame, other) for other in others])
        pixels += np.count_nonzero(own)
        beside += np.count_nonzero(own & (cv2.dilate(around.view(np.uint8), window) > 0))
    return beside / max(pixels, 1)


def _near(
    frame: UInt8[np.ndarray, "h w 3"], color: Float64[np.ndarray, " 3"]
) -> Bool[np.ndarray, "h w"]:
    return _distance(frame, np.broadcast_to(color.astype(np.float32), frame.shape)) <= _CORE_REACH


def _thin_entities_matter(cues: _Cues) -> bool:
    """In a large picture, an entity without flat pixels is too small to be one."""
    return cues.flat[0].size <= _SMALL_PICTURE


def _reach(cues: _Cues) -> float:
    return _CORE_REACH + 1.5 * cues.flat_spread


def _distance(
    colors: UInt8[np.ndarray, "h w 3"],
    others: UInt8[np.ndarray, "h w 3"] | Float32[np.ndarray, "h w 3"],
) -> Float32[np.ndarray, "h w"]:
    difference = colors.astype(np.float32) - others
    return np.sqrt((difference**2).sum(axis=-1))


def _unmixed(
    cues: _Cues, t: int, *, labels: UInt16[np.ndarray, "h w"], rows: UInt8[np.ndarray, "n 3"]
) -> Bool[np.ndarray, "h w"]:
    return label_cleaning.find_unmixed(
        labels, flat=cues.flat[t], colors=cues.colors[t], palette=rows, tolerance=1.5 * _reach(cues)
    )


def _thin_colors(
    cues: _Cues, *, found: Float64[np.ndarray, "k 3"], min_support: float
) -> Float64[np.ndarray, "m 3"]:
    """Colours of entities that are nowhere flat."""
    rows = found.round().astype(np.uint8)
    table = coarse_nearest(rows)

    def strange(t: int) -> np.ndarray:
        colors = cues.colors[t]
        labels = table.take(coarse_codes(colors))
        far = _distance(colors, rows[labels]) > 1.5 * _reach(cues)
        return colors[far & _unmixed(cues, t, labels=labels, rows=rows)]

    modes = palette_search.find_palette(
        np.concatenate(_each(len(cues.flat), strange)),
        spread=cues.flat_spread,
        min_support=min_support,
        known=found,
    )
    return palette_search.drop_mixtures(modes, known=found, tolerance=_reach(cues))


def _label(
    cues: _Cues, *, rows: UInt8[np.ndarray, "n 3"], min_area: int
) -> UInt16[np.ndarray, "t h w"]:
    table = coarse_nearest(rows)
    count = len(cues.flat)
    thin = _thin_entities_matter(cues)

    def assign(t: int) -> np.ndarray:
        colors, flat, deep = cues.colors[t], cues.flat[t], cues.deep[t]
        labels = table.take(coarse_codes(colors))
        beside = partial(label_cleaning.label_from_beside, colors=colors, palette=rows)
        if cues.deep is not cues.flat:
            margin = _EXPLAINED * cues.flat_spread
            labels = beside(labels, trusted=deep, doubtful=flat & ~deep, margin=margin)
        if thin:
            unmixed = _unmixed(cues, t, labels=labels, rows=rows)
            near = _distance(colors, rows[labels]) <= _reach(cues) + _CODEC_ERROR
            flat = flat | (unmixed & near)
        return beside(labels, trusted=flat, doubtful=~flat)

    raw = np.stack(_each(count, assign))

    def clean(t: int) -> np.ndarray:
        around = raw[[max(t - 1, 0), t, min(t + 1, count - 1)]]
        return label_cleaning.absorb_small(label_cleaning.vote(around), min_area=min_area)

    return np.stack(_each(count, clean))


def _number(
    labels: UInt16[np.ndarray, "t h w"], *, rows: UInt8[np.ndarray, "n 3"], keep: bool
) -> DecodedSegmentation:
    """Ids from labels; found entities are renumbered by size and empty ones dropped."""
    if keep:
        return DecodedSegmentation(entity_ids=labels.astype(np.int32), colors=rows[1:].copy())
    sizes = np.bincount(labels.ravel(), minlength=len(rows))[1:]
    order = np.argsort(-sizes, kind="stable")
    order = order[sizes[order] > 0]
    ids = np.zeros(len(rows), np.int32)
    ids[1 + order] = np.arange(1, len(order) + 1)
    return DecodedSegmentation(entity_ids=ids[labels], colors=rows[1 + order])
