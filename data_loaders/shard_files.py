"""Where the files of shards are: in a folder, or behind an address with copies on this machine.

An address is `scheme://...` of one of `SCHEMES`, through fsspec. Whole files are copied when they
are first asked for, checked against the manifest, and named by their checksum, so that a file that
changes behind the address is never mixed with an older copy. The manifest is fetched at each open.
"""

import hashlib
import logging
import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from fcntl import LOCK_EX, flock
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Thread
from urllib.parse import unquote, urlsplit

from data_loaders.atomic_file import partial_of, partials_of, sync_folder
from data_loaders.schema import DataError
from data_loaders.shard_format import HOW_TO_MAKE, MANIFEST, ShardInfo
from data_loaders.transfer import SCHEMES, TransportError, file_system, try_often

_log = logging.getLogger(__name__)

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*):")
_SECONDS_IN_USE = 60.0
"""A tar used so lately is not evicted."""


class ShardFiles(ABC):
    """Local paths of the files of one folder of shards."""

    @property
    @abstractmethod
    def place(self) -> Path | str:
        """The folder, or its address."""

    @abstractmethod
    def read_manifest(self) -> bytes:
        """Content of the manifest as it is now.

        Raises:
            DataError: There is none in the folder, or it cannot be read.
            TransportError: It cannot be fetched; names the address.
        """

    @abstractmethod
    def check(self, shards: Sequence[ShardInfo]) -> None:
        """Check what can be checked without reading the shards.

        Raises:
            DataError: Names the first shard that is missing or of another size.
        """

    @abstractmethod
    def tar(self, shard: ShardInfo) -> Path:
        """Path of a tar; fetched first where it is remote.

        Raises:
            TransportError: It cannot be fetched; names the address.
        """

    @abstractmethod
    def index(self, shard: ShardInfo) -> Path:
        """Path of an index; fetched first where it is remote.

        Raises:
            TransportError: It cannot be fetched; names the address.
        """

    @abstractmethod
    def prefetch(self, shards: Iterable[ShardInfo]) -> None:
        """Begin to fetch tars and indices in the background; does nothing where they are local."""

    @abstractmethod
    def fetch(self, shards: Iterable[ShardInfo]) -> None:
        """Fetch tars and indices, however long it takes; does nothing where they are local.

        Raises:
            TransportError: One cannot be fetched; names the address.
        """

    @abstractmethod
    def drop_changed(self, shard: ShardInfo) -> bool:
        """Remove this machine's copy of a tar where it is no longer what was fetched.

        Returns:
            Whether `tar` would fetch it anew; never where the files are local.
        """


def is_address(place: Path | str) -> bool:
    """Whether this begins with a scheme, as `https://...` does and a folder does not.

    A folder that is there may have a colon in its name, as `run:1`.
    """
    text = str(place)
    if _SCHEME.match(text) is None:
        return False
    return "://" in text or "::" in text or not Path(text).is_dir()


def files_at(
    place: Path | str, *, cache_dir: Path | None = None, max_cache_bytes: int | None = None
) -> ShardFiles:
    """Files of a folder or behind an address; nothing is read yet.

    Args:
        place: Folder, or an address of one of `SCHEMES`.
        cache_dir: For copies of remote files; None = `cache_of`.
        max_cache_bytes: Of the tars in `cache_dir`: the least recently used ones are removed for a
            new one, but none that was used in the last minute, so the limit can be passed for that
            long. None = no limit.

    Raises:
        DataError: A scheme that is not allowed; `pipe:` would run a shell.
    """
    if not is_address(place):
        return LocalFiles(folder=Path(place))
    address = str(place).rstrip("/")
    scheme = address.split(":", 1)[0].lower()
    # '::' would chain file systems, and so let in those that are refused.
    if scheme not in SCHEMES or not address.startswith(f"{scheme}://") or "::" in address:
        allowed = ", ".join(f"{name}://" for name in SCHEMES)
        raise DataError(
            f"shards: expected a folder that exists or an address of {allowed}; "
            f"got {str(place)!r}, which is refused (pipe: would run a shell)"
        )
    if scheme == "file":
        parts = urlsplit(address)
        if parts.netloc not in ("", "localhost"):
            raise DataError(f"shards: expected file:///folder, got {address!r}")
        return LocalFiles(folder=Path(unquote(parts.path)))
    if max_cache_bytes is not None and max_cache_bytes <= 0:
        raise DataError(f"max_cache_bytes: expected None or a number > 0, got {max_cache_bytes}")
    cache = cache_of(address) if cache_dir is None else Path(cache_dir)
    return CachedFiles(address=address, cache_dir=cache, max_cache_bytes=max_cache_bytes)


