"""The CSV of Panda-70M: one row per source video, its clips as Python lists in the columns.

    videoID,url,timestamp,caption,matching_score[,desirable_filtering,shot_boundary_detection]

The last five hold one item per clip: ['0:00:08.308', '0:00:17.134'], a sentence, a number, a word,
and a list of the time spans that are one shot each. Files have up to 3.8 million rows, some of
them broken: rows are read one by one, and what cannot be used is counted with its line.
"""

import ast
import csv
import math
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BufferedIOBase
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from data_loaders.panda_dense.tally import Tally
from data_loaders.schema import DataError

REQUIRED_COLUMNS = ("videoID", "url", "timestamp", "caption", "matching_score")
OPTIONAL_COLUMNS = ("desirable_filtering", "shot_boundary_detection")
_LIST_COLUMNS = (*REQUIRED_COLUMNS[2:], *OPTIONAL_COLUMNS)

MOST_ROW_BYTES = 16 * 2**20
"""A row of a ten hours' video takes about 1 MB; what is longer is a file that lost its line ends.
"""
# Quoted fields may hold line ends. A quote that is never closed would swallow the rest of the file:
# after so many lines it is taken for a fault of the first.
_MOST_ROW_LINES = 20

# What bytes that are no UTF-8 become by 'surrogateescape'.
_ESCAPED = re.compile("[\udc80-\udcff]")
_STAMP = re.compile(r"(\d{1,4}):([0-5]?\d):([0-5]?\d(?:\.\d{1,9})?)")


@dataclass(frozen=True, kw_only=True, slots=True)
class PandaClip:
    """One clip of the CSV."""

    video_id: str
    url: str
    start: float
    """Seconds in the source video, to the millisecond."""
    end: float
    """Seconds in the source video, > start."""
    caption: str
    matching_score: float
    """How well caption and clip agree, 0..1; above 0.43 in the 10M subset."""
    desirable: str
    """'desirable', or why not: '0_low_desirable_score', '1_still_foreground_image',
    '2_tiny_camera_movement', '3_screen_in_screen', '4_computer_screen_recording'; '' = unknown."""
    shots: int | None
    """Shots that TransNetV2 found in the clip; None = unknown."""


class PandaCsv:
    """A Panda-70M CSV, read anew by every iteration."""

    def __init__(self, path: Path) -> None:
        """Open the file and check its header.

        Args:
            path: CSV in UTF-8.

        Raises:
            DataError: It cannot be read, or a required column is missing; nothing else is an
                error.
        """
        self.path = path
        self.tally = Tally()
        """What the last iteration left out: rows, or single clips of them."""
        try:
            with path.open("rb") as file:
                header = next(_rows(file, width=None, tally=Tally()), None)
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
        names = [] if header is None else [name.strip().lstrip("\ufeff") for name in header[1]]
        missing = [name for name in REQUIRED_COLUMNS if name not in names]
        if missing:
            raise DataError(
                f"{path}: expected the columns {', '.join(REQUIRED_COLUMNS)} in line 1, "
                f"missing {', '.join(missing)} (found {', '.join(names)[:200] or 'nothing'})"
            )
        self._width = len(names)
        self._columns = {
            name: names.index(name)
            for name in (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS)
            if name in names
        }

    def __iter__(self) -> Iterator[PandaClip]:
        """Clips in the order of the file; memory does not grow with it.

        Raises:
            OSError: The file can no longer be read.
        """
        self.tally = tally = Tally()
        with self.path.open("rb") as file:
            rows = _rows(file, width=self._width, tally=tally)
            next(rows, None)
            for line, row in rows:
                try:
                    values = self._lists(row)
                except DataError as error:
                    tally.add(str(error), f"line {line}")
                    continue
                yield from self._clips(row, values=values, line=line)

    def _lists(self, row: Sequence[str]) -> dict[str, list[Any]]:
        """The list columns; the text of an error is a reason of the tally."""
        if len(row) != self._width:
            raise DataError("wrong number of columns")
        whole = "".join(row)
        if "\0" in whole:
            raise DataError("NUL byte")
        if _ESCAPED.search(whole):
            raise DataError("not UTF-8")
        if not row[self._columns["videoID"]].strip():
            raise DataError("no video id")
        values = {
            name: parse_list(row[self._columns[name]])
            for name in _LIST_COLUMNS
            if name in self._columns
        }
        if len({len(items) for items in values.values()}) != 1:
            raise DataError("lists of different lengths")
        return values

    def _clips(
        self, row: Sequence[str], *, values: dict[str, list[Any]], line: int
    ) -> Iterator[PandaClip]:
        number = len(values["timestamp"])
        unknown = [None] * number
        columns = [values.get(name, unknown) for name in _LIST_COLUMNS]
        for i, (span, caption, score, desirable, shots) in enumerate(zip(*columns, strict=True)):
            try:
                start, end = parse_span(span)
                clip = PandaClip(
                    video_id=row[self._columns["videoID"]].strip(),
                    url=row[self._columns["url"]].strip(),
                    start=start,
                    end=end,
                    caption=_text(caption, name="caption"),
                    matching_score=_number(score),
                    desirable=_text(desirable or "", name="desirable_filtering"),
                    shots=count_shots(shots),
                )
            except DataError as error:
                self.tally.add(str(error), f"line {line}, clip {i}")
                continue
            yield clip


