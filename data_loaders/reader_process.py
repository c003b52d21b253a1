"""A process that does one kind of work for another one: the far end of `reader_pool`.

    python -m data_loaders.reader_process FILE_DESCRIPTOR

A program of its own rather than a fork or a spawn of multiprocessing: those would copy the locks of
training's threads, or import the training program with all that it needs.
"""

import ctypes
import os
import pickle
import signal
import sys
from mmap import mmap
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_ALIGNMENT = 64


def main() -> int:
    """Answer tasks until the other end is closed; returns the exit status."""
    # The one that started us decides when we end: a signal to the whole group (Ctrl-C, a time
    # limit) is its to handle, and it closes the connection when it is done.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    # Ends a decoder that hangs when the other end was killed and can no longer do it.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    connection = Connection(int(sys.argv[1]))
    try:
        work = connection.recv()
        connection.send("ready")
        while True:
            send_answer(connection, *_answer(work, connection.recv()))
    except (EOFError, ConnectionError):
        return 0


def send_answer(connection: Connection, head: bytes, arrays: list[pickle.PickleBuffer]) -> None:
    """Send a pickle and the memory of its arrays, which goes into a file that has no name.

    Through the connection 49 frames of 480x720 would be copied five times, in pieces.
    """
    views = [array.raw() for array in arrays]
    places: list[tuple[int, int]] = []
    end = 0
    for view in views:
        places.append((end, len(view)))
        end += -(-len(view) // _ALIGNMENT) * _ALIGNMENT
    if not end:
        connection.send((head, places))
        return
    file = os.memfd_create("arrays")
    try:
        # Not by a mapping: its pages would fault one by one.
        for view, (start, _) in zip(views, places, strict=True):
            written = 0
            while written < len(view):
                written += os.pwrite(file, view[written:], start + written)
        os.ftruncate(file, end)
        # Last, and one right after the other: the reader does nothing else between the two.
        connection.send((head, places))
        send_handle(connection, file, 0)  # the process id matters on Windows alone
    finally:
        os.close(file)


def receive_answer(connection: Connection) -> Any:
    """What `send_answer` sent; arrays keep its memory, which is freed with the last of them.

    Raises:
        EOFError: The other end has closed the connection; or OSError.
    """
    head, places = connection.recv()
    if not any(length for _, length in places):
        return pickle.loads(head, buffers=[bytearray() for _ in places])  # noqa: S301 - our own
    try:
        file = recv_handle(connection)
    except RuntimeError as error:  # "received 0 items of ancdata"
        raise EOFError(str(error)) from None
    try:
        memory = memoryview(mmap(file, 0))
    finally:
        os.close(file)
    buffers = [memory[start : start + length] for start, length in places]
    return pickle.loads(head, buffers=buffers)  # noqa: S301 - our own process sent it


def _answer(work: object, task: object) -> tuple[bytes, list[pickle.PickleBuffer]]:
    """A pickle of (whether it is a result, result or error), and the memory of its arrays."""
    try:
        answer = (True, work(task))  # type: ignore[operator]
    except Exception as error:  # the other end decides what it means
        answer = (False, _portable(error))
    arrays: list[pickle.PickleBuffer] = []
    try:
        return pickle.dumps(answer, protocol=5, buffer_callback=arrays.append), arrays
    except Exception as error:  # a result with parts that do not travel
        return pickle.dumps((False, RuntimeError(f"{answer[1]!r} ({error})")), protocol=5), []


def _portable(error: Exception) -> Exception:
    """The error, or one of its text where it does not come out of a pickle as it went in."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - bytes of this very line
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


if __name__ == "__main__":
    sys.exit(main())
