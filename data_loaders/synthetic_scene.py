"""What a synthetic scene consists of, and how it projects to the picture.

World units: the picture's height at unit distance; x to the right, y downwards, z away from the
camera. A thing is a flat figure that faces the camera, so it has one distance at its centre and a
disparity that is linear over the picture (that is what a plane projects to).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float64, UInt8

from data_loaders.synthetic_shapes import Colour, Outline

WORLDS = ("simple", "full")
SIMPLE_MAX_ENTITIES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldConfig:
    """What kind of clips to make."""

    frames: int = 9
    """Number of frames, >= 1."""
    height: int = 64
    """Pixels, >= 16."""
    width: int = 96
    """Pixels, >= 16."""
    fps: float = 8.0
    """Frames per second that the clip claims."""
    min_entities: int = 1
    """Fewest moving entities (the two stuff planes come on top)."""
    max_entities: int = 40
    """Most moving entities; the simple world has at most 3."""
    world: Literal["full", "simple"] = "full"
    """'simple': few large clean things, static camera. 'full': everything."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: A value out of its range, naming the field.
        """
        limits = {"frames": 1, "height": 16, "width": 16, "min_entities": 1}
        for name, least in limits.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected >= {least}, got {getattr(self, name)}")
        if self.max_entities < self.min_entities:
            raise ValueError(
                f"max_entities: expected >= min_entities = {self.min_entities}, "
                f"got {self.max_entities}"
            )
        if self.world == "simple" and self.min_entities > SIMPLE_MAX_ENTITIES:
            raise ValueError(
                f"min_entities: expected <= {SIMPLE_MAX_ENTITIES} in the simple world, "
                f"got {self.min_entities}"
            )
        if self.world == "simple" and self.width < 0.75 * self.height:
            raise ValueError(
                f"width: expected >= 3/4 of the height in the simple world, "
                f"got {self.width} for {self.height}"
            )
        if self.fps <= 0:
            raise ValueError(f"fps: expected > 0, got {self.fps}")
        if self.world not in WORLDS:
            raise ValueError(f"world: expected one of {WORLDS}, got {self.world!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Thing:
    """One moving entity."""

    shape: str
    """Name of the outline."""
    colour: str
    """Name of the base colour."""
    texture: str
    """Name of the surface pattern."""
    motion: str
    """Words that describe the motion over the picture, as in "a disc ..."."""
    size: str
    """Word for the size in the picture, 'large', 'medium' or 'small'."""
    outline: Outline
    """Polygon in units of the radius."""
    surface: UInt8[np.ndarray, "s s 3"]
    """Texture over the outline's square, 0..255."""
    radius: float
    """World units."""
    position: Float64[np.ndarray, "t 3"]
    """Centre in each frame, world units; z is the same in all of them."""
    angle: Float64[np.ndarray, " t"]
    """Turn in the picture plane, radians."""
    tilt: float
    """Change of disparity from the centre to the right rim, 1 / world units."""


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """The camera in one frame, with the size of its picture."""

    x: float
    """Place, world units."""
    y: float
    """Place, world units."""
    pan: tuple[float, float]
    """Shift of the picture, picture heights."""
    zoom: float
    """Focal length over picture height."""
    height: int
    """Pixels."""
    width: int
    """Pixels."""

    def project(self, point: Float64[np.ndarray, " 3"]) -> tuple[float, float, float]:
        """Project a world point.

        Args:
            point: (x, y, z), world units.

        Returns:
            (x, y, scale): pixel coordinates (whole numbers are pixel centres) and pixels per
            world unit at that distance.
        """
        scale = self.height * self.zoom / point[2]
        x = (self.width - 1) / 2 + self.height * self.pan[0] + scale * (point[0] - self.x)
        y = (self.height - 1) / 2 + self.height * self.pan[1] + scale * (point[1] - self.y)
        return float(x), float(y), float(scale)

    def ground_disparity(
        self, rows: Float64[np.ndarray, " n"], *, floor_height: float
    ) -> Float64[np.ndarray, " n"]:
        """Disparity of the ground at pixel rows; negative above the horizon."""
        horizon = (self.height - 1) / 2 + self.height * self.pan[1]
        return (rows - horizon) / (self.height * self.zoom * (floor_height - self.y))


@dataclass(frozen=True, kw_only=True, slots=True)
class Camera:
    """Where the camera is and looks, in each frame."""

    x: Float64[np.ndarray, " t"]
    """Place, world units."""
    y: Float64[np.ndarray, " t"]
    """Place, world units."""
    pan: Float64[np.ndarray, "t 2"]
    """Shift of the whole picture, picture heights: a small rotation."""
    zoom: Float64[np.ndarray, " t"]
    """Focal length over picture height."""
    motion: str
    """Words that describe it, as in "the camera ..."."""

    def view(self, frame: int, *, height: int, width: int) -> "View":
        """The state in one frame, for a picture of `height` x `width` pixels."""
        return View(
            x=float(self.x[frame]),
            y=float(self.y[frame]),
            pan=(float(self.pan[frame, 0]), float(self.pan[frame, 1])),
            zoom=float(self.zoom[frame]),
            height=height,
            width=width,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Backdrop:
    """The stuff behind the things: an upright plane and the ground."""

    wall_name: str
    """'grey wall', 'blue sky'."""
    floor_name: str
    """'brown floor', 'green ground'."""
    wall_disparity: float
    """0 is a sky."""
    floor_height: float
    """y of the ground, world units."""
    wall_colours: tuple[Colour, Colour]
    """At the top and at the foot."""
    floor_colours: tuple[Colour, Colour]
    """At the foot of the wall and near the camera."""
    wall_pattern: UInt8[np.ndarray, "s s"] | None
    """Tile that darkens (< 128) and lightens (> 128) the wall."""
    floor_pattern: UInt8[np.ndarray, "s s"] | None
    """Tile that darkens and lightens the ground."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """Everything a clip is rendered from."""

    things: tuple[Thing, ...]
    """Entity k has id k + 1; the wall and the ground follow."""
    camera: Camera
    """One state per frame."""
    backdrop: Backdrop
    """Stuff planes."""
    light: tuple[float, float]
    """Shading per unit of (x, y) across a thing: the brightness gains this much at the rim."""


def static_camera(frames: int) -> Camera:
    """A camera at the origin that does not move."""
    zeros = np.zeros(frames)
    return Camera(
        x=zeros, y=zeros, pan=np.zeros((frames, 2)), zoom=np.ones(frames), motion="stays still"
    )


def direction_words(dx: float, dy: float, *, still_below: float) -> str:
    """Words for a displacement over the picture (y downwards), by its larger part."""
    if max(abs(dx), abs(dy)) < still_below:
        return "stays still"
    if abs(dx) >= abs(dy):
        return "moves right" if dx > 0 else "moves left"
    return "moves down" if dy > 0 else "moves up"
