"""A process and its descendants: memory, CPU time, and stopping them while others are timed."""

import os
import signal
import threading
import time
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def descendants(root: int) -> list[int]:
    """The process and all below it, parents first; any thread may have started a child."""
    found = [root]
    for pid in found:
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                found += [int(child) for child in children.read_text().split()]
            except OSError:
                continue  # it ended meanwhile
    return found


def memory(root: int) -> int:
    """Bytes of a tree: proportional set size, and shared memory that nobody has mapped just now.

    Of tensors on their way between processes only a descriptor may be open, which PSS misses.
    """
    private = shared = 0
    files: dict[tuple[int, int], int] = {}
    for pid in descendants(root):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
            sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
            private += sizes["Pss"] - sizes["Pss_Shmem"]
            shared += sizes["Pss_Shmem"]
            files |= _shared_files(pid)
        except (OSError, KeyError):
            continue  # it ended meanwhile
    return private + max(shared, sum(files.values()))


def _shared_files(pid: int) -> dict[tuple[int, int], int]:
    found = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if os.readlink(entry).startswith(("/dev/shm/", "/memfd:")):
                status = entry.stat()
                found[status.st_dev, status.st_ino] = status.st_blocks * 512
        except OSError:
            continue  # closed meanwhile
    return found


def cpu_seconds(root: int) -> float:
    """User and system time of a tree, of processes that still run."""
    ticks = 0
    for pid in descendants(root):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / _TICKS


def send(root: int, number: signal.Signals) -> None:
    """A signal to a whole tree."""
    for pid in descendants(root):
        os.kill(pid, number)


class PeakMemory:
    """Polls `memory` in a thread while a `with` block runs; `bytes` is the largest found."""

    def __init__(self, root: int, *, every_seconds: float = 0.05) -> None:
        self.bytes = 0
        self._root, self._every = root, every_seconds
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _poll(self) -> None:
        while not self._is_over.is_set():
            begin = time.perf_counter()
            self.bytes = max(self.bytes, memory(self._root))
            # A walk through page tables stalls the process; a third of the time at most.
            self._is_over.wait(max(self._every, 2 * (time.perf_counter() - begin)))
