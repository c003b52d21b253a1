"""Frames and facts of one clip, from a file or from within a tar, by its time span."""

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
from jaxtyping import UInt8

from data_loaders.decode import decode_frames, decode_labels
from data_loaders.geometry import fit_rgb
from data_loaders.panda_dense.sidecars import ClipSource
from data_loaders.panda_dense.sources import video_ending
from data_loaders.panda_dense.tar_files import FileWindow, Place, read_member, tar_index
from data_loaders.schema import DataError
from data_loaders.shard_format import LABEL_MEMBERS
from data_loaders.source_video import (
    NoFramesError,
    SparseKeyFramesError,
    TimedVideo,
    TimeSpan,
    read_at_rate,
)

MISSING = "missing video"
UNREADABLE = "unreadable"
NO_VIDEO = "no video stream"
TOO_SHORT = "too short"
TOO_LARGE = "absurd size"
SPARSE_KEYS = "sparse key frames"
CLIP_REASONS = (MISSING, UNREADABLE, NO_VIDEO, TOO_SHORT, TOO_LARGE, SPARSE_KEYS)
"""Every `ClipError.reason`."""

_CHUNK = 2**20


class ClipError(DataError):
    """A clip cannot be used."""

    def __init__(self, reason: str, detail: str) -> None:
        """Keep the parts apart.

        Args:
            reason: One of `CLIP_REASONS`, for counting.
            detail: What was expected and what came, with the file's name.
        """
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["ClipError"], tuple[str, str]]:
        return ClipError, (self.reason, self.detail)


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFacts:
    """What is known of a clip's file before its frames are decoded."""

    num_bytes: int
    """Of the file, or of the member of a tar."""
    sha256: str
    """Of these bytes; '' = not asked for."""
    fps: float
    """Mean rate by the header."""
    num_frames: int | None
    """Of the whole file by the header; None = it does not say."""
    seconds: float | None
    """Duration of the whole file by the header; None = it does not say."""
    height: int
    """Pixels, as shown: turned by the rotation in the file."""
    width: int
    """Pixels, as shown."""


def read_clip(  # noqa: PLR0913 - what to read and its limits
    source: ClipSource,
    *,
    num_frames: int,
    fps: float,
    height: int | None,
    width: int | None,
    max_decode_seconds: float = 60.0,
    max_pixels: int = 8192 * 4352,
) -> TimedVideo:
    """Frames of a clip at a fixed rate from its start; see `source_video.read_at_rate`.

    Args:
        source: Of `sources.list_clips`.
        num_frames: Frames wanted, all of them.
        fps: Frames per second wanted.
        height: Frames are enlarged or shrunk to cover this and cut in the centre, pixels; None,
            with `width`, = as they are.
        width: Pixels.
        max_decode_seconds: Most seconds of video to decode before the clip's start, back to a key
            frame; of YouTube's videos they are 2 to 5 s apart.
        max_pixels: Of a frame of the source; 8K is 7680x4320.

    Returns:
        `num_frames` frames.

    Raises:
        ClipError: With one of `CLIP_REASONS`.
    """
    if (height is None) != (width is None):
        raise ValueError(f"expected height and width, or neither, got {height} and {width}")
    prepare = _keep if height is None or width is None else _fitter(height, width)
    with _clip_errors(source), _opened(source) as (file, name):
        _check_size(file, name=name, max_pixels=max_pixels)
        video = read_at_rate(
            file,
            fps=fps,
            num_frames=num_frames,
            prepare=prepare,
            span=_span_of(source, most_lead=max_decode_seconds),
            name=name,
        )
    if len(video.rgb) < num_frames:
        raise ClipError(
            TOO_SHORT,
            f"{name}: expected {num_frames} frames at {fps:g} per second, got {len(video.rgb)}",
        )
    return video


def _keep(frames: UInt8[np.ndarray, "1 h w 3"]) -> UInt8[np.ndarray, "1 h w 3"]:
    return frames


def _fitter(height: int, width: int) -> Any:
    return partial(fit_rgb, height=height, width=width)


def _span_of(source: ClipSource, *, most_lead: float) -> TimeSpan | None:
    if source.is_cut or (source.start == 0 and source.end is None):
        return None
    end = float("inf") if source.end is None else source.end
    return TimeSpan(start=source.start, end=end, most_lead=most_lead)


@contextmanager
def _clip_errors(source: ClipSource) -> Iterator[None]:
    """Give errors of reading a reason."""
    try:
        yield
    except ClipError:
        raise
    except SparseKeyFramesError as error:
        raise ClipError(SPARSE_KEYS, str(error)) from error
    except NoFramesError as error:
        # A part that lies behind the end of its video.
        reason = UNREADABLE if source.is_cut or source.start == 0 else TOO_SHORT
        raise ClipError(reason, f"{error} from {source.start:g} s on") from error
    except DataError as error:
        raise ClipError(UNREADABLE, str(error)) from error
    except OSError as error:
        raise ClipError(UNREADABLE, f"{source.path}: {error.strerror or error}") from error


