"""What a clip's file says of itself, and whether that is true: read without decoding a pixel.

One damaged clip makes DALI refuse its whole batch, and a time stamp that is off makes RGB and
labels drift apart without any error: `probe` finds both, for about 13 ms per clip of 49x480x720,
most of which libav takes to open it.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import av
import av.error

from data_loaders.schema import DataError

# AVColorSpace: unspecified, bt470bg and smpte170m. The last two are BT.601 by their numbers, and
# libswscale and DALI take what is unspecified for it.
_BT601 = frozenset({2, 5, 6})

_MOST_FPS_ERROR = 0.01
"""Of the header's rate, relative: 24 for 23.976 is no fault, 25 for 24 is one."""
_MOST_TIME_ERROR = 0.25
"""Of a frame's time stamp, in frames: matroska rounds to milliseconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamHeader:
    """The first video stream of a file."""

    codec: str
    """libav's name: 'h264', 'hevc', 'vp8', 'vp9', 'av1', 'mpeg4', 'mjpeg', 'ffv1', ..."""
    pixel_format: str
    """libav's name, such as 'yuv420p'; '' where the header does not say."""
    height: int
    width: int
    fps: float
    """Mean rate; 0 where the header does not say."""
    is_bt601: bool
    """The YUV matrix is BT.601 or unspecified; else, mostly, BT.709."""


@contextmanager
def _stream(data: bytes, *, name: str) -> Iterator[tuple[Any, Any]]:
    """(container, its first video stream); libav's errors become a DataError."""
    try:
        # Titles and the like, in whatever encoding, are of no interest.
        with av.open(io.BytesIO(data), metadata_errors="replace") as opened:
            container: Any = opened
            if not container.streams.video:
                raise DataError(f"{name}: expected a video stream, found none")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise DataError(f"{name}: expected a codec that libav knows, found another")
            yield container, stream
    except (av.error.FFmpegError, OSError, EOFError) as error:
        raise DataError(f"{name}: cannot be read as video: {error}") from error


def _header(stream: Any) -> StreamHeader:
    context = stream.codec_context
    return StreamHeader(
        codec=context.name,
        pixel_format=context.pix_fmt or "",
        height=stream.height,
        width=stream.width,
        fps=float(stream.average_rate or stream.guessed_rate or 0),
        is_bt601=int(context.colorspace) in _BT601,
    )


def stream_header(data: bytes, *, name: str) -> StreamHeader:
    """Read the header of a video file.

    Args:
        data: The file's bytes.
        name: What to call it in an error.

    Raises:
        DataError: No video, or damaged at its beginning.
    """
    with _stream(data, name=name) as (_, stream):
        return _header(stream)


def probe(  # noqa: PLR0913 - the file and four facts of its record, as keywords
    data: bytes, *, name: str, record_frames: int, record_fps: float, height: int, width: int
) -> StreamHeader:
    """Check a clip's file against its record, packet by packet.

    Found are files cut short, containers that cannot be read, packets that the container knows to
    be damaged, and sizes, counts, rates or time stamps that differ from the record. Not found is
    damage inside a packet, which only decoding shows, if at all: vp9 carries no checksums.

    Args:
        data: The file's bytes.
        name: What to call it in an error.
        record_frames: Frames by the record.
        record_fps: Rate by the record, constant.
        height: By the record.
        width: By the record.

    Returns:
        The header.

    Raises:
        DataError: What differs first; names the file, what was expected and what came.
    """
    with _stream(data, name=name) as (container, stream):
        header = _header(stream)
        # Packets without bytes flush the decoder; discarded ones (edit lists) are never shown.
        packets = [p for p in container.demux(stream) if p.size and not p.is_discard]
    if (header.height, header.width) != (height, width):
        raise DataError(
            f"{name}: expected the record's {height}x{width} pixels, "
            f"got {header.height}x{header.width}"
        )
    damaged = sum(packet.is_corrupt for packet in packets)
    if damaged:
        raise DataError(f"{name}: expected whole packets, got {damaged} damaged")
    if len(packets) != record_frames:
        raise DataError(
            f"{name}: expected the record's {record_frames} frames, got {len(packets)}: "
            "cut short, or the record is wrong"
        )
    _check_rate(header.fps, packets, name=name, expected=record_fps)
    return header


def _check_rate(fps: float, packets: Sequence[Any], *, name: str, expected: float) -> None:
    if fps and abs(fps - expected) > _MOST_FPS_ERROR * expected:
        raise DataError(
            f"{name}: expected the record's {expected:g} frames per second, "
            f"got {fps:g} in the header"
        )
    # avi has decoding times alone, which are as good where no frame is reordered.
    stamps = [p.dts if p.pts is None else p.pts for p in packets]
    if any(stamp is None for stamp in stamps):
        return
    times = [float(stamp * packets[0].time_base) for stamp in sorted(stamps)]
    for k, time in enumerate(times):
        if abs((time - times[0]) * expected - k) > _MOST_TIME_ERROR:
            raise DataError(
                f"{name}: expected frame {k} at {k / expected:.3f} s (the record's {expected:g} "
                f"frames per second, constant), got {time - times[0]:.3f} s by its time stamp"
            )
