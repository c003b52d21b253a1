"""A run that stands still ends with a reason: the stack of every thread on every rank.

A rank that hangs leaves the others in a collective, in silence, until the process group gives up;
by then they die one by one, and where the first of them hung is not known. Every rank watches its
own steps. Ranks keep step with each other, so all of them notice at about the same time, and each
tells where it stands before any of them ends the job.
"""

import faulthandler
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sat_udpdiff.distributed import Place, node_name

_STDERR = 2
"""The descriptor, which is there whatever became of Python's objects."""
HUNG = 70
"""Exit status of a rank that ended itself: EX_SOFTWARE of sysexits.h."""
_LATER_SECONDS = 10.0
"""Between the stacks and the end, so that the first rank to end does not cost the others theirs."""
_WITHOUT_US_SECONDS = 60.0
"""After which the stacks are printed by faulthandler's own thread, which needs no interpreter."""


class HangWatch:
    """Ends the process when nothing is finished for too long; a context manager.

    Args:
        minutes: Without `beat` or `renew`; 0 = never.
        place: Of this rank, for the message.
    """

    last_words: Callable[[], None]
    """Called when the stacks are out. It has ten seconds, in a thread of its own: a disk may be
    what hangs."""

    def __init__(self, *, minutes: float, place: Place) -> None:
        self._seconds, self._place = 60 * minutes, place
        self.last_words = lambda: None
        self._thread = threading.Thread(target=self._watch, name="hang watch", daemon=True)
        self._is_over = threading.Event()
        self._is_paused = self._has_told = False
        self._since, self._steps = time.monotonic(), 0

    def __enter__(self) -> "HangWatch":
        self.renew()
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # An error after the stacks are out is that of a rank which has ended itself before us.
        if not (self._has_told and kind):
            self._is_over.set()
        if self._seconds:
            faulthandler.cancel_dump_traceback_later()
            self._thread.join()

    def beat(self) -> None:
        """A step is done."""
        self._steps += 1
        self.renew()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """For work whose length nobody knows; the process group's own timeout goes on."""
        self._is_paused = True
        faulthandler.cancel_dump_traceback_later()
        try:
            yield
        finally:
            self.renew()
            self._is_paused = False

    def renew(self) -> None:
        """A part of the start is done: what comes next has all the time again."""
        self._since = time.monotonic()
        if self._seconds:
            # Code that hangs without giving up the interpreter stops our thread as well.
            late = self._seconds + _WITHOUT_US_SECONDS
            faulthandler.dump_traceback_later(late, exit=True, file=_STDERR)

    def _watch(self) -> None:
        while not self._is_over.wait(min(1.0, self._seconds / 10)):
            waited = time.monotonic() - self._since
            if not self._is_paused and waited > self._seconds:
                self._end(waited)

    def _end(self, waited: float) -> None:
        """Tell where all threads are, and leave without any of them."""
        self._has_told = True
        rank = f"rank {self._place.rank} of {self._place.world_size} on {node_name()}"
        setting = f"run.hang_minutes={self._seconds / 60:g}"
        message = (
            f"\ntrain.py: {rank}: no step was done for {waited / 60:.1f} minutes ({setting}), "
            f"{self._steps} were before; all threads:\n"
        )
        # In one piece, and each line with its rank: all ranks write to one log at the same time.
        lines = [f"[rank {self._place.rank}] {line}\n" for line in _stacks().splitlines()]
        os.write(_STDERR, "".join([message, *lines]).encode())
        threading.Thread(target=self.last_words, name="last words", daemon=True).start()
        if not self._is_over.wait(_LATER_SECONDS):
            os._exit(HUNG)


def _stacks() -> str:
    """Where all threads of this process stand."""
    # Into memory: a disk may be what hangs.
    with os.fdopen(os.memfd_create("stacks"), "w+b") as file:
        faulthandler.dump_traceback(file=file, all_threads=True)
        file.seek(0)
        return file.read().decode(errors="replace")
