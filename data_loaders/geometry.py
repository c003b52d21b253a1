"""Resize and crop RGB, ids and depth alike, so that their pixels stay on top of each other.

The reference of `dali_pipeline`, and what workers run where DALI is absent. Free of torch, which a
worker process would take seconds to import.

Both crop first and then resize: what lies outside the crop has no say, and at the crop's border
the outermost pixel is repeated (torch and Pillow cut their filter off there instead).
"""

from dataclasses import dataclass
from fractions import Fraction

import cv2
import numpy as np
from av.filter import Graph
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from jaxtyping import UInt8, UInt16

CENTRE = (0.5, 0.5)

# libswscale widens its filters when it shrinks, as antialiasing does. At 480x720 to 256x384 it
# takes 1.9 ms per RGB frame, Pillow 5.3 ms and OpenCV's area average (no cubic) 2.6 ms. param0 and
# param1 are Mitchell and Netravali's B and C: 0 and 0.5 is Keys' cubic with a = -0.5, which Pillow
# and torch use too; libswscale's own choice is a = -0.6.
_BICUBIC = "bicubic+accurate_rnd:param0=0:param1=0.5"
_TRIANGULAR = "bilinear+accurate_rnd"


@dataclass(frozen=True, kw_only=True, slots=True)
class CropBox:
    """An area of a source frame, in whole pixels."""

    top: int
    left: int
    height: int
    width: int


def crop_box(
    *,
    source: tuple[int, int],
    target: tuple[int, int],
    anchor: tuple[float, float] = CENTRE,
) -> CropBox:
    """The largest area of the source with the target's aspect ratio, to the nearest pixel.

    Args:
        source: Height and width of the frames there are.
        target: Height and width wanted.
        anchor: Fractions, 0..1, of the rows and columns left over that lie above and left of the
            area; (0.5, 0.5) centres it, the odd row or column going below or right.

    Raises:
        ValueError: A size below 1 or an anchor outside 0..1.
    """
    (height, width), (target_height, target_width) = source, target
    if min(*source, *target) < 1 or not all(0 <= part <= 1 for part in anchor):
        raise ValueError(
            f"expected sizes >= 1 and an anchor in 0..1, got {source}, {target} and {anchor}"
        )
    # Integers, halves up: floats would make the box depend on rounding errors.
    rows = (2 * width * target_height + target_width) // (2 * target_width)
    columns = (2 * height * target_width + target_height) // (2 * target_height)
    rows, columns = min(height, max(1, rows)), min(width, max(1, columns))
    return CropBox(
        top=int((height - rows) * anchor[0]),
        left=int((width - columns) * anchor[1]),
        height=rows,
        width=columns,
    )


def crop(frames: np.ndarray, *, box: CropBox) -> np.ndarray:
    """The box of every frame (t, h, w, ...), as a view."""
    return frames[:, box.top : box.top + box.height, box.left : box.left + box.width]


def nearest(
    labels: UInt16[np.ndarray, "t h w"], *, height: int, width: int
) -> UInt16[np.ndarray, "t height width"]:
    """Resize, each pixel the label at its centre; where that falls on an edge, right or below."""
    # Integers: DALI's and OpenCV's floats choose the other side of some edges.
    rows = (2 * np.arange(height) + 1) * labels.shape[1] // (2 * height)
    columns = (2 * np.arange(width) + 1) * labels.shape[2] // (2 * width)
    return labels[:, rows][:, :, columns]


class _Scaler:
    """libswscale for planes of one size."""

    def __init__(
        self, *, source: tuple[int, int], target: tuple[int, int], pixel_format: str, flags: str
    ) -> None:
        self._format = pixel_format
        # A graph of its own: they hold frames and are not safe to share between threads.
        self._graph = Graph()
        self._graph.threads = 1
        start = self._graph.add_buffer(
            width=source[1],
            height=source[0],
            format=VideoFormat(pixel_format),
            time_base=Fraction(1),
        )
        scale = self._graph.add("scale", f"{target[1]}:{target[0]}:flags={flags}")
        end = self._graph.add("buffersink")
        start.link_to(scale)
        scale.link_to(end)
        self._graph.configure()

    def __call__(self, plane: np.ndarray) -> np.ndarray:
        """Resize a plane (h, w) of uint8 or uint16."""
        contiguous = np.ascontiguousarray(plane)
        self._graph.push(VideoFrame.from_ndarray(contiguous, format=self._format))
        scaled = self._graph.pull()
        assert isinstance(scaled, VideoFrame)  # the graph holds video filters only
        return scaled.to_ndarray()


def fit_rgb(
    rgb: UInt8[np.ndarray, "t h w 3"],
    *,
    height: int,
    width: int,
    anchor: tuple[float, float] = CENTRE,
) -> UInt8[np.ndarray, "t height width 3"]:
    """Cover the target size and cut the rest away: cubic, and antialiased when it shrinks.

    Args:
        rgb: Frames, 0..255.
        height: Wanted, pixels.
        width: Wanted, pixels.
        anchor: Which part is kept; see `crop_box`.

    Returns:
        Frames, 0..255; `rgb` itself where it has the right size.
    """
    source, target = rgb.shape[1:3], (height, width)
    if source == target:
        return rgb
    box = crop_box(source=source, target=target, anchor=anchor)
    area = crop(rgb, box=box)
    if (box.height, box.width) == target:
        return np.ascontiguousarray(area)
    # Channel by channel as gray: libswscale takes RGB through YUV, which costs a level or two.
    scale = _Scaler(
        source=(box.height, box.width), target=target, pixel_format="gray", flags=_BICUBIC
    )
    fitted = np.empty((len(rgb), *target, 3), np.uint8)
    for frame, into in zip(area, fitted, strict=True):
        cv2.merge([scale(plane) for plane in cv2.split(frame)], dst=into)
    return fitted


def fit_ids(
    ids: UInt16[np.ndarray, "t h w"],
    *,
    height: int,
    width: int,
    anchor: tuple[float, float] = CENTRE,
) -> UInt16[np.ndarray, "t height width"]:
    """`fit_rgb` for ids: the same area, each pixel the id at its centre, none invented."""
    if ids.shape[1:] == (height, width):
        return ids
    box = crop_box(source=ids.shape[1:], target=(height, width), anchor=anchor)
    return nearest(crop(ids, box=box), height=height, width=width)


def fit_depth(
    depth: UInt16[np.ndarray, "t h w"],
    *,
    height: int,
    width: int,
    anchor: tuple[float, float] = CENTRE,
) -> UInt16[np.ndarray, "t height width"]:
    """`fit_rgb` for depth, 0..65535: a triangular filter, for a cubic overshoots at edges.

    Smooth depth is true to 4 of 65535, and 16 in the outermost pixels; across hard edges libswscale
    errs by 30 (its positions are true to 0.004 pixels), and by 500 in the outermost pixels.
    """
    source, target = depth.shape[1:], (height, width)
    if source == target:
        return depth
    box = crop_box(source=source, target=target, anchor=anchor)
    area = crop(depth, box=box)
    if (box.height, box.width) == target:
        return np.ascontiguousarray(area)
    scale = _Scaler(
        source=(box.height, box.width), target=target, pixel_format="gray16le", flags=_TRIANGULAR
    )
    return np.stack([scale(plane) for plane in area])
