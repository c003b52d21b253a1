"""The few words that ranks exchange outside of deepspeed; all are no-ops for one rank."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from sat_udpdiff.distributed import Place


def sums(values: Sequence[float], *, place: Place) -> list[float]:
    """Each number, summed over all ranks; one small all-reduce, and the host waits for it."""
    if place.world_size == 1:
        return list(values)
    words = torch.tensor(values, dtype=torch.float64, device=place.device)
    dist.all_reduce(words)
    return words.tolist()


def any_rank(flags: Sequence[bool], *, place: Place) -> list[bool]:
    """Each flag, or-ed over all ranks, as `sums`."""
    return [total > 0 for total in sums([float(flag) for flag in flags], place=place)]


def gather(value: Any, *, place: Place) -> list[Any]:
    """`value` of every rank, in order of rank, on every rank; for rare and small things."""
    if place.world_size == 1:
        return [value]
    values = [None] * place.world_size
    dist.all_gather_object(values, value)
    return values


def send_from_first(values: Tensor, *, place: Place) -> None:
    """Overwrite `values` on every rank with those of rank 0."""
    if place.world_size > 1:
        dist.broadcast(values, src=0)


def wait_for_all(*, place: Place) -> None:
    """Go on when every rank has come here."""
    if place.world_size > 1:
        dist.barrier()


def sum_over_ranks(values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The sum over all ranks, the same on each; `values` itself is not changed."""
    total = values.clone()
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(total)
    return total
