"""Programs side by side, each with a log; what goes wrong with one is told and ends no other."""

import os
import re
import shlex
import signal
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from sat_udpdiff.tiny.recipe import REPOSITORY, startable

_LAST_LINES = 5
_LONGEST_LINE = 300
_RANK_FACTS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_GRACE_SECONDS = 600
"""For a training that was told to stop: it ends its step and saves, 67 GB where it is of 5B."""


class ProgramError(RuntimeError):
    """A program ended with an error; names its log and shows the last lines of it."""


class StoppedError(RuntimeError):
    """A program was stopped, or never begun, because all are to stop."""


class Programs:
    """Starts programs, knows those that run, and can stop them all.

    Args:
        jobs: Programs that run side by side, of which each gets its share of the threads.
    """

    def __init__(self, *, jobs: int) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock, self._is_stopped = threading.Lock(), False
        self._environment = environment(jobs=jobs)

    def run(self, words: Sequence[str], *, log: Path) -> None:
        """Run a command to its end, its output behind what the log already holds.

        Args:
            words: As a user would type them: `python ...` or `deepspeed ...`.
            log: Is made with its folder if need be.

        Raises:
            ProgramError: It ended with another status than 0.
            StoppedError: `stop` was called.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            output.write(f"$ {shlex.join(words)}\n".encode())
            output.flush()
            process = self._start(words, output=output)
            try:
                status = process.wait()
            finally:
                with self._lock:
                    self._running.discard(process)
        if self._is_stopped:
            raise StoppedError("stopped")
        if status:
            raise ProgramError(f"ended with status {status}; {log}: {last_lines(log)}")

    def _start(self, words: Sequence[str], *, output: BinaryIO) -> "subprocess.Popen[bytes]":
        with self._lock:
            if self._is_stopped:
                raise StoppedError("stopped")
            process = subprocess.Popen(  # noqa: S603 - no shell, our words
                startable(words),
                cwd=REPOSITORY,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._running.add(process)
        return process

    def stop(self) -> None:
        """Tell all programs to end, wait for them, and start no more."""
        with self._lock:
            self._is_stopped = True
            running = list(self._running)
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(timeout=_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                # The ranks, too: the launcher is but one of the group.
                os.killpg(process.pid, signal.SIGKILL)


def environment(*, jobs: int) -> dict[str, str]:
    """Of a program beside others: its share of the threads, unless the user says, and no rank."""
    kept = {key: value for key, value in os.environ.items() if key not in _RANK_FACTS}
    return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs)), **kept}


def last_lines(log: Path) -> str:
    """The end of a log in one line, without progress bars."""
    text = log.read_text(encoding="utf-8", errors="replace")
    lines = [line.strip() for line in re.split(r"[\r\n]+", text)]
    told = [line for line in lines if line and "%|" not in line and not line.startswith("$ ")]
    return " / ".join(line[:_LONGEST_LINE] for line in told[-_LAST_LINES:]) or "it says nothing"


def launcher(*, ranks: int, port: int | None) -> list[str]:
    """How a command of so many processes begins; `port` is needed for more than one."""
    if ranks == 1:
        return ["python"]
    return ["deepspeed", "--master_port", str(port), "--num_gpus", str(ranks), "--quiet"]
