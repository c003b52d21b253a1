"""Painter of the synthetic scenes: colours, exact ids and disparity.

Things are painted from far to near. Ids and disparity are painted aliased at the size of the clip,
so that each pixel belongs to exactly one entity; colours are painted at twice the size and reduced
by area, so that edges look like a camera's.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float32, Float64, UInt8, UInt16

from data_loaders.synthetic_backdrop import paint_floor, paint_wall
from data_loaders.synthetic_scene import Scene, Thing, View
from data_loaders.synthetic_shapes import SURFACE_REACH

# Colours are painted this much larger than the clip.
OVERSAMPLING = 2
# cv2 takes polygon corners in fixed point with this many fractional bits.
_SHIFT_BITS = 4

Window = tuple[slice, slice]


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
    """Pictures of the frame that is being painted; colours are larger by `OVERSAMPLING`."""

    rgb: UInt8[np.ndarray, "H W 3"]
    ids: UInt16[np.ndarray, "h w"]
    disparity: Float32[np.ndarray, "h w"]
    ground: Float32[np.ndarray, "h 1"]

    def copy(self) -> "_Canvas":
        """Copy of what is painted on; the ground is only read."""
        return _Canvas(
            rgb=self.rgb.copy(),
            ids=self.ids.copy(),
            disparity=self.disparity.copy(),
            ground=self.ground,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pose:
    """Where a thing is in a picture, pixels and radians."""

    x: float
    y: float
    radius: float
    angle: float

    def enlarged(self) -> "_Pose":
        """The same place in the larger picture; pixel centres are at whole numbers in both."""
        return _Pose(
            x=(self.x + 0.5) * OVERSAMPLING - 0.5,
            y=(self.y + 0.5) * OVERSAMPLING - 0.5,
            radius=self.radius * OVERSAMPLING,
            angle=self.angle,
        )


def _paint_backdrop(scene: Scene, *, view: View) -> _Canvas:
    backdrop = scene.backdrop
    height, width, wall_id = view.height, view.width, len(scene.things) + 1
    fine_rows = (np.arange(height * OVERSAMPLING) + 0.5) / OVERSAMPLING - 0.5
    fine_columns = (np.arange(width * OVERSAMPLING) + 0.5) / OVERSAMPLING - 0.5

    rows = np.arange(height, dtype=np.float64)
    ground = view.ground_disparity(rows, floor_height=backdrop.floor_height)
    ids = np.where(ground > backdrop.wall_disparity, wall_id + 1, wall_id).astype(np.uint16)
    disparity = np.maximum(ground, backdrop.wall_disparity).astype(np.float32)[:, None]

    fine_ground = view.ground_disparity(fine_rows, floor_height=backdrop.floor_height)
    foot = int(np.searchsorted(fine_ground, backdrop.wall_disparity, side="right"))
    parts = [paint_wall(backdrop, view=view, x=fine_columns, y=fine_rows[:foot])]
    if foot < len(fine_rows):
        parts.append(paint_floor(backdrop, view=view, x=fine_columns, disparity=fine_ground[foot:]))
    return _Canvas(
        rgb=np.concatenate(parts),
        ids=np.repeat(ids[:, None], width, axis=1),
        disparity=np.repeat(disparity, width, axis=1),
        ground=disparity,
    )


def _corners(thing: Thing, *, pose: _Pose) -> Float64[np.ndarray, "n 2"]:
    # cv2 also fills the pixels its outline touches: half a pixel less keeps the area true.
    radius = max(pose.radius - 0.5, 0.5)
    cos, sin = radius * np.cos(pose.angle), radius * np.sin(pose.angle)
    return thing.outline @ np.array([[cos, sin], [-sin, cos]]) + [pose.x, pose.y]


def _fill(
    corners: Float64[np.ndarray, "n 2"], *, size: tuple[int, int]
) -> tuple[np.ndarray, Window] | None:
    """Aliased mask (bool) of a polygon in the window it covers; None where it covers nothing."""
    left, top = np.maximum(np.floor(corners.min(axis=0)).astype(int) - 1, 0).tolist()
    right, bottom = (np.ceil(corners.max(axis=0)).astype(int) + 2).tolist()
    right, bottom = min(right, size[1]), min(bottom, size[0])
    if right <= left or bottom <= top:
        return None
    mask = np.zeros((bottom - top, right - left), dtype=np.uint8)
    fixed_point = np.rint((corners - [left, top]) * (1 << _SHIFT_BITS)).astype(np.int32)
    cv2.fillPoly(mask, [fixed_point], 1, lineType=cv2.LINE_8, shift=_SHIFT_BITS)
    return mask.view(bool), (slice(top, bottom), slice(left, right))


def _turned_surface(thing: Thing, *, pose: _Pose, window: Window) -> UInt8[np.ndarray, "h w 3"]:
    """The texture as it lies in a window of the picture."""
    half = (thing.surface.shape[0] - 1) / 2
    scale = half / (pose.radius * SURFACE_REACH)
    cos, sin = scale * np.cos(pose.angle), scale * np.sin(pose.angle)
    x, y = window[1].start - pose.x, window[0].start - pose.y
    to_surface = np.array(
        [[cos, sin, cos * x + sin * y + half], [-sin, cos, cos * y - sin * x + half]]
    )
    return cv2.warpAffine(
        thing.surface,
        to_surface,
        (window[1].stop - window[1].start, window[0].stop - window[0].start),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REFLECT_101,
    )


def _shaded_surface(
    thing: Thing, *, pose: _Pose, window: Window, light: tuple[float, float]
) -> UInt8[np.ndarray, "h w 3"]:
    """Colours of a thing over a window of the picture, brighter towards the light."""
    rows = np.arange(window[0].start, window[0].stop, dtype=np.float32) - np.float32(pose.y)
    columns = np.arange(window[1].start, window[1].stop, dtype=np.float32) - np.float32(pose.x)
    across = np.float32(light[0] / pose.radius) * columns + np.float32(1.0)
    down = np.float32(light[1] / pose.radius) * rows
    gain = across[None, :, None] + down[:, None, None]
    if thing.texture == "plain":
        colours = thing.surface[0, 0].astype(np.float32) * gain
    else:
        colours = _turned_surface(thing, pose=pose, window=window) * gain
    return np.minimum(colours, np.float32(255.0)).astype(np.uint8)


def _paint_thing(
    canvas: _Canvas, *, thing: Thing, entity_id: int, pose: _Pose, light: tuple[float, float]
) -> None:
    filled = _fill(_corners(thing, pose=pose), size=canvas.ids.shape)
    if filled is not None:
        mask, window = filled
        np.copyto(canvas.ids[window], np.uint16(entity_id), where=mask)
        columns = np.arange(window[1].start, window[1].stop)
        across = np.clip((columns - pose.x) / pose.radius, -SURFACE_REACH, SURFACE_REACH)
        plane = (1.0 / thing.position[0, 2] + thing.tilt * across).astype(np.float32)
        # A tilted rim would dip below the ground it stands on.
        plane = np.maximum(plane[None, :], canvas.ground[window[0]])
        np.copyto(canvas.disparity[window], plane, where=mask)
    fine = pose.enlarged()
    filled = _fill(_corners(thing, pose=fine), size=canvas.rgb.shape[:2])
    if filled is not None:
        mask, window = filled
        colours = _shaded_surface(thing, pose=fine, window=window, light=light)
        # Ten times np.copyto with a mask that is broadcast over the colours.
        cv2.copyTo(colours, mask.view(np.uint8), canvas.rgb[window])


def _paint_frame(scene: Scene, *, frame: int, view: View, backdrop: _Canvas) -> _Canvas:
    canvas = backdrop.copy()
    distances = np.array([thing.position[0, 2] for thing in scene.things])
    for index in np.argsort(-distances, kind="stable").tolist():
        thing = scene.things[index]
        x, y, scale = view.project(thing.position[frame])
        pose = _Pose(x=x, y=y, radius=scale * thing.radius, angle=float(thing.angle[frame]))
        _paint_thing(canvas, thing=thing, entity_id=index + 1, pose=pose, light=scene.light)
    return canvas


def render(scene: Scene, *, height: int, width: int) -> Rendering:
    """Paint every frame of a scene.

    Args:
        scene: What to paint; each thing keeps its distance over the clip.
        height: Pixels.
        width: Pixels.

    Returns:
        Colours, ids and disparity of each frame.
    """
    frames = len(scene.camera.x)
    rgb = np.empty((frames, height, width, 3), dtype=np.uint8)
    entity_ids = np.empty((frames, height, width), dtype=np.uint16)
    disparity = np.empty((frames, height, width), dtype=np.float32)
    view = scene.camera.view(0, height=height, width=width)
    backdrop = _paint_backdrop(scene, view=view)
    for frame in range(frames):
        previous, view = view, scene.camera.view(frame, height=height, width=width)
        if view != previous:
            backdrop = _paint_backdrop(scene, view=view)
        canvas = _paint_frame(scene, frame=frame, view=view, backdrop=backdrop)
        rgb[frame] = cv2.resize(canvas.rgb, (width, height), interpolation=cv2.INTER_AREA)
        entity_ids[frame] = canvas.ids
        disparity[frame] = canvas.disparity
    return Rendering(rgb=rgb, entity_ids=entity_ids, disparity=disparity)
