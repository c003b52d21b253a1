"""What lies beside a video: the .txt and .json of Panda-70M's downloader, or of any webdataset.

The downloader (video2dataset as the Panda-70M repository ships it) writes per clip
`0000000_00000.mp4`, a .txt with the caption, and a .json with `url`, `clips` (the time span in the
source video, as a Python list in a string), `caption`, `matching_score`, `desirable_filtering` and
`shot_boundary_detection`; the last three as strings.
"""

import hashlib
import json
import math
import re
from dataclasses import dataclass, replace
from typing import Any

from data_loaders.panda_dense.panda_csv import count_shots, parse_list, parse_span, video_id_of
from data_loaders.schema import DataError

_PLAIN = re.compile(r"[A-Za-z0-9_\-]{1,64}")
_UNFIT = re.compile(r"[^A-Za-z0-9_\-]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipSource:
    """One clip that could become a sample, and where it is."""

    key: str
    """Unique and valid in shards. The same for the same clip in any folder, in any order."""
    dataset: str
    """Where the video comes from, such as 'panda70m'."""
    video_id: str
    """Source video; clips of one video share it, and never lie on both sides of a split."""
    url: str = ""
    """Address of the source video; '' = unknown."""
    start: float = 0.0
    """Seconds in the source video."""
    end: float | None = None
    """Seconds in the source video; None = to its end."""
    is_cut: bool = False
    """The file holds this clip alone: it is read whole, and `start` and `end` say where it was."""
    path: str = ""
    """Video file or tar; '' = not there yet."""
    member: str = ""
    """Key of the sample within the tar; '' = `path` is the video."""
    caption_short: str = ""
    """'' = none yet."""
    caption_long: str = ""
    """'' = none yet."""
    matching_score: float | None = None
    """Agreement of caption and clip, 0..1, as Panda-70M gives it; None = unknown."""
    desirable: str = ""
    """Panda-70M's `desirable_filtering`; '' = unknown."""
    shots: int | None = None
    """Shots within the clip by Panda-70M's `shot_boundary_detection`; None = unknown."""


def plain(text: str) -> str:
    """A text as part of a key: itself if it can be, else made so and told apart by a hash."""
    if _PLAIN.fullmatch(text):
        return text
    digest = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:10]
    return f"{_UNFIT.sub('_', text)[:48].strip('_')}-{digest}"


def span_key(video_id: str, *, start: float, end: float) -> str:
    """Key of a part of a source video, by its milliseconds."""
    return f"{plain(video_id)}_{round(start * 1000):07d}_{round(end * 1000):07d}"


def with_sidecars(clip: ClipSource, *, text: str, record: dict[str, Any]) -> ClipSource:
    """Fill a clip that was cut by its downloader with what lies beside it.

    Args:
        clip: With the key and video id that it has by its path.
        text: Content of the .txt; '' = there is none.
        record: Content of the .json; {} = there is none.

    Returns:
        The clip; with the key of the source video and time span where both are known, so that it
        is the same clip however it was downloaded.
    """
    url = _string(record.get("url"))
    video_id = (
        _string(record.get("videoID")) or _string(record.get("video_id")) or video_id_of(url) or url
    )
    clip = replace(
        clip,
        url=url,
        video_id=video_id or clip.video_id,
        caption_short=text.strip() or _string(record.get("caption")),
        caption_long=_string(record.get("caption_long")),
        matching_score=_score(record.get("matching_score")),
        desirable=_string(record.get("desirable_filtering")),
        shots=_shots(record.get("shot_boundary_detection")),
    )
    span = _span(record.get("clips", record.get("timestamp")))
    if span is None:
        return clip
    start, end = span
    key = span_key(video_id, start=start, end=end) if video_id else clip.key
    return replace(clip, key=key, start=start, end=end)


def parse_record(content: str | bytes) -> dict[str, Any]:
    """Content of a .json beside a video.

    Raises:
        DataError: It is no JSON object.
    """
    try:
        record = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"expected JSON: {error}") from error
    if not isinstance(record, dict):
        raise DataError(f"expected a JSON object, got {type(record).__name__}")
    return record


def _string(value: object) -> str:
    return value.strip() if isinstance(value, str) else ""


def _score(value: object) -> float | None:
    try:
        score = float(value) if isinstance(value, str | int | float) else math.nan
    except ValueError:
        return None
    return score if math.isfinite(score) else None


def _listed(value: object) -> object:
    try:
        return parse_list(value) if isinstance(value, str) else value
    except DataError:
        return None


def _shots(value: object) -> int | None:
    try:
        return count_shots(_listed(value))
    except DataError:
        return None


def _span(value: object) -> tuple[float, float] | None:
    spans = _listed(value)
    # A sample that could not be cut has all spans of its video.
    if not isinstance(spans, list) or len(spans) != 1:
        return None
    try:
        return parse_span(spans[0])
    except DataError:
        return None
