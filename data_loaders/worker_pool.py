"""Work on several processes: results in order, few in flight, errors and log lines carried over.

Each worker has a pipe of its own. That is why this is no `concurrent.futures` pool: there all
workers share one pipe for results, and when one is killed in the middle of a large result, as by
the kernel when memory is short, the reader waits for its rest for ever.
"""

import ctypes
import logging
import multiprocessing
import pickle
import signal
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from logging.handlers import QueueHandler
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from queue import SimpleQueue
from typing import Any, TypeVar, cast

from data_loaders.schema import DataError

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_IN_FLIGHT_PER_WORKER = 2
"""Items begun and not yet yielded: a slow one holds up the others only after that many."""
_SECONDS_TO_END = 5.0
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True, kw_only=True)
class _Reply:
    result: Any
    error: Exception | None
    log_lines: list[logging.LogRecord]


@dataclass(frozen=True, kw_only=True)
class _Worker:
    process: SpawnProcess
    pipe: Connection

    @classmethod
    def start(cls, work: Callable[[Any], Any]) -> "_Worker":
        # spawn: a fork would copy the locks of cv2's and torch's threads in whatever state they
        # are, and the ends of the other workers' pipes.
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        level = logging.getLogger().getEffectiveLevel()
        process = context.Process(target=_serve, args=(theirs, work, level), daemon=True)
        # The first start would do it, and unblock what is blocked below.
        resource_tracker.ensure_running()
        # Ctrl-C goes to every process of the terminal. Workers inherit that it is blocked: the
        # main process ends them.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        # Only the worker holds its end now, so that its death is the end of the file.
        theirs.close()
        return cls(process=process, pipe=cast(Connection, ours))

    def send(self, item: Any, *, name: str) -> None:
        try:
            self.pipe.send(item)
        except OSError as error:
            raise self._death(name) from error

    def receive(self, *, name: str) -> _Reply:
        try:
            return self.pipe.recv()
        except (EOFError, OSError) as error:
            raise self._death(name) from error

    def _death(self, name: str) -> DataError:
        self.process.join(_SECONDS_TO_END)
        code = self.process.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
        return DataError(
            f"worker process {self.process.pid} {how} while it worked on {name} (out of memory? "
            "fewer workers take less)"
        )

    def end(self) -> None:
        self.process.terminate()
        self.process.join(_SECONDS_TO_END)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.pipe.close()


def ordered_map(
    work: Callable[[_Item], _Result],
    items: Iterable[_Item],
    *,
    workers: int,
    describe: Callable[[_Item], str] = str,
) -> Generator[_Result, None, None]:
    """`map` on several processes.

    Close the iterator (`contextlib.closing`) where it may not be read to its end: that ends the
    workers.

    Args:
        work: What to do with an item; picklable where there are workers.
        items: Consumed as workers become free, at most 2 per worker ahead of the results.
        workers: Processes; 0 = this one.
        describe: Name of an item, for the error when a worker is killed.

    Yields:
        Results, in the order of the items.

    Raises:
        DataError: `workers` < 0, or a worker was killed.
        Exception: What `work` raised, for the first item of the order that failed.
    """
    if workers < 0:
        raise DataError(f"workers: expected an integer >= 0, got {workers}")
    if workers == 0:
        yield from map(work, items)
        return
    team: list[_Worker] = []
    try:
        team.extend(_Worker.start(work) for _ in range(workers))
        yield from _deal_out(items, team=team, describe=describe)
    finally:
        for worker in team:
            worker.end()


def _deal_out(
    items: Iterable[Any], *, team: list[_Worker], describe: Callable[[Any], str]
) -> Iterator[Any]:
    waiting = enumerate(items)
    idle = list(team)
    busy: dict[Connection, tuple[_Worker, int, str]] = {}
    replies: dict[int, _Reply] = {}
    taken = 0
    while True:
        # One at a time each: a second item could block on a worker that blocks on its result.
        while idle and len(busy) + len(replies) < _IN_FLIGHT_PER_WORKER * len(team):
            number, item = next(waiting, (None, None))
            if number is None:
                break
            worker, name = idle.pop(), describe(item)
            worker.send(item, name=name)
            busy[worker.pipe] = (worker, number, name)
        if taken in replies:
            yield _open_reply(replies.pop(taken))
            taken += 1
        elif busy:
            for pipe in wait(list(busy)):
                worker, number, name = busy.pop(cast(Connection, pipe))
                replies[number] = worker.receive(name=name)
                idle.append(worker)
        else:
            return


def _open_reply(reply: _Reply) -> Any:
    for record in reply.log_lines:
        logger = logging.getLogger(record.name)
        if logger.isEnabledFor(record.levelno):
            logger.handle(record)
    if reply.error is not None:
        raise reply.error
    return reply.result


def _serve(pipe: Connection, work: Callable[[Any], Any], log_level: int) -> None:
    """Main loop of a worker; ends with the other end of the pipe, however the main process does."""
    # Ends work that hangs when the main process was killed and can no longer do it.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # Here, so that this module can be read without it: a worker is one thread of many.
    import cv2

    cv2.setNumThreads(1)
    lines: SimpleQueue[logging.LogRecord] = SimpleQueue()
    root = logging.getLogger()
    root.handlers[:] = [QueueHandler(lines)]
    root.setLevel(log_level)
    while True:
        try:
            item = pipe.recv()
        except EOFError:
            return
        result, error = None, None
        try:
            result = work(item)
        except Exception as raised:
            error = _portable(raised)
        log_lines = [lines.get() for _ in range(lines.qsize())]
        try:
            pipe.send(_Reply(result=result, error=error, log_lines=log_lines))
        except BrokenPipeError:
            return


def _portable(error: Exception) -> Exception:
    """The error, or one of its text where pickle cannot carry it back."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - bytes of this very line
    except Exception:
        return DataError(f"{type(error).__name__}: {error}")
    return error
