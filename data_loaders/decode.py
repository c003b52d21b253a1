"""Videos and label maps to bytes and back, through PyAV.

RGB may be lossy; entity ids and depth travel as ffv1 gray or gray16, which is exact. (Chroma
subsampling mixes the colours on both sides of an edge, so a colour map in an mp4 cannot be decoded;
H.264 'gray' at crf 0 is not exact either.)
"""

import io
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import av.error
import numpy as np
from av.video.reformatter import Colorspace, Interpolation
from jaxtyping import UInt8, UInt16

from data_loaders.schema import DataError

RgbCodec = Literal["h264", "vp9", "ffv1"]

# swscale's default path from yuv420p truncates: it darkens by one level on the mean. These two
# flags together do not, and halve the mean error, at 2 ms rather than 0.7 ms per 480x720 frame.
_TO_RGB = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT

# Tagged as what the conversion does: players and readers that ignore the tag assume it below HD.
_SMPTE170M = 6
_LIMITED_RANGE = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class _Encoding:
    """One way to store frames."""

    member: str
    """File name ending in a shard."""
    container: str
    """libav muxer."""
    codec: str
    """libav encoder."""
    pixel_format: str
    """Even sizes are needed where it is yuv420p."""
    options: dict[str, str]
    """Encoder options."""


# slicecrc lets the decoder notice damage; one thread keeps the bytes equal from run to run.
_FFV1_OPTIONS = {"level": "3", "slicecrc": "1", "g": "1"}

# libx264's macroblock tree (core of PyAV 18.1) reads memory that nobody wrote where the processor
# has AVX-512: equal frames then give other bytes whenever the heap looks otherwise. Without it they
# do not, and AVX2 gives the same ones; real clips grow by -8 to 22 % at as many decibels.
_X264_OPTIONS = {"mbtree": "0"}

RGB_ENCODINGS: dict[str, _Encoding] = {
    # crf 14: little is lost against 4:2:0 itself.
    "h264": _Encoding(
        member="mp4",
        container="mp4",
        codec="libx264",
        pixel_format="yuv420p",
        options={"crf": "14", "preset": "medium", **_X264_OPTIONS},
    ),
    # The one lossy codec that DALI decodes on a CPU.
    "vp9": _Encoding(
        member="webm",
        container="webm",
        codec="libvpx-vp9",
        pixel_format="yuv420p",
        options={"crf": "16", "b:v": "0", "deadline": "good", "cpu-used": "4"},
    ),
    # Lossless: for pictures so small that 4:2:0 would show.
    "ffv1": _Encoding(
        member="mkv",
        container="matroska",
        codec="ffv1",
        pixel_format="bgr0",
        options=_FFV1_OPTIONS,
    ),
}


def _encode(
    frames: Sequence[np.ndarray] | np.ndarray, *, array_format: str, fps: float, way: _Encoding
) -> bytes:
    height, width = frames[0].shape[:2]
    buffer = io.BytesIO()
    # bitexact: matroska would otherwise write a random identifier into every file.
    with av.open(buffer, "w", format=way.container, options={"fflags": "+bitexact"}) as output:
        # 1001: the denominator of the NTSC rates (24000/1001, 30000/1001).
        rate = Fraction(fps).limit_denominator(1001)
        stream: Any = output.add_stream(way.codec, rate=rate, options=dict(way.options))
        stream.height, stream.width, stream.pix_fmt = height, width, way.pixel_format
        context = stream.codec_context
        context.thread_count = 1
        is_yuv = way.pixel_format.startswith("yuv")
        if is_yuv:
            context.colorspace, context.color_range = _SMPTE170M, _LIMITED_RANGE
        for array in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format=array_format)
            if is_yuv:
                frame = frame.reformat(
                    format=way.pixel_format,
                    dst_colorspace=Colorspace.ITU601,
                    interpolation=Interpolation.BICUBIC,
                    threads=1,
                )
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def encode_rgb(rgb: UInt8[np.ndarray, "t h w 3"], *, fps: float, codec: RgbCodec) -> bytes:
    """Encode a video.

    Args:
        rgb: Frames, 0..255.
        fps: Frames per second.
        codec: 'h264' and 'vp9' are lossy (4:2:0, even sizes only), 'ffv1' is exact.

    Returns:
        The file's bytes; equal for equal input on one machine.

    Raises:
        DataError: An odd size with a 4:2:0 codec.
    """
    way = RGB_ENCODINGS[codec]
    height, width = rgb.shape[1:3]
    if way.pixel_format == "yuv420p" and (height % 2 or width % 2):
        raise DataError(
            f"rgb_codec {codec}: expected an even height and width, got {height}x{width}; "
            "rgb_codec 'ffv1' takes any size"
        )
    return _encode(rgb, array_format="rgb24", fps=fps, way=way)


