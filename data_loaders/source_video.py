"""Videos as users have them: any rate, any codec, perhaps rotated; read at a fixed rate by time."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import numpy as np
from av import VideoFrame
from jaxtyping import UInt8

from data_loaders.decode import decode_frames, frame_to_rgb, video_facts
from data_loaders.schema import DataError

_Item = TypeVar("_Item")


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


def read_at_rate(
    path: Path,
    *,
    fps: float,
    num_frames: int,
    prepare: Callable[[UInt8[np.ndarray, "1 h w 3"]], UInt8[np.ndarray, "1 h2 w2 3"]],
) -> TimedVideo:
    """Read the first `num_frames` of a video at `fps`.

    The time stamps decide and not a step in frames, so 23.976 and 29.97 frames per second and
    variable rates come out right: frame k of the result is the source frame whose time stamp,
    counted from the first frame's, is nearest to k / fps. Halves go to the later frame, in exact
    fractions: 30 to 8 frames per second meets a half every 15 frames. After the last frame the
    video lasts one mean frame longer. The result has a constant rate; shards hold nothing else.

    Args:
        path: Video file.
        fps: Frames per second wanted.
        num_frames: Most frames to take.
        prepare: Resizes a frame, so that frames of the source's size are not kept.

    Raises:
        DataError: Not a readable video; names the file.
    """
    facts = video_facts(path)

    duration = 1 / Fraction(facts.fps)

    def timed() -> Iterator[tuple[Fraction, tuple[int, VideoFrame]]]:
        first: Fraction | None = None
        for index, frame in enumerate(decode_frames(path, name=str(path))):
            stamp, unit = frame.pts, frame.time_base
            now = index * duration if stamp is None or unit is None else stamp * Fraction(unit)
            first = now if first is None else first
            yield now - first, (index, frame)

    indices: list[int] = []
    frames: list[np.ndarray] = []
    picked = pick_by_time(timed(), fps=fps, num_frames=num_frames, last_duration=duration)
    for index, frame in picked:
        if indices and index == indices[-1]:
            frames.append(frames[-1])
        else:
            # rotation: degrees counterclockwise by which players turn the stored picture.
            turned = np.rot90(frame_to_rgb(frame), k=round(frame.rotation / 90) % 4)
            frames.append(prepare(turned[None])[0])
        indices.append(index)
    if not frames:
        raise DataError(f"{path}: expected frames, decoded none")
    return TimedVideo(
        rgb=np.stack(frames),
        source_indices=tuple(indices),
        source_fps=facts.fps,
    )
