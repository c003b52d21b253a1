"""Processes that may crash or hang: each task gets its result, an error, or the end of its process.

Video files are foreign input to C libraries. A process pool of the standard library breaks when one
of its processes dies and waits forever when one hangs; here that costs the one task, whose future
says so, and the process is replaced.
"""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from math import inf
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from data_loaders.reader_process import receive_answer

_MOST_FAILED_STARTS = 3
_SECONDS_TO_START = 120.0
_SECONDS_TO_END = 1.0
_ROOT = Path(__file__).resolve().parents[1]


class LostReaderError(RuntimeError):
    """A process ended, or was ended, before it answered; says how and when."""


class ReaderStartError(OSError):
    """Processes end before they can be asked anything."""


class ClosedPoolError(RuntimeError):
    """The pool was closed before the task had a result."""


@dataclass(kw_only=True)
class _Task:
    content: Any
    future: "Future[Any]" = field(default_factory=Future)


@dataclass(kw_only=True, eq=False)
class _Worker:
    process: "subprocess.Popen[bytes]"
    connection: Connection
    is_ready: bool = False
    task: _Task | None = None
    started: float = 0.0
    """Clock time at which the task was sent, or the process begun."""


class ReaderPool:
    """Runs `work(task)` for each task on one of several processes.

    Args:
        work: Picklable, importable without the calling program; unpickled once per process.
        num_workers: Processes, >= 1.
        deadline_seconds: A task that takes longer ends its process.
    """

    def __init__(
        self, work: Callable[[Any], Any], *, num_workers: int, deadline_seconds: float
    ) -> None:
        self._work = pickle.dumps(work, protocol=5)
        self._deadline = deadline_seconds
        self._count = num_workers
        self._workers: list[_Worker] = []
        self._tasks: deque[_Task] = deque()
        self._failed_starts = 0
        self._is_closed = False
        self._error: BaseException = ClosedPoolError("the pool was closed")
        self._lock = threading.Lock()
        self._wakeup, self._waker = Pipe(duplex=False)
        self._thread = threading.Thread(target=self._serve, name="data-workers", daemon=True)
        self._thread.start()

    def submit(self, task: Any) -> "Future[Any]":
        """Queue a task.

        Its future gives the result; what `work` raised; or LostReaderError.
        """
        entry = _Task(content=task)
        with self._lock:
            if self._is_closed:
                raise self._error
            self._tasks.append(entry)
            self._waker.send_bytes(b"+")
        return entry.future

    def process_ids(self) -> list[int]:
        """Of the processes that run."""
        return [worker.process.pid for worker in self._workers]

    def close(self) -> None:
        """End the processes, whatever they do; what has no result yet gets none."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            self._waker.send_bytes(b"-")
        self._thread.join()

    def _serve(self) -> None:
        """The thread that owns the processes; they end with it."""
        try:
            error: BaseException = ClosedPoolError("the pool was closed")
            while not self._is_closed:
                while len(self._workers) < self._count and not self._has_given_up():
                    self._workers.append(self._start())
                self._hand_out()
                self._collect()
        except BaseException as raised:
            # Of starting a process, as a rule: memory or process numbers are at an end.
            error = ReaderStartError(f"data processes cannot be started or reached: {raised!r}")
        finally:
            for worker in self._workers:
                self._end(worker)
                if worker.task:
                    worker.task.future.set_exception(error)
            with self._lock:
                self._is_closed, self._error = True, error
                for task in self._tasks:
                    if task.future.set_running_or_notify_cancel():
                        task.future.set_exception(error)
            self._wakeup.close()
            self._waker.close()

    def _has_given_up(self) -> bool:
        if self._failed_starts < _MOST_FAILED_STARTS:
            return False
        while self._tasks:
            self._tasks.popleft().future.set_exception(
                ReaderStartError(
                    f"{_MOST_FAILED_STARTS} data processes in a row ended while they started; "
                    "what they wrote stands above, and data.num_workers=0 decodes without them"
                )
            )
        return True

    def _start(self) -> _Worker:
        ours, theirs = Pipe()
        path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
        process = subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-m", "data_loaders.reader_process", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            # One thread each: the processes are what runs in parallel.
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
        theirs.close()
        worker = _Worker(process=process, connection=ours, started=time.monotonic())
        try:
            ours.send_bytes(self._work)
        except OSError:
            pass  # it ended at once; reading from it will tell
        return worker

    def _hand_out(self) -> None:
        for worker in self._workers:
            if worker.is_ready and worker.task is None and self._tasks:
                task = self._tasks.popleft()
                if not task.future.set_running_or_notify_cancel():
                    continue
                worker.task, worker.started = task, time.monotonic()
                try:
                    worker.connection.send(task.content)
                except OSError:
                    pass  # it died while it was idle; reading from it will tell

    def _collect(self) -> None:
        """Wait for an answer, a death, a deadline or a new task, and settle what has come."""
        ends = [self._end_of(worker) for worker in self._workers]
        timeout = max(0.0, min(ends) - time.monotonic()) if min(ends, default=inf) < inf else None
        by_connection = {worker.connection: worker for worker in self._workers}
        for ready in wait([self._wakeup, *by_connection], timeout):
            if ready is self._wakeup:
                self._wakeup.recv_bytes()
            else:
                self._receive(by_connection[ready])  # type: ignore[index]
        for worker in list(self._workers):
            if time.monotonic() > self._end_of(worker):
                seconds = self._deadline if worker.is_ready else _SECONDS_TO_START
                self._lose(worker, f"did not end within {seconds:g} seconds and was stopped")

    def _end_of(self, worker: _Worker) -> float:
        """Clock time at which it is to be ended."""
        if not worker.is_ready:
            return worker.started + _SECONDS_TO_START
        return worker.started + self._deadline if worker.task else inf

    def _receive(self, worker: _Worker) -> None:
        try:
            # The first message says that it is ready.
            receive = receive_answer if worker.is_ready else Connection.recv
            answer = receive(worker.connection)
        except (EOFError, OSError) as error:
            self._lose(worker, _end_reason(worker.process, error))
            return
        if not worker.is_ready:
            worker.is_ready, self._failed_starts = True, 0
            return
        task, worker.task = worker.task, None
        assert task is not None
        is_result, value = answer
        if is_result:
            task.future.set_result(value)
        else:
            task.future.set_exception(value)

    def _lose(self, worker: _Worker, reason: str) -> None:
        self._workers.remove(worker)
        self._end(worker)
        if not worker.is_ready:
            self._failed_starts += 1
        if worker.task:
            worker.task.future.set_exception(LostReaderError(reason))

    def _end(self, worker: _Worker) -> None:
        worker.process.kill()
        worker.process.wait()
        worker.connection.close()


def _end_reason(process: "subprocess.Popen[bytes]", error: Exception) -> str:
    """Why nothing comes from a process; it may have ended, or the fault may be on our side."""
    try:
        return f"its process ended with {_name_status(process.wait(_SECONDS_TO_END))}"
    except subprocess.TimeoutExpired:
        return f"its process could not be read from ({error!r}) and was stopped"


def _name_status(status: int) -> str:
    return f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