def encode_preview(rgb: UInt8[np.ndarray, "t h w 3"], *, fps: float) -> bytes:
    """Encode a video for a page: a small mp4 that every browser plays.

    Args:
        rgb: Frames, 0..255; even height and width.
        fps: Frames per second.
    """
    options = {"crf": "22", "preset": "fast", "movflags": "+faststart", **_X264_OPTIONS}
    return _encode(
        rgb, array_format="rgb24", fps=fps, way=replace(RGB_ENCODINGS["h264"], options=options)
    )


def encode_labels(labels: UInt16[np.ndarray, "t h w"], *, fps: float) -> bytes:
    """Encode ids or depth without loss: ffv1, 8 bits where the values fit, else 16.

    Args:
        labels: Any uint16 values.
        fps: Frames per second.

    Returns:
        The matroska file's bytes.
    """
    pixel_format = "gray" if int(labels.max()) < 256 else "gray16le"
    way = _Encoding(
        member="mkv",
        container="matroska",
        codec="ffv1",
        pixel_format=pixel_format,
        options=_FFV1_OPTIONS,
    )
    array = labels.astype(np.uint8) if pixel_format == "gray" else labels
    return _encode(array, array_format=pixel_format, fps=fps, way=way)


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoFacts:
    """What the header of a video file says."""

    height: int
    width: int
    fps: float


def _first_stream(container: Any, *, name: str) -> Any:
    if not container.streams.video:
        raise DataError(f"{name}: expected a video stream, found none")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise DataError(f"{name}: expected a codec that libav knows, found another")
    return stream


def video_facts(path: Path | io.BufferedIOBase, *, name: str = "") -> VideoFacts:
    """Size and mean rate of a video file, from its header.

    Args:
        path: The file's path, or the file opened and seekable; left where libav stopped.
        name: What to call it in an error; '' = its path.

    Raises:
        DataError: Not a video; names the file.
    """
    name = name or str(path)
    try:
        with av.open(_openable(path), metadata_errors="replace") as container:
            stream = _first_stream(container, name=name)
            rate = stream.average_rate or stream.guessed_rate
            height, width = stream.height, stream.width
    except (av.error.FFmpegError, OSError) as error:
        raise DataError(f"{name}: cannot be opened as video: {error}") from error
    if not rate or rate <= 0:
        raise DataError(f"{name}: expected a frame rate > 0, got {rate}")
    return VideoFacts(height=height, width=width, fps=float(rate))


def start_of(path: Path | io.BufferedIOBase, *, name: str) -> Fraction:
    """Time stamp, seconds, that players show as 0: the earliest of all streams, by the header.

    Raises:
        DataError: Not a video; names the file.
    """
    try:
        with av.open(_openable(path), metadata_errors="replace") as opened:
            container: Any = opened
            return Fraction(container.start_time or 0, av.time_base)
    except (av.error.FFmpegError, OSError) as error:
        raise DataError(f"{name}: cannot be opened as video: {error}") from error


def _openable(data: bytes | Path | io.BufferedIOBase) -> Any:
    if isinstance(data, bytes):
        return io.BytesIO(data)
    if isinstance(data, Path):
        return str(data)
    data.seek(0)
    return data


def decode_frames(
    data: bytes | Path | io.BufferedIOBase, *, name: str, seek: float | Fraction | None = None
) -> Iterator[av.VideoFrame]:
    """Frames in presentation order.

    Args:
        data: The file's bytes, its path, or the file opened and seekable.
        name: What to call it in an error.
        seek: Time stamp, seconds, to begin near: at the key frame that the container's index holds
            for it, which is most often the last one before; None = at the beginning.

    Raises:
        DataError: Any fault that libav finds.
    """
    try:
        # Titles and the like, in whatever encoding, are of no interest.
        with av.open(_openable(data), metadata_errors="replace") as opened:
            container: Any = opened
            stream = _first_stream(container, name=name)
            if seek is not None:
                container.seek(math.floor(Fraction(seek) / stream.time_base), stream=stream)
            # Samples are decoded in parallel, so frames need not be.
            stream.codec_context.thread_count = 1
            yield from container.decode(stream)
    except (av.error.FFmpegError, OSError, EOFError) as error:
        raise DataError(f"{name}: cannot be decoded as video: {error}") from error


