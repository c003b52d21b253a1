"""The full world: up to forty textured things, six motions, a moving camera, parallax."""

from dataclasses import dataclass

import numpy as np

from data_loaders.synthetic_scene import (
    Backdrop,
    Camera,
    Scene,
    Thing,
    WorldConfig,
    direction_words,
    static_camera,
)
from data_loaders.synthetic_shapes import (
    FLOORS,
    FULL_SHAPES,
    NEUTRALS,
    SATURATED,
    TEXTURES,
    WALLS,
    Colour,
    make_outline,
    make_texture,
    shade,
    value_noise,
)

_SKIES: dict[str, Colour] = {"blue": (120, 170, 225), "grey": (170, 176, 184)}
_GROUNDS: dict[str, Colour] = {**FLOORS, "green": (92, 132, 66), "sandy": (196, 174, 124)}
_COLOURS: dict[str, Colour] = {**SATURATED, **NEUTRALS}
# Nearest and farthest thing, 1 / world units.
_NEAR_DISPARITY = 0.8
_FAR_DISPARITY = 0.12
_SURFACE_SIZE = 160
_MOTIONS = ("still", "linear", "linear", "linear", "enter", "leave", "bounce", "sway", "arc")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Stage:
    """What is settled before the things are drawn."""

    backdrop: Backdrop
    camera: Camera
    height: int
    width: int
    count: int


def _tile(rng: np.random.Generator, *, kinds: tuple[str, ...]) -> np.ndarray:
    """Tile of gains around 128 (0.7 .. 1.3), and never a seam."""
    kind = str(rng.choice(kinds))
    size = 128
    axis = np.arange(size) / size
    x, y = np.meshgrid(axis, axis)
    count = int(rng.integers(1, 4))
    if kind == "checker":
        pattern = (np.sin(2 * np.pi * count * x) * np.sin(2 * np.pi * count * y) > 0) * 1.0
    elif kind == "stripe":
        pattern = (np.sin(2 * np.pi * 2 * count * x) > 0) * 1.0
    elif kind == "brick":
        row = np.floor(8 * y)
        joint_x = np.mod(4 * x + 0.5 * np.mod(row, 2), 1) < 0.06
        pattern = 0.7 * ~(joint_x | (np.mod(8 * y, 1) < 0.1))
    else:
        pattern = value_noise(size, cells=4, octaves=4, rng=rng)
    strength = rng.uniform(25, 45)
    return np.rint(128 + strength * (pattern - pattern.mean())).astype(np.uint8)


def _backdrop(rng: np.random.Generator) -> Backdrop:
    outdoors = bool(rng.random() < 0.5)
    walls, floors = (_SKIES, _GROUNDS) if outdoors else (WALLS, FLOORS)
    wall, floor = str(rng.choice(list(walls))), str(rng.choice(list(floors)))
    return Backdrop(
        wall_name=f"{wall} {'sky' if outdoors else 'wall'}",
        floor_name=f"{floor} {'ground' if outdoors else 'floor'}",
        wall_disparity=0.0 if outdoors else float(rng.uniform(0.08, 0.11)),
        floor_height=float(rng.uniform(0.45, 0.8)),
        wall_colours=(shade(walls[wall], gain=0.85), shade(walls[wall], gain=1.12)),
        floor_colours=(shade(floors[floor], gain=0.9), shade(floors[floor], gain=1.1)),
        wall_pattern=_tile(rng, kinds=("noise",) if outdoors else ("noise", "stripe", "brick")),
        floor_pattern=_tile(rng, kinds=("noise",) if outdoors else ("checker", "noise", "stripe")),
    )


def _camera(rng: np.random.Generator, *, frames: int) -> Camera:
    still = static_camera(frames)
    kind = str(rng.choice(("still", "pan", "truck", "zoom", "shake")))
    time = np.linspace(-0.5, 0.5, frames) if frames > 1 else np.zeros(1)
    sign = float(rng.choice((-1.0, 1.0)))
    x, y, pan, zoom = still.x, still.y, still.pan.copy(), still.zoom
    motion = still.motion
    if kind == "pan":
        # The picture shifts against the camera's turn.
        pan[:, 0] = -sign * rng.uniform(0.15, 0.4) * time
        motion = "pans right" if sign > 0 else "pans left"
    elif kind == "truck":
        x = sign * rng.uniform(0.3, 0.8) * time
        motion = "moves right" if sign > 0 else "moves left"
    elif kind == "zoom":
        zoom = np.exp(sign * rng.uniform(0.15, 0.35) * time)
        motion = "zooms in" if sign > 0 else "zooms out"
    elif kind == "shake":
        pan = rng.uniform(0.004, 0.01) * rng.standard_normal((frames, 2))
        motion = "shakes"
    return Camera(x=x, y=y, pan=pan, zoom=zoom, motion=motion)


