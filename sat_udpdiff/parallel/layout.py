"""Who works with whom: the processes of a program as data x guidance x sequence x tensor.

    rank = ((data * guidance_size + guidance) * sequence_size + sequence) * tensor_size + tensor

The processes of one data rank work on the same samples. Those that talk most, the tensor ranks, are
neighbours, and so share a machine wherever the sizes allow it.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Literal, NamedTuple

import numpy as np
import torch.distributed as dist

from sat_udpdiff.config import ConfigError, ParallelConfig
from sat_udpdiff.distributed import Place


class Axes(NamedTuple):
    """A number for every axis along which processes are laid out."""

    data: int
    """Samples of their own."""
    guidance: int
    """Sampling: the branch with the prompt, or the one without."""
    sequence: int
    """Tokens of the same samples."""
    tensor: int
    """Weights of the same layers."""


Axis = Literal["data", "guidance", "sequence", "tensor"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Where a process stands among all."""

    rank: int
    sizes: Axes

    @property
    def at(self) -> Axes:
        """The rank along every axis."""
        return Axes(*(int(rank) for rank in np.unravel_index(self.rank, self.sizes)))

    @property
    def counts(self) -> bool:
        """Whether this process, of all that work on its samples, counts and writes them."""
        return self.at[1:] == (0, 0, 0)

    def data_place(self, place: Place) -> Place:
        """This process for whoever deals out samples: rank and number of the data ranks."""
        return replace(place, rank=self.at.data, world_size=self.sizes.data)

    def peers(self, *axes: Axis) -> list[int]:
        """Ranks that stand where this one stands, but for `axes`."""
        ranks = np.arange(prod(self.sizes)).reshape(self.sizes)
        index = zip(Axes._fields, self.at, strict=True)
        return (
            ranks[tuple(slice(None) if name in axes else at for name, at in index)].ravel().tolist()
        )

    def mark(self, keys: Sequence[str]) -> float:
        """A whole number whose sum over all processes is 0 if those that share samples agree.

        Args:
            keys: Of the samples that this process was given.
        """
        num_peers = prod(self.sizes[1:])
        value = zlib.crc32("\n".join(keys).encode())
        return float(value * (num_peers * self.counts - 1)) if num_peers > 1 else 0.0

    def make_group(self, *axes: Axis) -> dist.ProcessGroup:
        """The process group of `peers`; every process makes all of them, in the same order."""
        groups = {}
        for rank in range(prod(self.sizes)):
            ranks = tuple(replace(self, rank=rank).peers(*axes))
            if ranks not in groups:
                groups[ranks] = dist.new_group(list(ranks))
        return groups[tuple(self.peers(*axes))]


def lay_out(
    parallel: ParallelConfig, *, place: Place, guidance_size: int = 1, section: str = "parallel"
) -> Layout:
    """Where `place` stands.

    Args:
        parallel: Processes that share tokens and weights.
        place: Of this process.
        guidance_size: Processes that share the branches of guidance, 1 or 2.
        section: Of the configuration, that the sizes are from.

    Raises:
        ConfigError: The number of processes is no multiple of the sizes; has all numbers.
    """
    tensor, sequence = parallel.tensor_size, parallel.sequence_size
    size = guidance_size * sequence * tensor
    if place.world_size % size:
        guidance = f"guidance {guidance_size} x " if guidance_size > 1 else ""
        keys = [f"{section}.tensor_size", f"{section}.sequence_size"]
        keys += [f"{section}.guidance_size"] if guidance else []
        raise ConfigError(
            f"{section}: world size {place.world_size} is not tensor {tensor} x sequence "
            f"{sequence} x {guidance}data n; start a multiple of {size} processes, or change "
            f"{' or '.join(keys)}",
            keys=tuple(keys),
        )
    sizes = Axes(place.world_size // size, guidance_size, sequence, tensor)
    return Layout(rank=place.rank, sizes=sizes)
