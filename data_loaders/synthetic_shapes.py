"""Outlines, colours and textures of the synthetic world's entities.

An outline is a closed polygon about the unit circle, y downwards. A texture is a square picture
around it, `SURFACE_REACH` radii to each side.
"""

from collections.abc import Callable

import cv2
import numpy as np
from jaxtyping import Float64, UInt8

Outline = Float64[np.ndarray, "n 2"]
Colour = tuple[int, int, int]

# Eight hues that stay apart after the loss of a video codec and a tiny autoencoder.
SATURATED: dict[str, Colour] = {
    "red": (220, 40, 40),
    "orange": (245, 140, 25),
    "yellow": (245, 220, 45),
    "green": (45, 175, 65),
    "cyan": (45, 200, 215),
    "blue": (45, 80, 220),
    "purple": (135, 55, 185),
    "pink": (245, 120, 185),
}
# Muted, so that no entity of the simple world has the colour of what is behind it.
FLOORS: dict[str, Colour] = {
    "brown": (125, 92, 66),
    "olive": (112, 118, 74),
    "grey": (122, 124, 128),
}
WALLS: dict[str, Colour] = {
    "white": (226, 228, 230),
    "beige": (205, 190, 160),
    "slate": (88, 102, 122),
}
NEUTRALS: dict[str, Colour] = {
    "white": (232, 232, 232),
    "black": (34, 34, 38),
    "grey": (128, 128, 130),
    "brown": (122, 78, 44),
}

SIMPLE_SHAPES = ("disc", "square", "triangle", "diamond")
FULL_SHAPES = (
    *SIMPLE_SHAPES,
    "ellipse",
    "pebble",
    "polygon",
    "blob",
    "star",
    "ring sector",
    "bar",
)
# No corner of an outline is farther out than this, in radii along one axis.
SURFACE_REACH = 1.25
TEXTURES = ("plain", "striped", "checkered", "dotted", "speckled")


def shade(colour: Colour, *, gain: float) -> Colour:
    """A brighter or darker colour of the same hue, cut at white."""
    red, green, blue = (min(255, round(part * gain)) for part in colour)
    return red, green, blue


def _regular(count: int, *, phase: float = 0.0) -> Outline:
    angles = phase + 2 * np.pi * np.arange(count) / count
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _square(rng: np.random.Generator) -> Outline:
    del rng
    # The half diagonal is kept below 1.2 so that a square looks as large as a disc.
    return 0.86 * np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])


def _triangle(rng: np.random.Generator) -> Outline:
    del rng
    return np.array([[0.0, -1.0], [1.0, 0.85], [-1.0, 0.85]])


def _ellipse(rng: np.random.Generator) -> Outline:
    return _regular(48) * [1.0, rng.uniform(0.45, 0.75)]


def _superellipse(rng: np.random.Generator) -> Outline:
    # Exponent 2 / n in the parametric form; n = 4 is the well known squircle.
    circle = _regular(64)
    rounded = np.sign(circle) * np.abs(circle) ** (2.0 / rng.uniform(2.8, 5.0))
    return 0.9 * rounded * [1.0, rng.uniform(0.6, 1.0)]


def _convex_polygon(rng: np.random.Generator) -> Outline:
    count = int(rng.integers(5, 9))
    angles = 2 * np.pi * (np.arange(count) + rng.uniform(-0.3, 0.3, count)) / count
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _blob(rng: np.random.Generator) -> Outline:
    angles = 2 * np.pi * np.arange(72) / 72
    orders = np.arange(2, 6)
    phases = rng.uniform(0, 2 * np.pi, len(orders))
    weights = rng.uniform(0.04, 0.16, len(orders))
    radius = 1.0 + (weights * np.cos(orders * angles[:, None] + phases)).sum(axis=1)
    radius /= radius.max()
    return np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1)


def _star(rng: np.random.Generator) -> Outline:
    points = int(rng.integers(5, 8))
    radius = np.where(np.arange(2 * points) % 2 == 0, 1.0, rng.uniform(0.42, 0.58))
    return _regular(2 * points, phase=-np.pi / 2) * radius[:, None]


