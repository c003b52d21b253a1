"""Members of tars read in place: nothing is extracted, and a tar's headers are read once."""

import io
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from data_loaders.schema import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a member's content lies."""

    offset: int
    """First byte."""
    size: int
    """Bytes."""


class FileWindow(io.RawIOBase):
    """A part of a file as a file of its own, read-only and seekable."""

    def __init__(self, path: Path, place: Place) -> None:
        super().__init__()
        self._file = path.open("rb", buffering=0)
        self._place = place
        self._at = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Position within the window."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move within the window; beyond its end, as files allow, nothing is read."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._place.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: bytearray | memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Read what is left of the window, as much as fits."""
        count = min(len(buffer), max(0, self._place.size - self._at))
        self._file.seek(self._place.offset + self._at)
        taken = self._file.readinto(memoryview(buffer)[:count])
        self._at += taken or 0
        return taken or 0

    def close(self) -> None:
        """Close the file beneath, too."""
        self._file.close()
        super().close()


@dataclass(frozen=True, kw_only=True, slots=True)
class TarIndex:
    """What a tar holds."""

    members: dict[str, dict[str, Place]]
    """By key and ending: {'shard/clip': {'mp4': ..., 'json': ...}}, in the order of the tar; the
    last of two members of one name, as when it is extracted."""
    is_whole: bool
    """Whether it has its end. If not, the last sample is left out, as it may lack members."""


def tar_index(path: Path) -> TarIndex:
    """Members of a tar, their names split where webdataset does: at the first dot.

    Args:
        path: Tar, not compressed: compressed ones cannot be read in place.

    Raises:
        DataError: It cannot be read as a tar.
    """
    try:
        facts = path.stat()
        return _index(path, facts.st_size, facts.st_mtime_ns)
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{path}: cannot be read as a tar: {error}") from error


@lru_cache(maxsize=64)
def _index(path: Path, size: int, modified: int) -> TarIndex:
    """Cached by size and time, so that a tar that is still being written is read anew."""
    # It takes seconds to import, and most sources are no tars.
    from webdataset.tariterators import base_plus_ext

    found: dict[str, dict[str, Place]] = {}
    end, last = 0, ""
    with tarfile.open(path, mode="r:") as tar:
        for member in _members(tar):
            end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            key, ending = base_plus_ext(member.name)
            # macOS puts '._name' beside every file.
            if not key or not ending or key.endswith("/") or not member.isfile():
                continue
            last = key
            place = Place(offset=member.offset_data, size=member.size)
            found.setdefault(key, {})[ending.lower()] = place
    with path.open("rb") as file:
        file.seek(end)
        is_whole = file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
    if not is_whole:
        found.pop(last, None)
    return TarIndex(members=found, is_whole=is_whole)


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    try:
        yield from tar
    except tarfile.TarError:
        return  # damaged from here on


def read_member(path: Path, *, key: str, ending: str) -> bytes:
    """Content of `{key}.{ending}`.

    Raises:
        DataError: There is none, or it cannot be read.
    """
    place = tar_index(path).members.get(key, {}).get(ending)
    if place is None:
        raise DataError(f"{path}: expected a member {key}.{ending}, found none")
    with FileWindow(path, place) as window:
        content = window.readall()
    if len(content) != place.size:
        raise DataError(f"{path}: {key}.{ending}: expected {place.size} bytes, got {len(content)}")
    return content
