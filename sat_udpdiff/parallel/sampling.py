"""One sample on several processes: branches of guidance, and latents to be decoded.

Tokens and weights are shared as in training (`network.py`). Every process has the same noise, for
it is drawn on the CPU from the sample's seed, and so the same latents after every step.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sat_udpdiff.distributed import close_distributed
from sat_udpdiff.parallel.layout import Layout

_LONGEST_WAIT = timedelta(days=30)


class GuidanceParallel:
    """A network whose batch holds two branches, of which this process computes one.

    Args:
        network: What computes a branch.
        group: Of two processes that are given the same batches.
    """

    def __init__(self, network: Callable[..., Tensor], *, group: dist.ProcessGroup) -> None:
        self._network, self._group = network, group
        self._rank = dist.get_rank(group)

    def __call__(
        self, latents: Tensor, *, timesteps: Tensor, text: Tensor, task: Tensor | None
    ) -> Tensor:
        """Both branches, as of the network itself; arguments likewise."""
        own = [
            None if values is None else values.chunk(2)[self._rank]
            for values in (latents, timesteps, text, task)
        ]
        branch = self._network(own[0], timesteps=own[1], text=own[2], task=own[3]).contiguous()
        branches = [torch.empty_like(branch) for _ in range(2)]
        dist.all_gather(branches, branch, group=self._group)
        return torch.cat(branches)


class Helpers:
    """Processes that share pieces of work, each of which it takes one to make; the first gets all.

    Args:
        group: Of these processes; None = this one is alone.
        device: Where tensors may be sent from.
    """

    def __init__(
        self, group: dist.ProcessGroup | None = None, *, device: torch.device | str = "cpu"
    ) -> None:
        self._group, self._device = group, device
        self._size = 1 if group is None else dist.get_world_size(group)
        self._rank = 0 if group is None else dist.get_rank(group)

    @property
    def is_first(self) -> bool:
        """Whether this process gets what all have made."""
        return self._rank == 0

    def make(
        self, piece: Callable[[int], Tensor], *, shapes: Sequence[Sequence[int]], dtype: torch.dtype
    ) -> list[Tensor]:
        """All pieces on the CPU, in order; none but on the first process.

        Args:
            piece: Makes the one of a number.
            shapes: Of the pieces of all processes together, which call this alike.
            dtype: Of all pieces.
        """
        makers = deal([prod(shape) for shape in shapes], parts=self._size)
        # All of its own before the first is sent: nobody waits for one that works.
        own = {i: piece(i).cpu() for i, rank in enumerate(makers) if rank == self._rank}
        if self._group is None:
            return list(own.values())
        made = []
        ranks = dist.get_process_group_ranks(self._group)
        for i, (shape, rank) in enumerate(zip(shapes, makers, strict=True)):
            sent = own.pop(i) if rank == self._rank else torch.empty(*shape, dtype=dtype)
            sent = sent.to(self._device).contiguous()
            # To all: not every backend sends from one to one other.
            dist.broadcast(sent, src=ranks[rank], group=self._group)
            if self.is_first:
                made.append(sent.cpu())
        return made


def deal(costs: Sequence[int], *, parts: int) -> list[int]:
    """To which part each of the costs goes: the highest first, each to the part with least so far.

    No part gets more than 4/3 of what the best deal has (Graham 1969, "Bounds on multiprocessing
    timing anomalies"); equal costs go round.
    """
    loads, dealt = [0] * parts, [0] * len(costs)
    for i in sorted(range(len(costs)), key=lambda i: -costs[i]):
        dealt[i] = loads.index(min(loads))
        loads[dealt[i]] += costs[i]
    return dealt


def ask_all(value: Any) -> list[Any]:
    """`value` of every process of the program, in order of rank; they ask together."""
    values = [value] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


@contextmanager
def until_all_are_done() -> Iterator[None]:
    """The program's process group ends here, when every process has come so far.

    However long that takes: some launchers end the others when one has ended, and those that are
    left may need what the first holds, the addresses of all.
    """
    everyone = dist.new_group(backend="gloo", timeout=_LONGEST_WAIT)
    yield
    dist.barrier(group=everyone)
    close_distributed()


def helpers_of(layout: Layout, *, device: torch.device) -> Helpers:
    """All processes that work on the samples of this one."""
    if layout.sizes[1:] == (1, 1, 1):
        return Helpers()
    return Helpers(layout.make_group("guidance", "sequence", "tensor"), device=device)
