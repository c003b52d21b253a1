"""Videos as users have them: any rate, any codec, perhaps rotated; read at a fixed rate by time."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from io import BufferedIOBase
from pathlib import Path
from typing import TypeVar

import numpy as np
from av import VideoFrame
from jaxtyping import UInt8

from data_loaders.decode import decode_frames, frame_to_rgb, start_of, video_facts
from data_loaders.schema import DataError

_Item = TypeVar("_Item")

STAMP_ERROR = Fraction(1, 1000)
"""Lists of clips give time stamps rounded to milliseconds."""
# Seconds before the wanted time to seek to, one after the other; None = the beginning of the file.
_LEADS = (0, 2, 10, 60, None)


class NoFramesError(DataError):
    """A video, or the part of it that was asked for, has no frames."""


class SparseKeyFramesError(DataError):
    """To read a part, more would have to be decoded before it than is allowed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TimedVideo:
    """Frames of a source video taken at a fixed rate."""

    rgb: UInt8[np.ndarray, "t h w 3"]
    """Prepared frames; fewer than asked for where the video ends early."""
    source_indices: tuple[int, ...]
    """Which frames of the source they are."""
    source_fps: float


def pick_by_time(
    timed: Iterable[tuple[float | Fraction, _Item]],
    *,
    fps: float,
    num_frames: int,
    last_duration: float | Fraction,
) -> Iterator[_Item]:
    """Of frames that come with their times, the one nearest to each k / fps.

    Args:
        timed: (seconds from the first frame, frame), times rising; fractions make it exact.
        fps: Rate wanted.
        num_frames: Most frames to yield.
        last_duration: Seconds that the last frame is on show.

    Yields:
        Frames; one may come several times where the source is slower. Halfway between two frames
        the later one is taken, as in `order.frame_indices`.
    """
    taken = 0
    step = 1 / Fraction(fps)
    previous: tuple[float | Fraction, _Item] | None = None
    for now, item in timed:
        if previous is not None:
            while taken < num_frames and taken * step < (previous[0] + now) / 2:
                yield previous[1]
                taken += 1
        if taken == num_frames:
            return
        previous = (now, item)
    if previous is None:
        return
    while taken < num_frames and taken * step < previous[0] + last_duration / 2:
        yield previous[1]
        taken += 1


@dataclass(frozen=True, kw_only=True, slots=True)
class TimeSpan:
    """A part of a video, in seconds as a player shows them."""

    start: float
    """From the beginning of the file; the frame on show at this time is not taken when it began
    earlier, as it may be the last of another shot."""
    end: float
    """The first frame that begins here is not taken any more."""
    most_lead: float = math.inf
    """Most seconds of video to decode before `start`, back to a key frame."""


