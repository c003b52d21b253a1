"""Painter of the stuff planes of the synthetic scenes: a wall or sky, and the ground."""

import cv2
import numpy as np
from jaxtyping import Float32, Float64, UInt8

from data_loaders.synthetic_scene import Backdrop, View

# Ground tiles per world unit.
_TILES_PER_UNIT = 0.5
# The wall's gradient ends at this part of the picture's height.
_GRADIENT_END = 0.6
# Nearer than 1 / this, the ground is drawn as if at this disparity: no division by the horizon.
_HORIZON_DISPARITY = 0.02


def _gains(
    tile: UInt8[np.ndarray, "s s"], *, x: Float64[np.ndarray, "h w"], y: Float64[np.ndarray, "h w"]
) -> Float32[np.ndarray, "h w"]:
    """Sample an endless tiling bilinearly at coordinates in tiles; returns gains around 1."""
    size = tile.shape[0]
    sampled = cv2.remap(
        tile,
        (np.mod(x, 1.0) * size).astype(np.float32),
        (np.mod(y, 1.0) * size).astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_WRAP,
    )
    return sampled.astype(np.float32) / 128.0


def paint_wall(
    backdrop: Backdrop,
    *,
    view: View,
    x: Float64[np.ndarray, " w"],
    y: Float64[np.ndarray, " h"],
) -> UInt8[np.ndarray, "h w 3"]:
    """Colours of the upright plane.

    Args:
        backdrop: The planes.
        view: Camera.
        x: Pixel columns to paint, in pixels of the view.
        y: Pixel rows to paint, in pixels of the view.

    Returns:
        Colours, 0..255.
    """
    top, foot = (np.array(c, dtype=np.float32) for c in backdrop.wall_colours)
    weight = np.clip(y / (_GRADIENT_END * view.height), 0, 1).astype(np.float32)[:, None, None]
    colours = np.broadcast_to(top + weight * (foot - top), (len(y), len(x), 3))
    if backdrop.wall_pattern is not None:
        # The plane follows the pan, and the camera's place by as much as it is near.
        near = backdrop.wall_disparity
        u = (x / view.height - view.pan[0]) / view.zoom + view.x * near
        v = (y / view.height - view.pan[1]) / view.zoom + view.y * near
        grid_u, grid_v = np.meshgrid(u, v)
        colours = colours * _gains(backdrop.wall_pattern, x=grid_u, y=grid_v)[..., None]
    return np.clip(colours, 0, 255).astype(np.uint8)


def paint_floor(
    backdrop: Backdrop,
    *,
    view: View,
    x: Float64[np.ndarray, " w"],
    disparity: Float64[np.ndarray, " h"],
) -> UInt8[np.ndarray, "h w 3"]:
    """Colours of the ground.

    Args:
        backdrop: The planes.
        view: Camera.
        x: Pixel columns to paint, in pixels of the view.
        disparity: Of the ground at each row to paint, 1 / world units, > 0.

    Returns:
        Colours, 0..255.
    """
    far, near = (np.array(c, dtype=np.float32) for c in backdrop.floor_colours)
    span = max(float(disparity.max()) - backdrop.wall_disparity, 1e-6)
    weight = np.clip((disparity - backdrop.wall_disparity) / span, 0, 1).astype(np.float32)
    colours = np.broadcast_to(
        far + weight[:, None, None] * (near - far), (len(disparity), len(x), 3)
    )
    if backdrop.floor_pattern is not None:
        distance = 1.0 / np.maximum(disparity, _HORIZON_DISPARITY)
        middle = (view.width - 1) / 2 + view.height * view.pan[0]
        slope = (x - middle) / (view.height * view.zoom)
        world_x = view.x + slope[None, :] * distance[:, None]
        world_z = np.broadcast_to(distance[:, None], world_x.shape)
        gains = _gains(
            backdrop.floor_pattern, x=world_x * _TILES_PER_UNIT, y=world_z * _TILES_PER_UNIT
        )
        # Far tiles are smaller than a pixel and would flicker: they fade to their mean.
        fade = np.clip(disparity * 4.0 - 0.4, 0, 1).astype(np.float32)[:, None]
        colours = colours * (1.0 + fade * (gains - 1.0))[..., None]
    return np.clip(colours, 0, 255).astype(np.uint8)