@contextmanager
def _opened(source: ClipSource) -> Iterator[tuple[io.BufferedIOBase, str]]:
    """The bytes of a clip's video as a seekable file, and its name for messages."""
    path, place = _place(source)
    name = f"{path}:{source.member}" if source.member else str(path)
    with FileWindow(path, place) as window:
        yield io.BufferedReader(window, buffer_size=2**16), name


def _place(source: ClipSource) -> tuple[Path, Place]:
    if not source.path:
        raise ClipError(MISSING, source.video_id)
    path = Path(source.path)
    if not path.is_file():
        raise ClipError(MISSING, f"{path}: there is no such file any more")
    if not source.member:
        return path, Place(offset=0, size=path.stat().st_size)
    members = tar_index(path).members.get(source.member, {})
    ending = video_ending(members)
    if ending is None:
        raise ClipError(
            UNREADABLE,
            f"{path}: expected a video of {source.member!r}, found {', '.join(members) or 'none'}",
        )
    return path, members[ending]


def _check_size(file: io.BufferedIOBase, *, name: str, max_pixels: int) -> None:
    """Refuse by the header what would fill the memory when it is decoded."""
    file.seek(0)
    try:
        with av.open(file, metadata_errors="replace") as container:
            streams = container.streams.video
            pixels = streams[0].height * streams[0].width if streams else 0
    except (av.error.FFmpegError, OSError) as error:
        raise DataError(f"{name}: cannot be opened as video: {error}") from error
    if not streams:
        raise ClipError(NO_VIDEO, f"{name}: expected a video stream, found none")
    if not 0 < pixels <= max_pixels:
        raise ClipError(
            TOO_LARGE, f"{name}: expected 1 to {max_pixels} pixels in a frame, got {pixels}"
        )


def source_facts(
    source: ClipSource, *, with_sha256: bool = True, max_pixels: int = 8192 * 4352
) -> SourceFacts:
    """Size, checksum, rate and length of a clip's file; its first frame is decoded.

    Args:
        source: Of `sources.list_clips`.
        with_sha256: Read all bytes for the checksum; of a video with many clips that is done once
            per process.
        max_pixels: Of a frame of the source.

    Raises:
        ClipError: With one of `CLIP_REASONS`.
    """
    with _clip_errors(source), _opened(source) as (file, name):
        _check_size(file, name=name, max_pixels=max_pixels)
        path, place = _place(source)
        file.seek(0)
        with av.open(file, metadata_errors="replace") as opened:
            container: Any = opened
            stream = container.streams.video[0]
            rate = stream.average_rate or stream.guessed_rate or 0
            frames = stream.frames or None
            if stream.duration is not None:
                seconds = float(stream.duration * stream.time_base)
            elif container.duration is not None:
                seconds = container.duration / av.time_base
            else:
                seconds = None
        first = next(decode_frames(file, name=name), None)
        if first is None:
            raise ClipError(UNREADABLE, f"{name}: expected frames, decoded none")
        is_turned = round(first.rotation / 90) % 2 == 1
        size = (first.width, first.height) if is_turned else (first.height, first.width)
        digest = _sha256(path, place, path.stat().st_mtime_ns) if with_sha256 else ""
    return SourceFacts(
        num_bytes=place.size,
        sha256=digest,
        fps=float(rate),
        num_frames=frames,
        seconds=seconds,
        height=size[0],
        width=size[1],
    )


@lru_cache(maxsize=1024)
def _sha256(path: Path, place: Place, modified: int) -> str:
    digest = hashlib.sha256()
    with FileWindow(path, place) as window:
        while chunk := window.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def read_labels(source: ClipSource, name: str, *, video: TimedVideo) -> np.ndarray | None:
    """Labels of a clip of our own shards, on the frames that were read of it.

    Args:
        source: With a `member` in one of our tars.
        name: 'entity_ids' or 'depth', as in the schema.
        video: What `read_clip` gave for the clip.

    Returns:
        uint16 (t, h, w) of the size in the shard: `geometry.fit_ids` and `fit_depth` bring them
        to the size of `video`; None where the clip has no such labels.

    Raises:
        ClipError: They are damaged.
    """
    path = Path(source.path)
    member = LABEL_MEMBERS[name]
    with _clip_errors(source):
        if member not in tar_index(path).members.get(source.member, {}):
            return None
        content = read_member(path, key=source.member, ending=member)
        return decode_labels(
            content, name=f"{path}:{source.member}.{member}", indices=video.source_indices
        )
