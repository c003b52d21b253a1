"""Captions that come with the user's own videos: a table of paths and sentences."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_loaders.schema import DataError

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")


@dataclass(frozen=True, kw_only=True, slots=True)
class Captions:
    """What a line of the captions file says about a video."""

    short: str
    long: str


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
