"""Numbers of a run: sums of losses and gradient norms on the device, and times.

`Meter` sums on the device, so that steps in between do not wait for it; `run_log.py` writes.
"""

import math
import time
from collections.abc import Sequence

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from sat_udpdiff.config import TASKS
from sat_udpdiff.diffusion.loss import LossTerms
from sat_udpdiff.distributed import Place
from sat_udpdiff.training.ranks import sum_over_ranks

QUARTILES = 4
"""Parts of the timesteps by which losses are told."""
_NAMES = (
    "loss",
    "loss_video",
    "loss_dense",
    *(f"loss_{task}" for task in TASKS),
    *(f"loss_t_quartile_{q + 1}" for q in range(QUARTILES)),
)


def measure(
    terms: LossTerms,
    *,
    t: Int64[Tensor, "b"],
    task: Int64[Tensor, "b"] | None,
    num_timesteps: int,
) -> Float64[Tensor, "two k"]:
    """Sum over samples (row 0) and number of samples (row 1) of every mean that is logged.

    By task and by quartile of the timestep it is the total loss. Stays on the device. Without a
    dense map `task` is None, and nothing is counted for it.
    """
    total, video, dense = (x.detach().double() for x in (terms.total, terms.video, terms.dense))
    quartile = t * QUARTILES // num_timesteps
    ones = torch.ones_like(total)
    if task is None:
        masks = [ones, ones, *[torch.zeros_like(total)] * (1 + len(TASKS))]
    else:
        of_task = [(task.to(total.device) == i).double() for i in range(len(TASKS))]
        masks = [ones, ones, ones, *of_task]
    masks += [(quartile == q).double() for q in range(QUARTILES)]
    values = torch.stack([total, video, dense] + [total] * (len(_NAMES) - 3))
    counts = torch.stack(masks)
    return torch.stack([(values * counts).sum(1), counts.sum(1)])


class Meter:
    """Sums of losses and gradient norms since the last logged step, on this rank.

    Args:
        device: Of the losses.
        row: Sums to go on from, of `row()`.
    """

    def __init__(self, device: torch.device, *, row: Sequence[float] = ()) -> None:
        self._sums = torch.zeros(2, len(_NAMES) + 1, dtype=torch.float64, device=device)
        if row:
            self._sums.copy_(torch.tensor(row, dtype=torch.float64).view_as(self._sums))

    def add(self, measured: Float64[Tensor, "two k"], *, grad_norm: Tensor) -> None:
        """Add one step. `grad_norm` is global, and so counts the same on every rank."""
        norm = torch.stack([grad_norm.double(), torch.ones_like(grad_norm, dtype=torch.float64)])
        self._sums += torch.cat([measured, norm.to(measured.device)[:, None]], dim=1)

    def row(self) -> list[float]:
        """This rank's sums, for a checkpoint."""
        return self._sums.flatten().tolist()

    def means(self) -> dict[str, float | None]:
        """Means over all ranks since the last call, None where there was no sample; resets.

        The one point at which the host waits for the device, so for logged steps only.
        """
        sums, counts = sum_over_ranks(self._sums).tolist()
        self._sums.zero_()
        names = (*_NAMES, "grad_norm")
        pairs = zip(names, sums, counts, strict=True)
        return {name: value / count if count else None for name, value, count in pairs}


def split_meters(rows: Sequence[Sequence[float]], *, place: Place) -> Sequence[float]:
    """This rank's row of a checkpoint's meters; on another number of ranks rank 0 takes all."""
    if len(rows) == place.world_size:
        return rows[place.rank]
    if not rows or not place.is_main:
        return ()
    return [math.fsum(column) for column in zip(*rows, strict=True)]


class Stopwatch:
    """Seconds and steps since the last logged step, and the share spent waiting for data."""

    def __init__(self) -> None:
        self._start, self._steps, self._wait = time.perf_counter(), 0, 0.0

    @property
    def steps(self) -> int:
        """Since the last logged one."""
        return self._steps

    def add(self, *, data_wait_seconds: float) -> None:
        """Count one step."""
        self._steps += 1
        self._wait += data_wait_seconds

    def read(
        self, *, global_batch: int, flops_per_sample: float, peak_flops: float | None
    ) -> dict[str, float | None]:
        """Means per step since the last call; resets.

        Args:
            global_batch: Samples per step.
            flops_per_sample: Of forward and backward.
            peak_flops: Of all devices together; None gives no MFU.
        """
        now, steps = time.perf_counter(), max(1, self._steps)
        seconds = (now - self._start) / steps
        rate = global_batch / seconds
        result: dict[str, float | None] = {
            "step_seconds": round(seconds, 4),
            "data_wait_seconds": round(self._wait / steps, 4),
            "samples_per_second": round(rate, 4),
            "mfu": round(rate * flops_per_sample / peak_flops, 4) if peak_flops else None,
        }
        self._start, self._steps, self._wait = now, 0, 0.0
        return result

    def leave_out(self, seconds: float) -> None:
        """Time that just went by for something else than training."""
        self._start += seconds
