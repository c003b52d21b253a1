"""One sample on several processes: branches of guidance, and latents to be decoded.

Tokens and weights are shared as in training (`network.py`). Every process has the same noise, for
it is drawn on the CPU from the sample's seed, and so the same latents after every step.
"""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from jaxtyping import UInt8
from torch import Tensor

from sat_udpdiff.parallel.layout import Layout


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
    """Processes that make equal pieces of work in turn; the first of them gets all.

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
        self, piece: Callable[[int], UInt8[Tensor, "..."]], *, count: int, shape: Sequence[int]
    ) -> list[UInt8[Tensor, "..."]]:
        """Pieces 0 .. count - 1 on the CPU; none but on the first process.

        Args:
            piece: Makes one of them.
            count: Of all processes together, which call this alike.
            shape: Of every piece.
        """
        own = {i: piece(i) for i in range(self._rank, count, self._size)}
        if self._group is None:
            return list(own.values())
        made = []
        ranks = dist.get_process_group_ranks(self._group)
        for i in range(count):
            sent = own[i] if i in own else torch.empty(*shape, dtype=torch.uint8)
            sent = sent.to(self._device).contiguous()
            # To all: not every backend sends from one to one other.
            dist.broadcast(sent, src=ranks[i % self._size], group=self._group)
            made.append(sent.cpu())
        return made if self.is_first else []


def is_same_everywhere(value: str) -> bool:
    """Whether all processes of the program have the same `value`; they ask together."""
    values = [""] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return len(set(values)) == 1


def helpers_of(layout: Layout, *, device: torch.device) -> Helpers:
    """All processes that work on the samples of this one."""
    if layout.sizes[1:] == (1, 1, 1):
        return Helpers()
    return Helpers(layout.make_group("guidance", "sequence", "tensor"), device=device)
