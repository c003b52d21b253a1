"""One run per folder: `run.lock` in it says whose it is, and a second run refuses to start.

On one machine, and wherever the file system knows of locks on other machines, the kernel holds the
lock and lets go of it when the process ends, however it ends. Where it does not, the file's time is
a heartbeat: a run on another machine that is silent is taken for dead. It is watched for a while
rather than compared with a clock, so clocks may differ or jump. A job that Slurm queued again takes
the folder at once: Slurm has ended the run that it was before.
"""

import contextlib
import errno
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from sat_udpdiff.config import ConfigError
from sat_udpdiff.distributed import Place
from sat_udpdiff.training import ranks
from sat_udpdiff.weights.run_folder import CheckpointError

LOCK_FILE = "run.lock"
BEAT_SECONDS = 15.0
PATIENCE_SECONDS = 90.0
"""NFS may show a file's time a minute late, and then some beats must be missed."""

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


@dataclass(frozen=True, kw_only=True, slots=True)
class Owner:
    """Who holds a run folder."""

    host: str
    boot: str
    """Tells machines of one name apart, and a machine from itself before a restart."""
    pid: int
    since: str
    """For people; nothing is computed with it."""
    job: str
    """Slurm's number; empty outside of Slurm."""
    restarts: int
    """How often Slurm has queued the job again."""
    token: str

    def __str__(self) -> str:
        job = f", Slurm job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host}{job}, since {self.since}"


def this_process(environ: Mapping[str, str] = os.environ) -> Owner:
    """An owner that is this process; another token each time."""
    try:
        boot = _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:  # not Linux: machines are told apart by their names
        boot = socket.gethostname()
    return Owner(
        host=socket.gethostname(),
        boot=boot,
        pid=os.getpid(),
        since=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        job=environ.get("SLURM_JOB_ID", ""),
        restarts=int(environ.get("SLURM_RESTART_COUNT") or 0),
        token=secrets.token_hex(8),
    )


class RunLock:
    """A run folder that is this process's until `release`, or until the process ends.

    Args:
        folder: The run folder.
        tell: See `hold`.

    Raises:
        ConfigError: Another run has it.
        OSError: It cannot be written to.
    """

    def __init__(self, folder: Path, *, tell: Callable[[str], None]) -> None:
        self._made = [path for path in (folder, *folder.parents) if not path.exists()]
        self._path = folder / LOCK_FILE
        self._owner = this_process()
        self._file = -1
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file, is_certain = _open(self._path)
            before = _read(self._file)
            if before is not None:
                _check_dead(before, now=self._owner, path=self._path, file=self._file,
                    is_certain=is_certain, tell=tell)  # fmt: skip
            self._sign()
        except BaseException:
            self._leave()
            raise
        self._has_ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="run lock", daemon=True)
        self._heart.start()

    def check(self) -> None:
        """Make sure that the folder is this run's still.

        Raises:
            CheckpointError: Another run has taken it, on a machine that took this one for dead.
        """
        try:
            is_same_file = os.stat(self._path).st_ino == os.fstat(self._file).st_ino
        except FileNotFoundError:
            return  # removed by hand, and nobody else has come
        now = _read(self._file) if is_same_file else None
        if now is None or now.token != self._owner.token:
            raise CheckpointError(
                f"{self._path.parent}: another run has taken this folder"
                f"{f' ({now})' if now else ''}; this one saves nothing more"
            )

    def release(self) -> None:
        """Let others have the folder."""
        self._has_ended.set()
        self._heart.join()
        with contextlib.suppress(CheckpointError, OSError):
            self.check()
            self._path.unlink(missing_ok=True)  # held until the file is closed
        self._leave()

    def _sign(self) -> None:
        try:
            _write(self._file, self._owner)
        except OSError:
            # The disk is full. It would name nobody, and nobody would remove it.
            self._path.unlink(missing_ok=True)
            raise

    def _leave(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        for folder in self._made:
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()

    def _beat(self) -> None:
        while not self._has_ended.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):  # a silent moment of the file system
                os.utime(self._file)


@contextmanager
def hold(folder: Path, *, place: Place, tell: Callable[[str], None]) -> Iterator[RunLock | None]:
    """Hold a run folder for the length of the block; every rank calls it.

    Args:
        folder: Made if it is not there, and removed at the end if it was, and is empty.
        place: Of this rank.
        tell: Called with a line where a decision takes a while, or another run's lock is taken.

    Yields:
        The lock on the first rank, None on the others.

    Raises:
        ConfigError: On all ranks: another run has the folder, or it cannot be written to.
    """
    lock = fault = None
    if place.is_main:
        try:
            lock = RunLock(folder, tell=tell)
        except ConfigError as error:
            fault = str(error)
        except OSError as error:
            fault = f"run.output: cannot write to {folder}: {error.strerror}"
    fault = ranks.gather(fault, place=place)[0]
    if fault is not None:
        raise ConfigError(fault, keys=("run.output",))
    try:
        yield lock
    finally:
        if lock is not None:
            lock.release()


def _open(path: Path) -> tuple[int, bool]:
    """The file, locked where locks are known; whether they are.

    A lock of this kind belongs to the process: children that outlive it have no share in it. It
    goes with the first descriptor of the file that the process closes, so there is only one.

    Raises:
        ConfigError: Another process has it locked.
    """
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            is_certain = _lock(file, path=path)
            # Its holder may have removed the file in between.
            if path.exists() and os.stat(path).st_ino == os.fstat(file).st_ino:
                return file, is_certain
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _lock(file: int, *, path: Path) -> bool:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise _refusal(path, owner=_read(file), advice="") from None
        if error.errno in _NO_LOCKS:
            return False
        raise
    return True


def _check_dead(  # noqa: PLR0913 - the two owners, and what is known of the file
    before: Owner,
    *,
    now: Owner,
    path: Path,
    file: int,
    is_certain: bool,
    tell: Callable[[str], None],
) -> None:
    """Raise ConfigError unless the run that the file names is over."""
    is_here = before.boot == now.boot
    is_requeued = bool(now.job) and before.job == now.job and before.restarts < now.restarts
    if (is_here and is_certain) or is_requeued:
        return
    tell(f"{path} is of {before}; watching it for {PATIENCE_SECONDS:g} s for a sign of life")
    seen, deadline = os.fstat(file).st_mtime_ns, time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        time.sleep(min(1.0, PATIENCE_SECONDS))
        if os.fstat(file).st_mtime_ns != seen:
            raise _refusal(path, owner=before, advice=f"; if it is not, delete {path}")
    tell(f"no sign of life: taking {path.parent} over")


def _refusal(path: Path, *, owner: Owner | None, advice: str) -> ConfigError:
    who = f"{owner}" if owner else "it does not say which"
    return ConfigError(
        f"run.output: another run is at work in {path.parent}: {who}; end it first, or choose "
        f"another run.output{advice}",
        keys=("run.output",),
    )


def _read(file: int) -> Owner | None:
    """Whom the file names; None for an empty one, or one that nobody finished writing."""
    try:
        return Owner(**json.loads(os.pread(file, 4096, 0)))
    except (ValueError, TypeError):
        return None


def _write(file: int, owner: Owner) -> None:
    text = json.dumps(asdict(owner)).encode()
    os.ftruncate(file, 0)
    os.pwrite(file, text, 0)
    os.fsync(file)
