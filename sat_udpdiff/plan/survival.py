"""Checkpoints and failures: how long a save takes, what failures cost, how often to save."""

from __future__ import annotations

import math
from dataclasses import dataclass

WRITER_RATE = 0.75e9
"""Bytes per second that one rank writes, whatever the disk could take. Assumed: 1.5e9 for the sum
(SHA-256, which new processors have instructions for), and after it as much for the file."""
TO_HOST_RATE = 10e9
"""Bytes per second from a GPU to ordinary memory of its host. Assumed: PCIe 4, pages not pinned."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SaveTime:
    """Seconds of a save."""

    gathering: float
    """Shards to the ranks that write, and to their host's memory."""
    writing: float
    asynchronous: bool
    """Whether training goes on while files are written, as `checkpoint.asynchronous` has it."""

    @property
    def total(self) -> float:
        """From the last step to a checkpoint that counts."""
        return self.gathering + self.writing

    def held(self, interval: float) -> float:
        """Seconds that training waits for each save.

        Args:
            interval: Seconds of training between two. A save waits until the one before is written.
        """
        if not self.asynchronous:
            return self.total
        return self.gathering + max(0.0, self.writing - interval)

    @property
    def late(self) -> float:
        """Seconds of training that pass before a save counts; a failure in between loses it."""
        return self.writing if self.asynchronous else 0.0


def writing_seconds(*, kinds: int, kind_bytes: float, ranks: int, disk_rate: float) -> float:
    """Seconds for which files of a checkpoint are written, as `training/checkpoint.py` does it.

    Each kind of tensor is a file with a rank of its own to write it, all side by side; with fewer
    ranks than kinds there is another round.

    Args:
        kinds: Of tensors: weights, two moments, and the average where there is one.
        kind_bytes: Of each.
        ranks: Of the run.
        disk_rate: Bytes per second that the disk takes from all of them together.
    """
    seconds = 0.0
    for first in range(0, kinds, ranks):
        writers = min(ranks, kinds - first)
        seconds += max(kind_bytes / WRITER_RATE, writers * kind_bytes / disk_rate)
    return seconds


def files_on_a_node(*, kinds: int, ranks: int, gpus: int, asynchronous: bool) -> int:
    """Files that the first node, which has most of them, holds in its memory during a save.

    Args:
        kinds: Of tensors, one file each; they are dealt out to the ranks in turn.
        ranks: Of the run.
        gpus: Ranks of a node.
        asynchronous: All files at once; else a rank holds one at a time.
    """
    of_node = sum(kind % ranks < gpus for kind in range(kinds))
    return of_node if asynchronous else min(of_node, gpus)


def best_interval(save: SaveTime, *, mtbf: float) -> float:
    """Seconds of training between two saves that lose the least time in all.

    What counts is how long training waits for a save; that asynchronous ones count later adds the
    same loss to each failure, whatever the interval. Below the time of writing, saves would wait
    for each other and hold training up as synchronous ones do.
    """
    best = daly_interval(save.held(math.inf), mtbf=mtbf)
    return max(best, save.writing) if save.asynchronous else best


def daly_interval(save: float, *, mtbf: float) -> float:
    """Seconds of work between two saves for which the work stands still.

    The first-order answer is sqrt(2 save mtbf) (Young, CACM 17, 1974); this is the higher-order one
    of Daly, Future Generation Computer Systems 22, 2006, equation 37.

    Args:
        save: Seconds that a save takes.
        mtbf: Mean seconds between two failures of what works.
    """
    if save >= 2 * mtbf:
        return mtbf
    part = save / (2 * mtbf)
    return math.sqrt(2 * save * mtbf) * (1 + math.sqrt(part) / 3 + part / 9) - save


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    """Time that a run takes on top of its training, as shares of the training."""

    saving: float
    failures: float
    """Work that is done again, half an interval per failure in the mean and what was not saved yet,
    and restarts."""

    @property
    def total(self) -> float:
        """Both."""
        return self.saving + self.failures


def expected_loss(save: SaveTime, *, interval: float, restart: float, mtbf: float) -> Loss:
    """What saves and failures cost, failures coming at random at a constant rate.

    Daly 2006, equation 20, with the time that training waits for a save. After a failure the run
    goes on from the newest save that counts; where saves count some seconds after training has gone
    on, these are done again as well, and enter the equation as a longer restart does: exactly so
    while each save counts before the next begins. Where failures are rare it is held / interval for
    the saves, and (interval / 2 + late + restart) / mtbf for the failures.

    Args:
        save: What it takes.
        interval: Seconds of training between two saves.
        restart: Seconds from a failure to the first step after it.
        mtbf: Mean seconds between two failures of the job.
    """
    held = save.held(interval)
    saving, lost = held / interval, restart + save.late
    exponent = (interval + held) / mtbf
    # Beyond this nothing is ever finished, and exp() would overflow.
    if exponent + lost / mtbf > 500:
        return Loss(saving=saving, failures=math.inf)
    whole = mtbf / interval * math.exp(lost / mtbf) * math.expm1(exponent) - 1
    return Loss(saving=saving, failures=max(0.0, whole - saving))
