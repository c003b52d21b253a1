"""What a synthetic scene consists of, and how it projects to the picture.

World units: the picture's height at unit distance; x to the right, y downwards, z away from the
camera. A thing is a flat figure that faces the camera, so it has one distance at its centre and a
disparity that is linear over the picture (that is what a plane projects to).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, UInt8

from data_loaders.synthetic_shapes import Colour, Outline


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
    """Centre in each frame, world units."""
    angle: Float64[np.ndarray, " t"]
    """Turn in the picture plane, radians."""
    tilt: float
    """Change of disparity from the centre to the right rim, 1 / world units."""


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


def project(
    position: Float64[np.ndarray, "t 3"], *, camera: Camera, height: int, width: int
) -> Float64[np.ndarray, "t 3"]:
    """Project world points, one per frame, to pixels.

    Args:
        position: World points.
        camera: Camera of the same frames.
        height: Of the picture, pixels.
        width: Of the picture, pixels.

    Returns:
        (x, y, scale): pixel coordinates (whole numbers are pixel centres) and pixels per world
        unit at that distance.
    """
    scale = height * camera.zoom / position[:, 2]
    x = (width - 1) / 2 + height * camera.pan[:, 0] + scale * (position[:, 0] - camera.x)
    y = (height - 1) / 2 + height * camera.pan[:, 1] + scale * (position[:, 1] - camera.y)
    return np.stack([x, y, scale], axis=1)


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