def cache_of(address: str) -> Path:
    """Where copies of the files of an address are kept unless told otherwise.

    `$UDPDIFF_CACHE`, or `$XDG_CACHE_HOME/udpdiff`, or `~/.cache/udpdiff`; below it, `shards/` and a
    hash of the address.
    """
    own = os.environ.get("UDPDIFF_CACHE")
    general = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    root = Path(own).expanduser() if own else Path(general).expanduser() / "udpdiff"
    return root / "shards" / hashlib.sha256(address.encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalFiles(ShardFiles):
    """Files of a folder of this machine: their paths are the paths."""

    folder: Path

    @property
    def place(self) -> Path | str:  # noqa: D102 - as in ShardFiles
        return self.folder

    def read_manifest(self) -> bytes:  # noqa: D102
        path = self.folder / MANIFEST
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error
        if not self.folder.is_dir():
            found = "no such folder"
        else:
            tars = sum(1 for _ in self.folder.glob("*.tar"))
            found = f"{tars} tar(s) without one (writing did not end?)" if tars else "no shards"
        raise DataError(f"{self.folder}: expected {MANIFEST}, found {found}; {HOW_TO_MAKE}")

    def check(self, shards: Sequence[ShardInfo]) -> None:  # noqa: D102
        for shard in shards:
            check_size(self.folder / shard.name, expected=shard.num_bytes)

    def tar(self, shard: ShardInfo) -> Path:  # noqa: D102
        return self.folder / shard.name

    def index(self, shard: ShardInfo) -> Path:  # noqa: D102
        return self.folder / shard.index_name

    def prefetch(self, shards: Iterable[ShardInfo]) -> None:  # noqa: D102
        pass

    def fetch(self, shards: Iterable[ShardInfo]) -> None:  # noqa: D102
        pass

    def drop_changed(self, shard: ShardInfo) -> bool:  # noqa: D102
        return False


def check_size(path: Path, *, expected: int) -> None:
    """Check the size of a tar.

    Raises:
        DataError: It is missing or of another size.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(
            f"{path}: {MANIFEST} names this shard, but it cannot be read: {error.strerror}"
        ) from error
    if size != expected:
        state = "truncated" if size < expected else "changed"
        raise DataError(f"{path}: {state}: expected {expected} bytes, found {size}")


@dataclass(frozen=True, kw_only=True, slots=True)
class CachedFiles(ShardFiles):
    """Files behind an address, copied whole to `cache_dir`; safe for many threads and processes.

    Of all that ask for a file on one machine, one copies it and the others wait. A copy has its
    name only when it is whole and its checksum is right.
    """

    address: str
    cache_dir: Path
    max_cache_bytes: int | None = None

    @property
    def place(self) -> Path | str:  # noqa: D102 - as in ShardFiles
        return self.address

    def read_manifest(self) -> bytes:  # noqa: D102
        url = f"{self.address}/{MANIFEST}"
        return try_often(lambda: file_system(url).cat_file(url), url=url)

    def check(self, shards: Sequence[ShardInfo]) -> None:  # noqa: D102
        pass

    def tar(self, shard: ShardInfo) -> Path:  # noqa: D102
        return self._copy(shard.name, sha256=shard.sha256, size=shard.num_bytes)

    def index(self, shard: ShardInfo) -> Path:  # noqa: D102
        return self._copy(shard.index_name, sha256=shard.index_sha256, size=None)

    def prefetch(self, shards: Iterable[ShardInfo]) -> None:  # noqa: D102
        for shard in shards:
            _background.ask(self, shard)

    def fetch(self, shards: Iterable[ShardInfo]) -> None:  # noqa: D102
        for shard in shards:
            self.index(shard)
            self.tar(shard)

    def drop_changed(self, shard: ShardInfo) -> bool:  # noqa: D102
        path = self._path(shard.name, sha256=shard.sha256)
        # Locked, lest the copy that another process has just made anew be removed.
        with self._copying(path):
            try:
                with path.open("rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() == shard.sha256:
                        return False
            except FileNotFoundError:
                return True
            except OSError as error:  # a bad block
                _log.warning("%s: cannot be read: %s", path, error)
            _log.warning("%s: the copy has changed since it was fetched: fetching again", path)
            path.unlink(missing_ok=True)
        return True

    def drop(self, shard: ShardInfo) -> None:
        """Remove this machine's copy of a tar; the next use fetches it again."""
        self._path(shard.name, sha256=shard.sha256).unlink(missing_ok=True)

    def _path(self, name: str, *, sha256: str) -> Path:
        stem, dot, suffix = name.partition(".")
        return self.cache_dir / f"{stem}-{sha256[:32]}{dot}{suffix}"

    def _copying(self, path: Path) -> AbstractContextManager[None]:
        return _locked(path.with_name(path.name + ".lock"))

    def _copy(self, name: str, *, sha256: str, size: int | None) -> Path:
        path = self._path(name, sha256=sha256)
        try:
            if _mark_used(path):
                return path
            self.cache_dir.mkdir(parents=True, exist_ok=True)
            with self._copying(path):
                if not _mark_used(path):
                    if size is not None:
                        self._make_room(size)
                    self._download(name, path, sha256=sha256, size=size)
        except TransportError:
            raise
        except OSError as error:
            raise TransportError(
                f"{self.address}/{name}: no copy in {self.cache_dir}: {error}"
            ) from error
        return path

    def _download(self, name: str, path: Path, *, sha256: str, size: int | None) -> None:
        url, partial = f"{self.address}/{name}", partial_of(path)

        def transfer() -> None:
            file_system(url).get_file(url, str(partial))
            with partial.open("rb+") as file:
                found = os.fstat(file.fileno()).st_size
                if size is not None and found != size:
                    raise DataError(f"expected {size} bytes, got {found}")
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                if digest != sha256:
                    raise DataError(f"expected sha256 {sha256}, got {digest}")
                os.fsync(file.fileno())

        # Of processes that were killed, as the lock is ours: nothing else would free the gigabytes.
        for left in partials_of(path):
            left.unlink(missing_ok=True)
        try:
            try_often(transfer, url=url)
            os.replace(partial, path)
            sync_folder(path.parent)
        finally:
            partial.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        if self.max_cache_bytes is None:
            return
        with _locked(self.cache_dir / "evict.lock"):
            found = [(path, path.stat()) for path in self.cache_dir.glob("*.tar")]
            excess = sum(stat.st_size for _, stat in found) + size - self.max_cache_bytes
            for path, stat in sorted(found, key=lambda item: item[1].st_mtime):
                if excess <= 0 or time.time() - stat.st_mtime < _SECONDS_IN_USE:
                    return
                # Readers that have it open go on reading.
                path.unlink(missing_ok=True)
                excess -= stat.st_size


def _mark_used(path: Path) -> bool:
    """Note the time for `_make_room`; False where there is no such file."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock between threads and processes; the file stays, for others may wait for it."""
    with path.open("wb") as file:
        flock(file, LOCK_EX)
        yield


class _Background:
    """One thread that fetches what was asked for, in that order; it does not hold up the end."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[tuple[CachedFiles, ShardInfo]] = SimpleQueue()
        self._waiting: set[tuple[CachedFiles, str]] = set()
        self._lock = Lock()
        self._thread: Thread | None = None

    def ask(self, files: CachedFiles, shard: ShardInfo) -> None:
        with self._lock:
            if (files, shard.sha256) in self._waiting:
                return
            self._waiting.add((files, shard.sha256))
            self._queue.put((files, shard))
            if self._thread is None or not self._thread.is_alive():
                self._thread = Thread(target=self._fetch_all, name="prefetch shards", daemon=True)
                self._thread.start()

    def _fetch_all(self) -> None:
        while True:
            files, shard = self._queue.get()
            try:
                files.fetch([shard])
            except (DataError, OSError) as error:
                # Whoever needs the shard tries again and stops there.
                _log.warning("prefetch: %s", error)
            finally:
                with self._lock:
                    self._waiting.discard((files, shard.sha256))


_background = _Background()
