"""Which videos are ingested, and with what captions; everything is checked before any work."""

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_loaders.decode import decode_rgb, video_facts
from data_loaders.schema import DataError

_log = logging.getLogger(__name__)

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
_MOST_NAMED = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Captions:
    """What a line of the captions file says about a video."""

    short: str
    long: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One video to ingest."""

    key: str
    path: Path
    captions: Captions


def read_captions(path: Path, *, videos: Path) -> dict[Path, Captions]:
    """Captions by resolved video path.

    Args:
        path: JSON lines, or parquet.
        videos: Folder that paths may be relative to.

    Raises:
        DataError: Names the file and line of everything that is wrong: no JSON, a field missing,
            empty or no text, a video named twice.
    """
    found: dict[Path, Captions] = {}
    faults: list[str] = []
    for place, row in caption_rows(path):
        if isinstance(row, DataError):
            faults.append(f"{place}: {row}")
            continue
        name, captions = row
        video = resolve_video(name, folders=(path.parent, videos, videos.parent))
        if video in found:
            faults.append(f"{place}: {name!r} has captions on an earlier line")
        found[video] = captions
    _refuse(faults, what=f"{path}: line(s) that cannot be used")
    return found


def caption_rows(path: Path) -> Iterator[tuple[str, tuple[str, Captions] | DataError]]:
    """Rows of a file of captions, one by one.

    Args:
        path: JSON lines or, by its name, parquet: {path, caption} or {path, caption_short,
            caption_long}.

    Yields:
        ('line 3', (path of the video as written, captions)), or the fault in place of the latter.

    Raises:
        DataError: The file cannot be read.
    """
    if path.suffix.lower() == ".parquet":
        yield from _parquet_rows(path)
        return
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"line {number}", _try_parse(line)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--captions {path}: cannot be read: {error}") from error


def _parquet_rows(path: Path) -> Iterator[tuple[str, tuple[str, Captions] | DataError]]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        with ParquetFile(path) as file:
            known = ("path", "caption", "caption_short", "caption_long")
            columns = [name for name in known if name in file.schema_arrow.names]
            for batch in file.iter_batches(columns=columns):
                for record in batch.to_pylist():
                    number += 1
                    # A column that is empty here is a field that is not there.
                    filled = {name: text for name, text in record.items() if text is not None}
                    yield f"row {number}", _try_parse(filled)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"--captions {path}: cannot be read: {error}") from error


def _try_parse(line: str | dict[str, Any]) -> tuple[str, Captions] | DataError:
    try:
        return _parse(line)
    except DataError as error:
        return error


def _parse(line: str | dict[str, Any]) -> tuple[str, Captions]:
    try:
        record = json.loads(line) if isinstance(line, str) else line
    except (ValueError, RecursionError) as error:
        raise DataError(f"expected JSON: {error}") from error
    if not isinstance(record, dict):
        raise DataError(f"expected an object, got {type(record).__name__}")
    short = record.get("caption_short", record.get("caption"))
    fields = {
        "path": record.get("path"),
        "caption_short or caption": short,
        "caption_long": record.get("caption_long", short),
    }
    for name, value in fields.items():
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"{name}: expected text, got {value!r}")
    path, short, long = (str(value).strip() for value in fields.values())
    return path, Captions(short=short, long=long)


def resolve_video(name: str, *, folders: Sequence[Path]) -> Path:
    """The file of that name in the first folder that has it, else in the first folder."""
    candidates = [(folder / name).resolve() for folder in folders]
    return next((path for path in candidates if path.is_file()), candidates[0])


def find_sources(videos: Path, *, captions: dict[Path, Captions]) -> list[Source]:
    """Every video below a folder with its captions, sorted by path.

    Raises:
        DataError: No such folder, no video in it, or videos without captions; names them.
    """
    if not videos.is_dir():
        raise DataError(f"VIDEOS {videos}: expected a folder")
    paths = sorted(path for path in videos.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES)
    if not paths:
        raise DataError(
            f"VIDEOS {videos}: expected videos ({', '.join(VIDEO_SUFFIXES)}), found none"
        )
    bare = [str(path) for path in paths if path.resolve() not in captions]
    _refuse(bare, what="video(s) without captions")
    known = {path.resolve() for path in paths}
    unused = [str(path) for path in captions if path not in known]
    if unused:
        _log.warning(
            "captions of %d video(s) that are not in %s: %s",
            len(unused),
            videos,
            _name_some(unused),
        )
    keys = _keys([path.relative_to(videos) for path in paths])
    return [
        Source(key=key, path=path, captions=captions[path.resolve()])
        for key, path in zip(keys, paths, strict=True)
    ]


def _keys(names: list[Path]) -> list[str]:
    """File names as keys of the schema; those that would collide get a hash of the full name."""
    plain = [re.sub(r"[^A-Za-z0-9_\-]+", "_", str(name.with_suffix("")))[:60] for name in names]
    return [
        key
        if plain.count(key) == 1
        else f"{key}-{hashlib.sha256(str(name).encode()).hexdigest()[:8]}"
        for key, name in zip(plain, names, strict=True)
    ]


def readable(sources: list[Source], *, skip_bad: bool) -> list[Source]:
    """Sources whose header and first frame can be read.

    Args:
        sources: Videos.
        skip_bad: Leave the others out with a warning, rather than refuse.

    Raises:
        DataError: Names the videos that cannot be read.
    """
    good: list[Source] = []
    faults: list[str] = []
    for source in sources:
        try:
            video_facts(source.path)
            decode_rgb(source.path, name=str(source.path), indices=[0])
            good.append(source)
        except DataError as error:
            faults.append(str(error))
    if faults and skip_bad:
        _log.warning("left out %d video(s): %s", len(faults), _name_some(faults))
    elif faults:
        _refuse(faults, what="video(s) that cannot be read (--skip-bad leaves them out)")
    if not good:
        raise DataError("expected at least one readable video, found none")
    return good


def _name_some(names: list[str]) -> str:
    left = len(names) - _MOST_NAMED
    return "; ".join(names[:_MOST_NAMED]) + (f"; and {left} more" if left > 0 else "")


def _refuse(faults: list[str], *, what: str) -> None:
    if faults:
        raise DataError(f"{len(faults)} {what}: {_name_some(faults)}")