def frames_and_facts(data: bytes, *, name: str) -> tuple[tuple[int, int, int], float]:
    """Decode a video in full, keeping nothing.

    Args:
        data: The file's bytes.
        name: What to call it in an error.

    Returns:
        ((frames decoded, height, width), frames per second of its header).

    Raises:
        DataError: Damaged, or its frames are not all of one size.
    """
    sizes = Counter((frame.height, frame.width) for frame in decode_frames(data, name=name))
    if len(sizes) != 1:
        raise DataError(f"{name}: expected frames of one size, got {dict(sizes)}")
    ((height, width), frames), *_ = sizes.items()
    with av.open(io.BytesIO(data), metadata_errors="replace") as container:
        stream = _first_stream(container, name=name)
        rate = stream.average_rate or stream.guessed_rate or 0
    return (frames, height, width), float(rate)


def _pick(
    frames: Iterator[av.VideoFrame],
    *,
    indices: Sequence[int] | None,
    convert: Callable[[av.VideoFrame], np.ndarray],
    name: str,
) -> np.ndarray:
    wanted = None if indices is None else set(indices)
    last = None if indices is None else max(indices)
    kept: dict[int, np.ndarray] = {}
    count = 0
    for count, frame in enumerate(frames, start=1):
        if wanted is None or count - 1 in wanted:
            kept[count - 1] = _convert(frame, convert=convert, name=name)
        if count - 1 == last:
            break
    if not kept or (last is not None and last not in kept):
        raise DataError(
            f"{name}: expected {'a' if last is None else last + 1} frame(s), decoded {count}"
        )
    sizes = Counter(f"{array.shape[0]}x{array.shape[1]}" for array in kept.values())
    if len(sizes) > 1:
        raise DataError(f"{name}: expected frames of one size, got {dict(sizes)}")
    return np.stack([kept[i] for i in (sorted(kept) if indices is None else indices)])


def _convert(
    frame: av.VideoFrame, *, convert: Callable[[av.VideoFrame], np.ndarray], name: str
) -> np.ndarray:
    try:
        return convert(frame)
    except DataError:
        raise
    except (av.error.FFmpegError, ValueError) as error:
        raise DataError(f"{name}: a frame cannot be converted: {error}") from error


def frame_to_rgb(frame: av.VideoFrame) -> UInt8[np.ndarray, "h w 3"]:
    """One decoded frame as RGB, 0..255, by the colour space written in the file."""
    return frame.reformat(format="rgb24", interpolation=_TO_RGB, threads=1).to_ndarray()


def decode_rgb(
    data: bytes | Path, *, name: str, indices: Sequence[int] | None = None
) -> UInt8[np.ndarray, "t h w 3"]:
    """Decode a video.

    Args:
        data: The file's bytes, or its path.
        name: What to call it in an error.
        indices: Frames wanted, in presentation order from 0, repeats allowed; None = all.

    Returns:
        Frames, 0..255.

    Raises:
        DataError: No video, damaged, shorter than the last index, or of changing size.
    """
    return _pick(decode_frames(data, name=name), indices=indices, convert=frame_to_rgb, name=name)


def _frame_as_vbench(frame: av.VideoFrame) -> UInt8[np.ndarray, "h w 3"]:
    # PyAV's defaults, unlike _TO_RGB: swscale's fast path.
    return frame.reformat(format="rgb24", threads=1).to_ndarray()


def decode_as_vbench(
    data: bytes | Path, *, name: str, indices: Sequence[int] | None = None
) -> UInt8[np.ndarray, "t h w 3"]:
    """Decode a video for measures that must equal VBench's.

    VBench reads mp4 files by decord (consistency) and OpenCV (motion smoothness), which agree to
    the bit on 8-bit video, and with this function. They convert to RGB by swscale's default path,
    which differs from the more exact one of `decode_rgb` by a level or two. (On 10-bit video decord
    and OpenCV do not agree with each other, so nothing can equal both.)

    Arguments, result and errors are those of `decode_rgb`.
    """
    return _pick(
        decode_frames(data, name=name), indices=indices, convert=_frame_as_vbench, name=name
    )


def decode_labels(
    data: bytes, *, name: str, indices: Sequence[int] | None = None
) -> UInt16[np.ndarray, "t h w"]:
    """Decode what `encode_labels` wrote, exactly.

    Args:
        data: The file's bytes.
        name: What to call it in an error.
        indices: Frames wanted, repeats allowed; None = all.

    Returns:
        The labels.

    Raises:
        DataError: Damaged, not a gray video, shorter than the last index, or of changing size.
    """

    def convert(frame: av.VideoFrame) -> np.ndarray:
        if frame.format.name not in ("gray", "gray16le"):
            raise DataError(f"{name}: expected gray or gray16le, got {frame.format.name}")
        return frame.to_ndarray().astype(np.uint16)

    return _pick(decode_frames(data, name=name), indices=indices, convert=convert, name=name)
