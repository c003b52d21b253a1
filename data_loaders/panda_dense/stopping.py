"""Ctrl-C and SIGTERM: end now, and let nothing that was cut short count.

The exception of a signal may be raised within a callback of a library, which prints it and goes on
as if a file were damaged. So it is remembered, too, and asked for before a clip's outcome counts.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_asked: list[int] = []


@contextmanager
def heeding_signals() -> Iterator[None]:
    """Within the block both signals end the program, with their status, through its `finally`s."""
    _asked.clear()
    try:
        before = {number: signal.signal(number, _ask) for number in _SIGNALS}
    except ValueError:  # not the main thread, to which signals go
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _asked.clear()


def check_signals() -> None:
    """Raise what a signal raised, if one came.

    Raises:
        KeyboardInterrupt: SIGINT came.
        SystemExit: SIGTERM came; with the status 143.
    """
    if _asked:
        _raise(_asked[0])


def _ask(number: int, _: object) -> None:
    _asked.append(number)
    _raise(number)


def _raise(number: int) -> None:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)
