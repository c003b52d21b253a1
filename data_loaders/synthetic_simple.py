"""The simple world: few, large, clean things that a tiny model learns on two CPU cores.

Everything the captions do not say is kept small: no texture noise, one speed range, one camera,
and a size word that also fixes the distance.
"""

import numpy as np

from data_loaders.synthetic_scene import Backdrop, Scene, Thing, WorldConfig, static_camera
from data_loaders.synthetic_shapes import (
    FLOORS,
    SATURATED,
    SIMPLE_SHAPES,
    WALLS,
    make_outline,
    make_texture,
    shade,
)

# Size word -> (radius over picture height, disparity): the larger the nearer.
_SIZES = {"large": (0.23, 0.9), "medium": (0.18, 0.7), "small": (0.13, 0.5)}
# Displacement per unit of clip length, in picture heights.
MOTIONS = {
    "stays still": (0.0, 0.0),
    "moves left": (-1.0, 0.0),
    "moves right": (1.0, 0.0),
    "moves up": (0.0, -1.0),
    "moves down": (0.0, 1.0),
}
_NUM_THINGS_ODDS = (0.5, 0.35, 0.15)
# Horizon at half height, ground disparity 1 at the lower edge, wall foot at 0.6 of the height.
_FLOOR_HEIGHT = 0.5
_WALL_DISPARITY = 0.2
_PLACEMENT_TRIES = 40
# The farthest corner of a shape in radii, and a free border, in picture heights.
_REACH = 1.1
_MARGIN = 0.015


def _backdrop(rng: np.random.Generator) -> Backdrop:
    floor = str(rng.choice(list(FLOORS)))
    wall = str(rng.choice(list(WALLS)))
    return Backdrop(
        wall_name=f"{wall} wall",
        floor_name=f"{floor} floor",
        wall_disparity=_WALL_DISPARITY,
        floor_height=_FLOOR_HEIGHT,
        wall_colours=(shade(WALLS[wall], gain=1.1), shade(WALLS[wall], gain=0.9)),
        floor_colours=(shade(FLOORS[floor], gain=0.85), shade(FLOORS[floor], gain=1.15)),
        wall_pattern=None,
        floor_pattern=None,
    )


def _path(
    rng: np.random.Generator, *, size: str, motion: str, frames: int, aspect: float
) -> np.ndarray:
    """Centre in each frame (t, 2), picture heights from the upper left, wholly inside."""
    radius, disparity = _SIZES[size]
    reach = _REACH * radius + _MARGIN
    # The lower rim stays above the ground row of the same disparity: a thing is never in it.
    low = np.array([reach, reach])
    high = np.array([aspect - reach, 0.5 + disparity * _FLOOR_HEIGHT - reach])
    step = np.array(MOTIONS[motion]) * rng.uniform(0.22, 0.34) * (frames > 1)
    step = np.clip(step, low - high, high - low)
    start = rng.uniform(np.maximum(low, low - step), np.minimum(high, high - step))
    return start + np.linspace(0, 1, frames)[:, None] * step


def _place(
    rng: np.random.Generator, *, sizes: list[str], motions: list[str], frames: int, aspect: float
) -> list[np.ndarray]:
    """Paths that leave most of each thing in sight; the best of some tries."""
    best: tuple[float, list[np.ndarray]] = (-np.inf, [])
    for _ in range(_PLACEMENT_TRIES):
        paths = [
            _path(rng, size=size, motion=motion, frames=frames, aspect=aspect)
            for size, motion in zip(sizes, motions, strict=True)
        ]
        clearance = np.inf
        for near in range(len(paths)):
            for far in range(near + 1, len(paths)):
                gap = np.linalg.norm(paths[near] - paths[far], axis=1).min()
                clearance = min(clearance, gap - _SIZES[sizes[near]][0])
        if clearance > best[0]:
            best = (clearance, paths)
        if clearance >= 0:
            break
    return best[1]


def make_simple_scene(rng: np.random.Generator, *, config: WorldConfig) -> Scene:
    """Draw a scene of one to three things, the nearest first.

    Args:
        rng: Source of every choice.
        config: Number of frames, size of the picture, limits of the number of things.

    Returns:
        The scene.
    """
    frames, aspect = config.frames, config.width / config.height
    odds = np.array(_NUM_THINGS_ODDS[config.min_entities - 1 : config.max_entities])
    count = config.min_entities + int(rng.choice(len(odds), p=odds / odds.sum()))
    size_order = list(_SIZES)
    sizes = [size_order[i] for i in sorted(rng.choice(3, count, replace=False))]
    colours = [str(c) for c in rng.choice(list(SATURATED), count, replace=False)]
    shapes = [str(s) for s in rng.choice(SIMPLE_SHAPES, count)]
    names = list(MOTIONS) if frames > 1 else ["stays still"]
    motions = [str(m) for m in rng.choice(names, count)]
    paths = _place(rng, sizes=sizes, motions=motions, frames=frames, aspect=aspect)
    things = []
    for index, path in enumerate(paths):
        radius, disparity = _SIZES[sizes[index]]
        plane = (path - [aspect / 2, 0.5]) / disparity
        colour = SATURATED[colours[index]]
        things.append(
            Thing(
                shape=shapes[index],
                colour=colours[index],
                texture="plain",
                motion=motions[index],
                size=sizes[index],
                outline=make_outline(shapes[index], rng=rng),
                surface=make_texture("plain", colour=colour, size=2, rng=rng),
                radius=radius / disparity,
                position=np.column_stack([plane, np.full(frames, 1 / disparity)]),
                angle=np.zeros(frames),
                tilt=0.0,
            )
        )
    return Scene(
        things=tuple(things),
        camera=static_camera(frames),
        backdrop=_backdrop(rng),
        light=(-0.06, -0.14),
    )
