"""Painter of the synthetic scenes: colours, exact ids and disparity.

Things are painted from far to near. Ids and disparity are painted aliased at the size of the clip,
so that each pixel belongs to exactly one entity; colours are painted at twice the size and reduced
by area, so that edges look like a camera's.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float32, UInt8, UInt16

from data_loaders.synthetic_scene import Backdrop, Camera, Scene, Thing, project

# Colours are painted this much larger than the clip.
OVERSAMPLING = 2
# cv2 takes polygon corners in fixed point with this many fractional bits.
_SHIFT_BITS = 4
# Ground tiles per world unit.
_TILES_PER_UNIT = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Rendering:
    """Exact pictures of a scene."""

    rgb: UInt8[np.ndarray, "t h w 3"]
    """0..255."""
    entity_ids: UInt16[np.ndarray, "t h w"]
    """Things 1..K, wall K + 1, ground K + 2; nothing is unlabelled."""
    disparity: Float32[np.ndarray, "t h w"]
    """1 / distance, 1 / world units."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Canvas:
    """Pictures of the frame that is being painted."""

    rgb: UInt8[np.ndarray, "H W 3"]
    ids: UInt16[np.ndarray, "h w"]
    disparity: Float32[np.ndarray, "h w"]
    ground: Float32[np.ndarray, "h 1"]


def _ground_disparity(
    backdrop: Backdrop, *, camera: Camera, frame: int, rows: np.ndarray, height: int
) -> np.ndarray:
    """Disparity of the ground at each row (negative above the horizon)."""
    horizon = (height - 1) / 2 + height * camera.pan[frame, 1]
    above_ground = backdrop.floor_height - camera.y[frame]
    return (rows - horizon) / (height * camera.zoom[frame] * above_ground)