def _ring_sector(rng: np.random.Generator) -> Outline:
    angles = np.linspace(0, rng.uniform(1.1, 1.6) * np.pi, 32) + rng.uniform(0, 2 * np.pi)
    outer = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return np.concatenate([outer, rng.uniform(0.45, 0.6) * outer[::-1]])


def _bar(rng: np.random.Generator) -> Outline:
    thin = rng.uniform(0.18, 0.35)
    return np.array([[-0.95, -thin], [0.95, -thin], [0.95, thin], [-0.95, thin]])


_OUTLINES: dict[str, Callable[[np.random.Generator], Outline]] = {
    "disc": lambda rng: _regular(40),
    "square": _square,
    "triangle": _triangle,
    "diamond": lambda rng: _regular(4) * 1.1,
    "ellipse": _ellipse,
    "pebble": _superellipse,
    "polygon": _convex_polygon,
    "blob": _blob,
    "star": _star,
    "ring sector": _ring_sector,
    "bar": _bar,
}


def make_outline(shape: str, *, rng: np.random.Generator) -> Outline:
    """Closed polygon of a shape, about the unit circle, y downwards.

    Args:
        shape: One of `FULL_SHAPES`.
        rng: Source of the free parameters of the irregular shapes.

    Returns:
        Corner points (n, 2) as (x, y), each within `SURFACE_REACH` of 0.
    """
    return _OUTLINES[shape](rng)


def value_noise(
    size: int, *, cells: int, octaves: int, rng: np.random.Generator
) -> Float64[np.ndarray, "size size"]:
    """Smooth noise that tiles: each octave is a random grid, enlarged with wrapped cubics.

    Args:
        size: Side in pixels.
        cells: Grid cells along a side in the first octave.
        octaves: Number of doublings of the grid.
        rng: Source of the grids.

    Returns:
        Noise in [0, 1], min-max over the picture.
    """
    total = np.zeros((size, size))
    for octave in range(octaves):
        count = cells << octave
        grid = np.pad(rng.random((count, count)).astype(np.float32), 2, mode="wrap")
        step = -(-size // count)
        side = step * (count + 4)
        wide = cv2.resize(grid, (side, side), interpolation=cv2.INTER_CUBIC)
        tile = wide[2 * step : -2 * step, 2 * step : -2 * step]
        total += cv2.resize(tile, (size, size), interpolation=cv2.INTER_AREA) / 2**octave
    return (total - total.min()) / max(float(np.ptp(total)), 1e-9)


def _pattern(texture: str, *, size: int, rng: np.random.Generator) -> Float64[np.ndarray, "s s"]:
    """Weight of the second colour, 0..1."""
    axis = np.linspace(-1, 1, size)
    x, y = np.meshgrid(axis, axis)
    count = int(rng.integers(3, 6))
    if texture == "striped":
        return (np.sin(np.pi * count * x) > 0).astype(np.float64)
    if texture == "checkered":
        return (np.sin(np.pi * count * x) * np.sin(np.pi * count * y) > 0).astype(np.float64)
    if texture == "dotted":
        u, v = (np.mod(count * a, 1) - 0.5 for a in (x, y))
        return (np.hypot(u, v) < 0.27).astype(np.float64)
    if texture == "speckled":
        return value_noise(size, cells=6, octaves=3, rng=rng)
    return np.zeros((size, size))


def make_texture(
    texture: str, *, colour: Colour, size: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "size size 3"]:
    """Picture of an entity's surface: its colour, and a darker or lighter one in a pattern.

    The second colour has the hue of the first, so that the name of the colour stays true.

    Args:
        texture: One of `TEXTURES`.
        colour: Base colour, 0..255.
        size: Side in pixels.
        rng: Source of the pattern's parameters.

    Returns:
        Texture, 0..255.
    """
    base = np.array(colour, dtype=np.float64)
    if texture == "plain":
        return np.broadcast_to(base.astype(np.uint8), (size, size, 3)).copy()
    other = base * 0.68 if base.mean() > 80 else 0.85 * base + 0.15 * 255
    weight = _pattern(texture, size=size, rng=rng)[..., None]
    return np.rint(base + weight * (other - base)).astype(np.uint8)
