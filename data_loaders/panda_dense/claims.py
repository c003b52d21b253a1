"""Who works on what, among processes that know nothing of each other.

A claim is a file. It is a hint and no lock: two processes that work on the same clips for a while,
because a claim seemed dead, write the same files with the same bytes, each whole. So no file system
has to promise more than that of two who link one name, one is told that it exists.
"""

import errno
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

_BEATS = 6
"""Signs of life in the time after which a claim without one is dead."""


@cache
def _machine() -> str:
    """Names the kernel and the process ids that count on this machine, in this container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """When a process of this machine began, in ticks; None where there is none."""
    try:
        # The name, in brackets, may hold anything: count from its end. Field 22 of proc(5).
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


@dataclass(kw_only=True)
class Claim:
    """A claim of this process; made by `take`."""

    path: Path
    """Its file."""
    record: dict[str, Any]
    """What the file says: who, since when, at work on which clips."""
    orphans: tuple[str, ...]
    """Clips that processes were at work on which held this claim before and are gone."""
    _ended: threading.Event = field(default_factory=threading.Event)

    def work_on(self, keys: Sequence[str]) -> None:
        """Say which clips come next, so that whoever finds this process dead can count it."""
        self.record = {**self.record, "keys": list(keys)}
        partial = self.path.with_name(f"{self.path.name}.{self.record['token']}")
        # A hint, for counting: where the disk is full the work itself will meet it.
        with suppress(OSError):
            partial.write_text(json.dumps(self.record))
            os.replace(partial, self.path)

    def release(self) -> None:
        """Give it up."""
        self._ended.set()
        with suppress(OSError):
            if _read(self.path).get("token") == self.record["token"]:
                self.path.unlink()

    def abandon(self) -> None:
        """End the signs of life and leave the file: as if this process were gone."""
        self._ended.set()

    def __enter__(self) -> "Claim":
        return self

    def __exit__(self, *_: object) -> None:
        if not self._ended.is_set():
            self.release()


def take(path: Path, *, stale_seconds: float) -> Claim | None:
    """Claim something.

    Args:
        path: File that stands for it.
        stale_seconds: A claim of another machine that has given no sign of life for so long is
            dead. Of this machine it is known at once.

    Returns:
        The claim; None where another process has it.

    Raises:
        OSError: The disk is full or not writable.
    """
    orphans = []
    if path.exists():
        dead = _bury(path, stale_seconds=stale_seconds)
        if dead is None:
            return None
        orphans = [*dead.get("orphans", []), *dead.get("keys", [])]
    pid = os.getpid()
    record = {
        "token": secrets.token_hex(8),
        "host": socket.gethostname(),
        "machine": _machine(),
        "pid": pid,
        "process_started": _started(pid),
        "keys": [],
        # Not lost if this process dies before it has written them down.
        "orphans": orphans,
    }
    if not _create(path, record):
        return None
    claim = Claim(path=path, record=record, orphans=tuple(orphans))
    threading.Thread(
        target=_beat, args=(path, claim._ended, stale_seconds / _BEATS), daemon=True
    ).start()
    return claim


def settle_orphans(claim: Claim) -> None:
    """The deaths of `claim.orphans` are written down: forget them."""
    claim.record = {**claim.record, "orphans": []}
    claim.work_on([])


def holder(path: Path, *, stale_seconds: float) -> str:
    """'HOST process PID' of a claim that is alive; '' where there is none."""
    record = _read(path)
    if not record or _is_dead(record, path=path, stale_seconds=stale_seconds):
        return ""
    return f"{record.get('host')} process {record.get('pid')}"


def _create(path: Path, record: dict[str, Any]) -> bool:
    """Make the file with all its content, if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{record['token']}")
    content = json.dumps(record)
    partial.write_text(content)
    try:
        os.link(partial, path)
    except (FileExistsError, FileNotFoundError):
        return False  # another was quicker; or swept it away, and this one tries again later
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
        # No links here (FUSE, exFAT): then it is empty for a moment.
        try:
            with path.open("x") as file:
                file.write(content)
        except FileExistsError:
            return False
    finally:
        partial.unlink(missing_ok=True)
    return True


def _bury(path: Path, *, stale_seconds: float) -> dict[str, Any] | None:
    """What a dead claim said, which is removed; None where it is alive, or another was quicker."""
    record = _read(path)
    if not _is_dead(record, path=path, stale_seconds=stale_seconds):
        return None
    grave = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        os.rename(path, grave)
    except FileNotFoundError:
        return None
    buried = _read(grave)
    if buried.get("token") != record.get("token"):
        # Another heir was quicker, and this is its claim: put it back.
        with suppress(OSError):
            os.link(grave, path)
        grave.unlink(missing_ok=True)
        return None
    grave.unlink(missing_ok=True)
    return record


def _is_dead(record: dict[str, Any], *, path: Path, stale_seconds: float) -> bool:
    if record and record.get("machine") == _machine() != "":
        started = _started(int(record["pid"]))
        return started is None or started != record.get("process_started")
    # The clock of the file system, which is not that of this machine.
    probe = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        probe.touch()
        now = probe.stat().st_mtime
        return now - path.stat().st_mtime > stale_seconds
    except FileNotFoundError:
        return False  # it was given up this very moment: next time
    finally:
        probe.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _beat(path: Path, ended: threading.Event, seconds: float) -> None:
    due = time.monotonic() + seconds
    while not ended.wait(max(0.0, due - time.monotonic())):
        with suppress(OSError):
            os.utime(path)
        due += seconds