def _wrapped(tile: UInt8[np.ndarray, "s s"], *, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Sample a tile bilinearly at coordinates in tiles; returns gains around 1."""
    size = tile.shape[0]
    gain = cv2.remap(
        tile,
        (np.mod(x, 1.0) * size).astype(np.float32),
        (np.mod(y, 1.0) * size).astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_WRAP,
    )
    return gain.astype(np.float32) / 128.0


def _paint_wall(backdrop: Backdrop, *, camera: Camera, frame: int, x: np.ndarray, y: np.ndarray,
                 height: int) -> np.ndarray:
    """Colours of the upright plane at pixel columns x and rows y."""
    top, foot = (np.array(c, dtype=np.float32) for c in backdrop.wall_colours)
    weight = np.clip((y / height - 0.0) / 0.6, 0, 1).astype(np.float32)[:, None, None]
    colours = np.broadcast_to(top + weight * (foot - top), (len(y), len(x), 3))
    if backdrop.wall_pattern is None:
        return colours
    # The plane is far: it moves with the pan, and with the place as much as it is near.
    zoom = camera.zoom[frame]
    parallax = backdrop.wall_disparity
    u = (x / height - camera.pan[frame, 0]) / zoom + camera.x[frame] * parallax
    v = (y / height - camera.pan[frame, 1]) / zoom + camera.y[frame] * parallax
    grid_u, grid_v = np.meshgrid(u, v)
    return colours * _wrapped(backdrop.wall_pattern, x=grid_u, y=grid_v)[..., None]


def _paint_floor(backdrop: Backdrop, *, camera: Camera, frame: int, x: np.ndarray,
                 disparity: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Colours of the ground at pixel columns x, for rows of known disparity."""
    height, width = size
    far, near = (np.array(c, dtype=np.float32) for c in backdrop.floor_colours)
    span = max(float(disparity.max()) - backdrop.wall_disparity, 1e-6)
    weight = np.clip((disparity - backdrop.wall_disparity) / span, 0, 1).astype(np.float32)
    colours = np.broadcast_to(
        far + weight[:, None, None] * (near - far), (len(disparity), len(x), 3)
    )
    if backdrop.floor_pattern is None:
        return colours
    distance = 1.0 / np.maximum(disparity, 0.02)
    slope = (x - (width - 1) / 2 - height * camera.pan[frame, 0]) / (height * camera.zoom[frame])
    world_x = camera.x[frame] + slope[None, :] * distance[:, None]
    world_z = np.broadcast_to(distance[:, None], world_x.shape)
    gain = _wrapped(
        backdrop.floor_pattern, x=world_x * _TILES_PER_UNIT, y=world_z * _TILES_PER_UNIT
    )
    # Far tiles are smaller than a pixel and would flicker: they fade to their mean.
    fade = np.clip(disparity * 4.0 - 0.4, 0, 1).astype(np.float32)[:, None]
    return colours * (1.0 + fade * (gain - 1.0))[..., None]


def _paint_backdrop(scene: Scene, *, frame: int, height: int, width: int) -> _Canvas:
    backdrop, camera = scene.backdrop, scene.camera
    num_things = len(scene.things)
    rows = np.arange(height, dtype=np.float64)
    fine_rows = (np.arange(height * OVERSAMPLING) + 0.5) / OVERSAMPLING - 0.5
    fine_columns = (np.arange(width * OVERSAMPLING) + 0.5) / OVERSAMPLING - 0.5

    ground = _ground_disparity(backdrop, camera=camera, frame=frame, rows=rows, height=height)
    is_ground = ground > backdrop.wall_disparity
    ids = np.where(is_ground, num_things + 2, num_things + 1).astype(np.uint16)
    disparity = np.maximum(ground, backdrop.wall_disparity).astype(np.float32)[:, None]

    fine_ground = _ground_disparity(
        backdrop, camera=camera, frame=frame, rows=fine_rows, height=height
    )
    foot = int(np.searchsorted(fine_ground, backdrop.wall_disparity, side="right"))
    rgb = np.empty((height * OVERSAMPLING, width * OVERSAMPLING, 3), dtype=np.uint8)
    wall = _paint_wall(
        backdrop, camera=camera, frame=frame, x=fine_columns, y=fine_rows[:foot], height=height
    )
    rgb[:foot] = np.clip(wall, 0, 255)
    if foot < len(fine_rows):
        floor = _paint_floor(
            backdrop,
            camera=camera,
            frame=frame,
            x=fine_columns,
            disparity=fine_ground[foot:],
            size=(height, width),
        )
        rgb[foot:] = np.clip(floor, 0, 255)
    return _Canvas(
        rgb=rgb,
        ids=np.repeat(ids[:, None], width, axis=1),
        disparity=np.repeat(disparity, width, axis=1),
        ground=disparity,
    )


def _fill(corners: np.ndarray, *, size: tuple[int, int]) -> tuple[np.ndarray, tuple[slice, slice]]:
    """Aliased mask of a polygon, and the part of the picture it covers (maybe empty)."""
    low = np.maximum(np.floor(corners.min(axis=0)).astype(int) - 1, 0)
    high = np.minimum(np.ceil(corners.max(axis=0)).astype(int) + 2, (size[1], size[0]))
    window = (slice(low[1], high[1]), slice(low[0], high[0]))
    if (high <= low).any():
        return np.zeros((0, 0), dtype=np.uint8), window
    mask = np.zeros((high[1] - low[1], high[0] - low[0]), dtype=np.uint8)
    fixed_point = np.rint((corners - low) * (1 << _SHIFT_BITS)).astype(np.int32)
    cv2.fillPoly(mask, [fixed_point], 1, lineType=cv2.LINE_8, shift=_SHIFT_BITS)
    return mask, window


def _corners(thing: Thing, *, centre: np.ndarray, radius: float, angle: float) -> np.ndarray:
    # cv2 also fills the pixels its outline touches: half a pixel less keeps the area true.
    radius = max(radius - 0.5, 0.5)
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, sin], [-sin, cos]])
    return centre + radius * (thing.outline @ turn)