def _rows(
    file: BufferedIOBase, *, width: int | None, tally: Tally
) -> Iterator[tuple[int, list[str]]]:
    """(line, fields); a row that cannot be parsed costs itself and not what follows.

    Args:
        file: CSV.
        width: Columns of a row, by which lines that belong together are known; None = any number.
        tally: Takes what was left out.
    """
    # For the whole process, as there is no other way; raised only.
    csv.field_size_limit(max(csv.field_size_limit(), MOST_ROW_BYTES))
    lines = _lines(file, tally=tally)
    waiting: deque[tuple[int, str]] = deque(islice(lines, 1))
    while waiting:
        taken, row = 1, _parse([waiting[0][1]])
        while row is None and taken < _MOST_ROW_LINES:
            if taken == len(waiting):
                waiting.extend(islice(lines, 1))
            if taken == len(waiting):
                break
            taken += 1
            row = _parse([waiting[i][1] for i in range(taken)], width=width)
        number, _ = waiting.popleft()
        if row is None:
            tally.add("bad quotes", f"line {number}")
        else:
            for _ in range(taken - 1):
                waiting.popleft()
            if row:
                yield number, row
        if not waiting:
            waiting.extend(islice(lines, 1))


def _parse(lines: list[str], *, width: int | None = None) -> list[str] | None:
    """Fields of a row; None where a quote is still open, or closed amid a field."""
    try:
        rows = list(csv.reader(lines, strict=True))
    except csv.Error:
        return None
    return rows[0] if len(rows) == 1 and width in (None, len(rows[0])) else None


def _lines(file: BufferedIOBase, *, tally: Tally) -> Iterator[tuple[int, str]]:
    number = 0
    while raw := file.readline(MOST_ROW_BYTES + 1):
        number += 1
        if len(raw) > MOST_ROW_BYTES:
            tally.add("oversized row", f"line {number}")
            while raw and not raw.endswith(b"\n"):
                raw = file.readline(MOST_ROW_BYTES)
            continue
        yield number, raw.decode("utf-8", errors="surrogateescape")


def parse_list(text: str) -> list[Any]:
    """A Python list, by `ast.literal_eval`: nothing is run.

    Raises:
        DataError: It is none.
    """
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError) as error:
        raise DataError("bad list") from error
    if not isinstance(value, list):
        raise DataError("bad list")
    return value


def parse_span(span: object) -> tuple[float, float]:
    """Seconds of ['H:MM:SS.mmm', 'H:MM:SS.mmm'] or of two numbers, to the millisecond.

    Raises:
        DataError: It is no span, or ends before it starts.
    """
    if not isinstance(span, list | tuple) or len(span) != 2:
        raise DataError("bad time stamp")
    start, end = (round(_seconds(stamp), 3) for stamp in span)
    if end <= start:
        raise DataError("end is not after start")
    return start, end


def _seconds(stamp: object) -> float:
    if isinstance(stamp, int | float) and not isinstance(stamp, bool):
        seconds = float(stamp)
    else:
        match = _STAMP.fullmatch(stamp.strip()) if isinstance(stamp, str) else None
        if match is None:
            raise DataError("bad time stamp")
        seconds = int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3])
    if not 0 <= seconds < math.inf:
        raise DataError("bad time stamp")
    return seconds


def count_shots(spans: object) -> int | None:
    """Shots of a clip: the length of its `shot_boundary_detection`; None where there is none.

    Raises:
        DataError: It is no list.
    """
    if spans is None:
        return None
    if not isinstance(spans, list | tuple) or not spans:
        raise DataError("bad shot_boundary_detection")
    return len(spans)


def _number(score: object) -> float:
    if isinstance(score, int | float) and not isinstance(score, bool) and math.isfinite(score):
        return float(score)
    raise DataError("bad matching_score")


def _text(value: object, *, name: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{name} is no text")
    return value.strip()


def video_id_of(url: str) -> str:
    """The id in the address of a video on YouTube; '' where there is none."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    host = (parts.hostname or "").removeprefix("www.").removeprefix("m.")
    if host == "youtube.com":
        return parse_qs(parts.query).get("v", [""])[0]
    return parts.path.strip("/") if host == "youtu.be" else ""
