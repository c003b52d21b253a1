"""A process that does one kind of work for another one: the far end of `reader_pool`.

    python -m data_loaders.reader_process FILE_DESCRIPTOR

A program of its own rather than a fork or a spawn of multiprocessing: those would copy the locks of
training's threads, or import the training program with all that it needs.
"""

import ctypes
import pickle
import signal
import sys
from multiprocessing.connection import Connection

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


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
            connection.send_bytes(_answer(work, connection.recv()))
    except (EOFError, ConnectionError):
        return 0


def _answer(work: object, task: object) -> bytes:
    try:
        answer = (True, work(task))  # type: ignore[operator]
    except Exception as error:  # the other end decides what it means
        answer = (False, error)
    try:
        return pickle.dumps(answer, protocol=5)
    except Exception as error:  # an exception with parts that do not travel
        return pickle.dumps((False, RuntimeError(f"{answer[1]!r} ({error})")), protocol=5)


if __name__ == "__main__":
    sys.exit(main())
