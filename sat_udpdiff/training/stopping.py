"""How a run is asked to stop, and how its program says that there is more to do.

Slurm sends SIGUSR1 before a time limit where a job asks for it, SIGTERM where it takes a job's
machines away; a user presses Ctrl-C. The handler does nothing but note it: saving from within a
handler would meet a step half done. Nobody answers while Python still imports: SIGUSR1 ends the
process by its default then (status 138 in a shell).
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPED = 75
"""Exit status of a run that a signal ended before `train.steps`: it has saved, unless no step was
done, and the same command goes on. EX_TEMPFAIL of sysexits.h: a failure that another try may cure.
"""

_NUMBERS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopRequest:
    """Whether a signal has asked to stop.

    As a context manager it answers SIGUSR1 from its entry on: before the first step
    there is nothing to save, and the program ends at once with `STOPPED`; after the last step there
    is nothing to stop. SIGTERM and Ctrl-C end the program as any other then.
    """

    def __init__(self) -> None:
        self.name = ""
        """Of the signal; empty as long as none came."""
        self._has_begun = False
        self._before = signal.SIG_DFL

    def __enter__(self) -> "StopRequest":
        self._before = signal.signal(signal.SIGUSR1, self._outside_of_training)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGUSR1, self._before)

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Let signals set `name` and not end the process, as a second Ctrl-C does."""
        before = {number: signal.signal(number, self._note) for number in _NUMBERS}
        self._has_begun = True
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)
        self.name = signal.Signals(number).name

    def _outside_of_training(self, _: int, __: FrameType | None) -> None:
        if not self._has_begun:
            raise SystemExit(STOPPED)
