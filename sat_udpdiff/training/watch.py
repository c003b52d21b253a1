"""What a run notices about itself: losses that jump, ranks that lag, and that it is alive."""

import json
import math
import os
import socket
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Literal

import torch

from data_loaders.atomic_file import write_atomically

HEARTBEAT_FILE = "heartbeat.json"
Status = Literal["training", "finished", "stopped", "failed", "hung"]
"""What became of a run: all steps are done; a signal ended it and it has saved; it ended with an
error, its own or another rank's; no step was done for `run.hang_minutes`."""

_MEMORY = 100
"""Steps after which the weight of a loss in mean and variance has fallen to 1 / e."""
_FEWEST = 50
"""Losses without which none stands out."""
_DEVIATIONS = 6.0
LAG = 1.25
"""Seconds of a rank over the median of the others' that are told."""


class SpikeWatch:
    """Finds losses that stand out from those before them.

    Losses of batches differ by their timesteps, about as a log-normal number does; hence mean and
    variance are those of the logarithm, forgotten exponentially. A spike is 6 deviations above.

    Args:
        state: To go on from, of `state`.
    """

    def __init__(self, state: Sequence[float] = ()) -> None:
        self._count, self._mean, self._variance = state or (0.0, 0.0, 0.0)

    def observe(self, loss: float) -> float | None:
        """How many times the usual loss this one is, where that is a spike; else None.

        Args:
            loss: Of a step, over all ranks; one that is not finite or not above 0 is not counted.
        """
        if not (math.isfinite(loss) and loss > 0):
            return None
        above = math.log(loss) - self._mean
        most = _DEVIATIONS * self._variance**0.5
        is_spike = self._count >= _FEWEST and above > most
        # A spike counts as the largest loss that is none: else one would hide the next.
        self._learn(min(above, most) if is_spike else above)
        return math.exp(above) if is_spike else None

    def _learn(self, above: float) -> None:
        self._count += 1
        share = max(1 / self._count, 1 / _MEMORY)
        self._mean += share * above
        self._variance = (1 - share) * (self._variance + share * above**2)

    def state(self) -> list[float]:
        """For a checkpoint, so that a resumed run finds what an unbroken one does."""
        return [self._count, self._mean, self._variance]


class ForwardClock:
    """Time of this rank's forward passes: before backward, in which ranks wait for each other.

    Args:
        device: Of the network; on a GPU its own events are read, and the host waits for none.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_gpu = device.type == "cuda"
        self._seconds = self._start = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def __enter__(self) -> "ForwardClock":
        if self._is_gpu:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            self._events.append((start, end))
        else:
            self._start = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._is_gpu:
            self._events[-1][1].record()
        else:
            self._seconds += time.perf_counter() - self._start

    def take_seconds(self) -> float:
        """Seconds since the last call; all passes in between have ended on the device."""
        for start, end in self._events:
            self._seconds += start.elapsed_time(end) / 1000
        seconds, self._seconds = self._seconds, 0.0
        self._events.clear()
        return seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class Lag:
    """A rank that keeps the others waiting."""

    rank: int
    ratio: float
    """Its seconds over the median of the others'."""
    seconds: float
    """By which they are more than that median."""


def find_lag(seconds: Sequence[float]) -> Lag | None:
    """The slowest rank; None for one rank alone, and where no time went by.

    Args:
        seconds: By rank, of equal work.
    """
    if len(seconds) < 2:
        return None
    rank = max(range(len(seconds)), key=lambda i: seconds[i])
    others = statistics.median([s for i, s in enumerate(seconds) if i != rank])
    if others <= 0:
        return None
    return Lag(rank=rank, ratio=seconds[rank] / others, seconds=seconds[rank] - others)


class Heartbeat:
    """A small file that says where a run stands, for people and programs that watch it.

    `status` says what became of the run, as far as it can: a process that is killed says nothing,
    and its file goes on to say `training`. Such a run is known by `time`, which a living one
    renews with the first step after `every_seconds`. A start that fails before its first step
    leaves the file as the run before has left it.

    Args:
        folder: Of the run.
        total_steps: Of the whole run.
        every_seconds: Between two beats, at least.
        step: Steps done before this start.
    """

    def __init__(
        self, folder: Path, *, total_steps: int, every_seconds: int, step: int = 0
    ) -> None:
        self._path = folder / HEARTBEAT_FILE
        self._total, self._every = total_steps, every_seconds
        # Of the monotonic clock: the other one may jump.
        self._last, self._step_then = time.monotonic(), -1
        self._step, self._loss, self._seconds = step, math.nan, math.nan
        self._has_ended = False

    def step(self, step: int, *, loss: float) -> None:
        """A step is done; writes where the last beat was long enough ago.

        Args:
            step: Steps done.
            loss: Of the step; nan where there is none.

        Raises:
            OSError: The disk is full or not writable.
        """
        self._step, self._loss = step, loss
        is_first = self._step_then < 0
        passed = time.monotonic() - self._last
        if is_first or passed >= self._every:
            if not is_first and step > self._step_then:
                self._seconds = passed / (step - self._step_then)
            self._last, self._step_then = time.monotonic(), step
            self.write("training")

    def write(self, status: Status) -> None:
        """Write the file, whole; the first word about the end of a run is the last one.

        Raises:
            OSError: The disk is full or not writable.
        """
        if self._has_ended:
            return
        self._has_ended = status != "training"
        now = datetime.now(UTC)
        eta = None
        if status == "training" and math.isfinite(self._seconds):
            left = timedelta(seconds=(self._total - self._step) * self._seconds)
            eta = (now + left).isoformat(timespec="seconds")
        content = {
            "status": status,
            "time": now.isoformat(timespec="seconds"),
            "step": self._step,
            "total_steps": self._total,
            "loss": self._loss if math.isfinite(self._loss) else None,
            "step_seconds": round(self._seconds, 4) if math.isfinite(self._seconds) else None,
            "eta": eta,
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
        write_atomically(self._path, (json.dumps(content, indent=1) + "\n").encode())