def read_at_rate(  # noqa: PLR0913 - what to read, and how; two have defaults
    path: Path | BufferedIOBase,
    *,
    fps: float,
    num_frames: int,
    prepare: Callable[[UInt8[np.ndarray, "1 h w 3"]], UInt8[np.ndarray, "1 h2 w2 3"]],
    span: TimeSpan | None = None,
    name: str = "",
) -> TimedVideo:
    """Read the first `num_frames` of a video, or of a part of it, at `fps`.

    The time stamps decide and not a step in frames, so 23.976 and 29.97 frames per second and
    variable rates come out right: frame k of the result is the source frame whose time stamp,
    counted from the first frame's (of a part: from its start), is nearest to k / fps. Halves go to
    the later frame, in exact fractions: 30 to 8 frames per second meets a half every 15 frames.
    After the last frame the video lasts one mean frame longer. The result has a constant rate;
    shards hold nothing else.

    A part is found by seeking to a key frame before it: the frames are those that decoding from
    the beginning gives, at a cost that does not grow with the position where the container has an
    index.

    Args:
        path: Video file, or the file opened and seekable.
        fps: Frames per second wanted.
        num_frames: Most frames to take.
        prepare: Resizes a frame, so that frames of the source's size are not kept.
        span: The part; None = the whole file.
        name: What to call it in an error; '' = its path.

    Raises:
        NoFramesError: There is no frame in the file or the part.
        SparseKeyFramesError: Key frames are further apart than `span.most_lead`.
        DataError: Not a readable video; all name the file.
    """
    name = name or str(path)
    facts = video_facts(path, name=name)
    duration = 1 / Fraction(facts.fps)
    if span is None:
        timed = _timed(decode_frames(path, name=name), duration=duration)
    else:
        timed = _timed_part(path, span=span, duration=duration, name=name)
    indices: list[int] = []
    frames: list[np.ndarray] = []
    picked = pick_by_time(timed, fps=fps, num_frames=num_frames, last_duration=duration)
    for index, frame in picked:
        if indices and index == indices[-1]:
            frames.append(frames[-1])
        else:
            frames.append(prepare(_upright(frame)[None])[0])
        indices.append(index)
    if not frames:
        raise NoFramesError(f"{name}: expected frames, decoded none")
    if len({frame.shape for frame in frames}) > 1:
        raise DataError(f"{name}: expected frames of one size, got several")
    return TimedVideo(
        rgb=np.stack(frames),
        source_indices=tuple(indices),
        source_fps=facts.fps,
    )


def _upright(frame: VideoFrame) -> UInt8[np.ndarray, "h w 3"]:
    # rotation: degrees counterclockwise by which players turn the stored picture.
    return np.rot90(frame_to_rgb(frame), k=round(frame.rotation / 90) % 4)


def _stamp(frame: VideoFrame) -> Fraction | None:
    if frame.pts is None or frame.time_base is None:
        return None
    return frame.pts * Fraction(frame.time_base)


def _timed(
    frames: Iterable[VideoFrame], *, duration: Fraction
) -> Iterator[tuple[Fraction, tuple[int, VideoFrame]]]:
    """Frames of a whole file with (seconds from the first one, (index, frame))."""
    first: Fraction | None = None
    for index, frame in enumerate(frames):
        stamp = _stamp(frame)
        now = index * duration if stamp is None else stamp
        first = now if first is None else first
        yield now - first, (index, frame)


def _timed_part(
    path: Path | BufferedIOBase, *, span: TimeSpan, duration: Fraction, name: str
) -> Iterator[tuple[Fraction, tuple[int, VideoFrame]]]:
    """Frames of a part with (seconds from its start, (index in it, frame))."""
    zero = start_of(path, name=name)
    start = Fraction(round(span.start * 1_000_000), 1_000_000)
    index, begin = 0, None
    for decoded, frame in enumerate(_from_before(path, at=zero + start, name=name)):
        stamp = _stamp(frame)
        # Without time stamps nothing was sought: the frames are counted.
        now = decoded * duration if stamp is None else stamp - zero
        begin = now if begin is None else begin
        if now >= span.end - STAMP_ERROR:
            return
        if now >= start - STAMP_ERROR:
            yield now - start, (index, frame)
            index += 1
        elif now - begin > span.most_lead:
            raise SparseKeyFramesError(
                f"{name}: expected a key frame within {span.most_lead:g} s before "
                f"{span.start:g} s, the last one is at {float(begin):.1f} s"
            )


def _from_before(path: Path | BufferedIOBase, *, at: Fraction, name: str) -> Iterator[VideoFrame]:
    """Frames from a key frame at or before a time stamp on."""
    for lead in _LEADS:
        frames = decode_frames(path, name=name, seek=None if lead is None else at - lead)
        try:
            first = next(frames, None)
        except DataError:
            if lead is None:
                raise
            continue  # the container cannot be sought in
        stamp = None if first is None else _stamp(first)
        # Indices are by decoding time: the frame that is found may be shown after `at`.
        is_before = stamp is not None and stamp <= at + STAMP_ERROR
        if first is not None and (is_before or lead is None):
            yield first
            yield from frames
            return