def _offsets(
    rng: np.random.Generator, *, motion: str, time: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Shift against the middle of the path, picture heights (t,) each."""
    angle = rng.choice((0.0, 0.5, 1.0, 1.5)) * np.pi + rng.uniform(-0.4, 0.4)
    reach = rng.uniform(0.15, 0.7)
    x, y = np.zeros_like(time), np.zeros_like(time)
    if motion == "linear":
        x, y = reach * np.cos(angle) * time, reach * np.sin(angle) * time
    elif motion == "bounce":
        x = rng.uniform(-0.3, 0.3) * time
        hops = rng.integers(1, 4)
        y = -rng.uniform(0.12, 0.3) * np.abs(np.sin(np.pi * (hops * time + rng.random())))
    elif motion == "sway":
        x = rng.uniform(0.08, 0.25) * np.sin(2 * np.pi * (rng.uniform(1, 2) * time + rng.random()))
    elif motion == "arc":
        x = rng.choice((-1.0, 1.0)) * rng.uniform(0.3, 0.8) * time
        y = rng.uniform(0.9, 1.6) * (time**2 - 0.25)
    return x, y


def _path(
    rng: np.random.Generator, *, motion: str, frames: int, radius: float, aspect: float
) -> np.ndarray:
    """Centre in each frame (t, 2), picture heights from the picture's centre."""
    time = np.linspace(-0.5, 0.5, frames) if frames > 1 else np.zeros(1)
    middle = np.array([rng.uniform(-0.45, 0.45) * aspect, rng.uniform(-0.35, 0.42)])
    if motion in ("enter", "leave"):
        side = float(rng.choice((-1.0, 1.0)))
        outside = side * (aspect / 2 + 1.15 * radius)
        inside = side * rng.uniform(-0.2, 0.3) * aspect
        ends = (outside, inside) if motion == "enter" else (inside, outside)
        x = ends[0] + (time + 0.5) * (ends[1] - ends[0])
        return np.column_stack([x, np.full(frames, middle[1])])
    x, y = _offsets(rng, motion=motion, time=time)
    return middle + np.column_stack([x, y])


def _motion_words(stage: _Stage, *, motion: str, position: np.ndarray) -> str:
    named = {"bounce": "bounces", "sway": "sways", "arc": "flies in an arc"}
    if motion in named and len(position) > 1:
        return named[motion]
    size = {"height": stage.height, "width": stage.width}
    first = stage.camera.view(0, **size).project(position[0])
    last = stage.camera.view(len(position) - 1, **size).project(position[-1])
    words = direction_words(last[0] - first[0], last[1] - first[1], still_below=0.02 * stage.height)
    if motion == "enter" and words in ("moves left", "moves right"):
        return f"{words} into view"
    if motion == "leave" and words in ("moves left", "moves right"):
        return f"{words} out of view"
    return words


def _thing(rng: np.random.Generator, *, stage: _Stage, disparity: float, max_tilt: float) -> Thing:
    frames, aspect = len(stage.camera.x), stage.width / stage.height
    # More things are smaller ones, so that forty still show.
    typical = 0.13 * (6 / max(stage.count, 3)) ** 0.35
    on_screen = float(np.clip(typical * rng.lognormal(0, 0.4), 0.03, 0.3))
    motion = str(rng.choice(_MOTIONS)) if frames > 1 else "still"
    path = _path(rng, motion=motion, frames=frames, radius=on_screen, aspect=aspect)
    radius = on_screen / disparity
    plane = path / disparity
    # The lower rim stands on the ground at most; the shift keeps the form of the path.
    sunk = float((plane[:, 1] + 1.1 * radius).max()) - stage.backdrop.floor_height
    plane[:, 1] -= max(sunk, 0.0) if motion != "bounce" else sunk
    shape, texture = str(rng.choice(FULL_SHAPES)), str(rng.choice(TEXTURES))
    colour = str(rng.choice(list(_COLOURS)))
    spin = rng.uniform(-2.5, 2.5) * (rng.random() < 0.5)
    position = np.column_stack([plane, np.full(frames, 1 / disparity)])
    large, medium = 0.16, 0.09
    return Thing(
        shape=shape,
        colour=colour,
        texture=texture,
        motion=_motion_words(stage, motion=motion, position=position),
        size="large" if on_screen > large else "medium" if on_screen > medium else "small",
        outline=make_outline(shape, rng=rng),
        surface=make_texture(texture, colour=_COLOURS[colour], size=_SURFACE_SIZE, rng=rng),
        radius=radius,
        position=position,
        angle=rng.uniform(-0.5, 0.5) + spin * np.linspace(0, 1, frames),
        tilt=float(rng.uniform(-max_tilt, max_tilt)),
    )


def make_full_scene(rng: np.random.Generator, *, config: WorldConfig) -> Scene:
    """Draw a scene; the number of things is lognormal, cut to the limits.

    Args:
        rng: Source of every choice.
        config: Number of frames, size of the picture, limits of the number of things.

    Returns:
        The scene.
    """
    drawn = round(rng.lognormal(np.log(7), 0.8))
    count = int(np.clip(drawn, config.min_entities, config.max_entities))
    stage = _Stage(
        backdrop=_backdrop(rng),
        camera=_camera(rng, frames=config.frames),
        height=config.height,
        width=config.width,
        count=count,
    )
    # One thing per layer of disparity: tilted planes never cross, so that the painter's order is
    # the order of the disparities at every pixel.
    layer = (_NEAR_DISPARITY - _FAR_DISPARITY) / count
    places = (rng.permutation(count) + rng.uniform(0.3, 0.7, count)) * layer
    things = tuple(
        _thing(
            rng,
            stage=stage,
            disparity=float(_FAR_DISPARITY + place),
            max_tilt=min(0.2 * layer, 0.04),
        )
        for place in places
    )
    light = rng.uniform(0, 2 * np.pi)
    return Scene(
        things=things,
        camera=stage.camera,
        backdrop=stage.backdrop,
        light=(0.18 * float(np.cos(light)), 0.18 * float(np.sin(light))),
    )
