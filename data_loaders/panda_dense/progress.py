"""How far a process is with a stage: a line now and then, in a log as on a terminal."""

import logging
import time

_log = logging.getLogger(__name__)

_FIRST_SECONDS, _MOST_SECONDS = 5.0, 60.0
"""Between two lines: soon at first, then twice as long each time."""


class Progress:
    """Lines with clips per second and the time that is left, for this process alone.

    Args:
        stage: Its name.
        parts_left: Parts that are to be done, by this process or others.
    """

    def __init__(self, stage: str, *, parts_left: int) -> None:
        self._stage, self._parts_left = stage, parts_left
        self._parts = self._clips = 0
        self._started: float | None = None
        self._said, self._every = time.monotonic(), _FIRST_SECONDS

    def clips_done(self, count: int, *, of: int) -> None:
        """Some clips more are done.

        Args:
            count: How many.
            of: Clips that were left of the part.
        """
        now = time.monotonic()
        # From the first clips on: what the model took to load is no measure of the rest.
        if self._started is None:
            self._started = now
            return
        self._clips += count
        if now - self._said >= self._every:
            self._say(now, clips_per_part=of)

    def part_done(self) -> None:
        """A part is done, here or by another process."""
        self._parts += 1

    def close(self) -> None:
        """The last line."""
        if self._started is not None and self._clips:
            rate = self._clips / max(time.monotonic() - self._started, 1e-9)
            _log.info("%s: %.2f clips/s", self._stage, rate)

    def _say(self, now: float, *, clips_per_part: int) -> None:
        assert self._started is not None
        rate = self._clips / max(now - self._started, 1e-9)
        parts = self._parts_left - self._parts
        left = parts * clips_per_part / rate if rate else float("inf")
        _log.info(
            "%s: %d clips, %.2f clips/s, %d of %d parts to go, %s left if no other process helps",
            self._stage, self._clips, rate, parts, self._parts_left, duration(left),
        )  # fmt: skip
        self._said, self._every = now, min(2 * self._every, _MOST_SECONDS)


def duration(seconds: float) -> str:
    """'40 s', '12 min', '3.4 h', '5.1 days'."""
    for limit, unit, name in ((90, 1, "s"), (5400, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            digits = 1 if name == "h" else 0
            return f"{seconds / unit:.{digits}f} {name}"
    return "unknown time" if seconds == float("inf") else f"{seconds / 86400:.1f} days"
