"""Checkpoints and failures: how long a save takes, what failures cost, how often to save."""

from __future__ import annotations

import math
from dataclasses import dataclass

WRITER_RATE = 1.5e9
"""Bytes per second that one rank writes and flushes, whatever the disk could take. Assumed."""
TO_HOST_RATE = 10e9
"""Bytes per second from a GPU to ordinary memory of its host. Assumed: PCIe 4, pages not pinned."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SaveTime:
    """Seconds of a save, all of which training waits for."""

    gathering: float
    """Shards to the ranks that write, and to their host's memory."""
    writing: float

    @property
    def total(self) -> float:
        """From the last step to the next."""
        return self.gathering + self.writing


def save_time(
    *, kinds: int, kind_bytes: float, ranks: int, gather_seconds: float, disk_rate: float
) -> SaveTime:
    """Seconds of a checkpoint as `training/checkpoint.py` writes it.

    All ranks gather one kind of tensor after another, each for another writer; then the writers
    write side by side, and with fewer ranks than kinds there is another round.

    Args:
        kinds: Of tensors: weights, two moments, and the average where there is one.
        kind_bytes: Of each.
        ranks: Of the run.
        gather_seconds: For the collectives of one kind.
        disk_rate: Bytes per second that the disk takes from all of them together.
    """
    gathering = kinds * (gather_seconds + kind_bytes / TO_HOST_RATE)
    writing = 0.0
    for first in range(0, kinds, ranks):
        writers = min(ranks, kinds - first)
        writing += max(kind_bytes / WRITER_RATE, writers * kind_bytes / disk_rate)
    return SaveTime(gathering=gathering, writing=writing)


def best_interval(*, save: float, mtbf: float) -> float:
    """Seconds of training between two saves that lose the least time in all.

    The first-order answer is sqrt(2 save mtbf) (Young, CACM 17, 1974); this is the higher-order one
    of Daly, Future Generation Computer Systems 22, 2006, equation 37.

    Args:
        save: Seconds that a save takes.
        mtbf: Mean seconds between two failures of the job.
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
    """Work that is done again, half an interval per failure in the mean, and restarts."""

    @property
    def total(self) -> float:
        """Both."""
        return self.saving + self.failures


def expected_loss(*, interval: float, save: float, restart: float, mtbf: float) -> Loss:
    """What saves and failures cost, failures coming at random at a constant rate.

    Daly 2006, equation 20. Where failures are rare it is save / interval for the saves, and
    (interval / 2 + restart) / mtbf for the failures.

    Args:
        interval: Seconds of training between two saves.
        save: Seconds that a save takes.
        restart: Seconds from a failure to the first step after it.
        mtbf: Mean seconds between two failures of the job.
    """
    saving = save / interval
    exponent = (interval + save) / mtbf
    # Beyond this nothing is ever finished, and exp() would overflow.
    if exponent + restart / mtbf > 500:
        return Loss(saving=saving, failures=math.inf)
    whole = mtbf / interval * math.exp(restart / mtbf) * math.expm1(exponent) - 1
    return Loss(saving=saving, failures=max(0.0, whole - saving))
