"""The rows of a data set in the making: one line per clip and stage, in parts of a few clips.

    OUT/ingest/part-000007.jsonl        what a stage says of each clip of part 7, all of them done
    OUT/depth/part-000007.open.jsonl    the same while some are not done
    OUT/depth/part-000007/KEY.depth.mkv files of a clip

A part is the unit that processes share out. Its file is written anew, whole, after every few clips:
nothing is appended, so nothing is ever half a line, on network file systems too. `manifest.py`
joins the rows to one table.
"""

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from data_loaders.atomic_file import PARTIAL, write_atomically
from data_loaders.schema import DataError

Status = Literal["kept", "dropped", "failed", "again"]
"""'dropped': the clip is not wanted; 'failed': it could not be done; 'again': to be tried again."""

_WHOLE = re.compile(r"part-(\d{6,})\.jsonl")
_ANY = re.compile(r"part-(\d{6,})(?:\.open)?\.jsonl")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """What one stage says of one clip."""

    key: str
    """The clip."""
    status: Status
    """What came of it."""
    reason: str = ""
    """Why it was not kept: a few words, the same for all clips of one kind."""
    detail: str = ""
    """The figures, the message: what is special about this clip."""
    attempts: int = 0
    """Times that it raised an error."""
    deaths: int = 0
    """Times that the process was gone while it worked on it."""
    seconds: float = 0.0
    """Time that it took; its share, where several clips are done together."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """What the stage found: JSON values."""

    @property
    def is_final(self) -> bool:
        """Whether there is nothing left to do about it."""
        return self.status != "again"


@dataclass(frozen=True, kw_only=True, slots=True)
class Store:
    """The files of a data set in the making; makes folders, and nothing else, by itself."""

    root: Path

    def folder(self, stage: str) -> Path:
        """Where the rows and files of a stage are."""
        return self.root / stage

    def whole_parts(self, stage: str) -> list[int]:
        """Numbers of the parts of which a stage has done every clip, rising."""
        return self._parts(stage, pattern=_WHOLE)

    def begun_parts(self, stage: str) -> list[int]:
        """Numbers of the parts of which a stage has done some clip at least, rising."""
        return self._parts(stage, pattern=_ANY)

    def _parts(self, stage: str, *, pattern: re.Pattern[str]) -> list[int]:
        try:
            names = os.listdir(self.folder(stage))
        except FileNotFoundError:
            return []
        return sorted({int(match[1]) for match in map(pattern.fullmatch, names) if match})

    def rows_file(self, stage: str, part: int, *, is_whole: bool) -> Path:
        """File of the rows of a part."""
        return self.folder(stage) / f"part-{part:06d}{'' if is_whole else '.open'}.jsonl"

    def read(self, stage: str, part: int) -> dict[str, Row]:
        """Rows by key, in their order; none where the stage has not begun.

        Raises:
            DataError: A file is damaged: it was not written by this program.
        """
        for is_whole in (True, False):
            path = self.rows_file(stage, part, is_whole=is_whole)
            try:
                lines = path.read_text(encoding="utf-8").splitlines()
            except FileNotFoundError:
                continue
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"{path}: cannot be read: {error}") from error
            return {row.key: row for row in _parse(lines, path=path)}
        return {}

    def write(self, stage: str, part: int, rows: Iterable[Row], *, is_whole: bool) -> None:
        """Replace the rows of a part.

        Args:
            stage: Of the pipeline.
            part: Number.
            rows: One per clip.
            is_whole: Every clip of the part is there, and final.

        Raises:
            OSError: The disk is full or not writable; the rows that were there stay.
        """
        lines = [json.dumps(asdict(row), sort_keys=True, allow_nan=False) for row in rows]
        path = self.rows_file(stage, part, is_whole=is_whole)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, "".join(f"{line}\n" for line in lines).encode())
        other = self.rows_file(stage, part, is_whole=not is_whole)
        other.unlink(missing_ok=True)

    def reopen(self, stage: str, part: int) -> None:
        """Have a whole part looked at again; what its rows say stays."""
        path = self.rows_file(stage, part, is_whole=True)
        if path.is_file():
            os.replace(path, self.rows_file(stage, part, is_whole=False))

    def file(self, stage: str, part: int, name: str) -> Path:
        """Path of a file that belongs to a clip of a part."""
        return self.folder(stage) / f"part-{part:06d}" / name

    def write_file(self, stage: str, part: int, name: str, content: bytes) -> None:
        """Write a file of a clip, whole or not at all.

        Raises:
            OSError: The disk is full or not writable.
        """
        path = self.file(stage, part, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)

    def claim_file(self, stage: str, part: int | None = None) -> Path:
        """The claim on a part of a stage, or on the whole stage; see `claims.py`."""
        name = "stage" if part is None else f"part-{part:06d}"
        return self.folder(stage) / f"{name}.claim"

    def sweep(self, stage: str, part: int) -> None:
        """Remove what writers that were killed left of a part's files."""
        name = self.file(stage, part, "").name
        for left in (
            *self.file(stage, part, "").glob(f"*{PARTIAL}"),
            *self.folder(stage).glob(f"{name}.*{PARTIAL}"),
        ):
            left.unlink(missing_ok=True)

    def forget(self, stage: str, part: int, keys: Iterable[str]) -> None:
        """Remove the rows of some clips of a part, which is open afterwards."""
        rows = self.read(stage, part)
        gone = rows.keys() & set(keys)
        if gone:
            left = [row for key, row in rows.items() if key not in gone]
            self.write(stage, part, left, is_whole=False)

    def remove(self, stage: str) -> None:
        """Remove all that a stage has done."""
        shutil.rmtree(self.folder(stage), ignore_errors=True)


def _parse(lines: list[str], *, path: Path) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        try:
            yield Row(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise DataError(f"{path} line {number}: expected a row of a clip: {error}") from error