def _surface(
    thing: Thing, *, centre: np.ndarray, radius: float, angle: float,
    window: tuple[slice, slice], light: tuple[float, float],
) -> np.ndarray:
    """Shaded colours of a thing over a window of the large picture."""
    rows = np.arange(window[0].start, window[0].stop, dtype=np.float32)
    columns = np.arange(window[1].start, window[1].stop, dtype=np.float32)
    if thing.texture == "plain":
        colours = thing.surface[0, 0].astype(np.float32)
    else:
        half = (thing.surface.shape[0] - 1) / 2
        cos, sin = np.cos(angle) * half / radius / 1.25, np.sin(angle) * half / radius / 1.25
        x0, y0 = columns[0] - centre[0], rows[0] - centre[1]
        inverse = np.array(
            [
                [cos, sin, cos * x0 + sin * y0 + half],
                [-sin, cos, -sin * x0 + cos * y0 + half],
            ]
        )
        colours = cv2.warpAffine(
            thing.surface,
            inverse,
            (len(columns), len(rows)),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REFLECT_101,
        ).astype(np.float32)
    across = np.float32(light[0] / radius) * (columns - np.float32(centre[0]))
    down = np.float32(light[1] / radius) * (rows - np.float32(centre[1]))
    gain = (1.0 + across)[None, :] + down[:, None]
    return np.clip(colours * gain[..., None], 0, 255).astype(np.uint8)


def _paint_thing(
    canvas: _Canvas, *, thing: Thing, entity_id: int, frame: int,
    projected: np.ndarray, light: tuple[float, float],
) -> None:
    centre, radius = projected[:2], float(projected[2]) * thing.radius
    angle = float(thing.angle[frame])
    mask, window = _fill(
        _corners(thing, centre=centre, radius=radius, angle=angle), size=canvas.ids.shape
    )
    if mask.any():
        where = mask.astype(bool)
        canvas.ids[window][where] = entity_id
        columns = np.arange(window[1].start, window[1].stop)
        tilted = thing.tilt * np.clip((columns - centre[0]) / radius, -1.25, 1.25)
        plane = (1.0 / thing.position[frame, 2] + tilted).astype(np.float32)
        # A tilted rim would dip below the ground it stands on.
        plane = np.maximum(plane[None, :], canvas.ground[window[0]])
        np.copyto(canvas.disparity[window], plane, where=where)
    fine_centre = (centre + 0.5) * OVERSAMPLING - 0.5
    fine_radius = radius * OVERSAMPLING
    fine_mask, fine_window = _fill(
        _corners(thing, centre=fine_centre, radius=fine_radius, angle=angle),
        size=canvas.rgb.shape[:2],
    )
    if fine_mask.any():
        colours = _surface(
            thing,
            centre=fine_centre,
            radius=fine_radius,
            angle=angle,
            window=fine_window,
            light=light,
        )
        np.copyto(canvas.rgb[fine_window], colours, where=fine_mask.astype(bool)[..., None])


def render(scene: Scene, *, height: int, width: int) -> Rendering:
    """Paint every frame of a scene.

    Args:
        scene: What to paint.
        height: Pixels.
        width: Pixels.

    Returns:
        Colours, ids and disparity of each frame.
    """
    camera = scene.camera
    frames = len(camera.x)
    tracks = [
        project(thing.position, camera=camera, height=height, width=width)
        for thing in scene.things
    ]
    rgb = np.empty((frames, height, width, 3), dtype=np.uint8)
    entity_ids = np.empty((frames, height, width), dtype=np.uint16)
    disparity = np.empty((frames, height, width), dtype=np.float32)
    for frame in range(frames):
        canvas = _paint_backdrop(scene, frame=frame, height=height, width=width)
        distances = [-thing.position[frame, 2] for thing in scene.things]
        for index in np.argsort(distances, kind="stable"):
            _paint_thing(
                canvas,
                thing=scene.things[index],
                entity_id=int(index) + 1,
                frame=frame,
                projected=tracks[index][frame],
                light=scene.light,
            )
        rgb[frame] = cv2.resize(canvas.rgb, (width, height), interpolation=cv2.INTER_AREA)
        entity_ids[frame] = canvas.ids
        disparity[frame] = canvas.disparity
    return Rendering(rgb=rgb, entity_ids=entity_ids, disparity=disparity)
