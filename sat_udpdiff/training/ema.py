"""Exponential moving average of the weights, sharded as deepspeed shards the fp32 weights."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sat_udpdiff.config import EMAConfig


class EMA:
    """fp32 shadow of this rank's share of the master weights.

    The share is what ZeRO gives the rank, so the shadow costs 4 bytes per parameter over all ranks,
    needs no communication, and sees updates that bf16 weights would round away.

    Args:
        masters: Flat fp32 tensors that the optimizer updates in place.
        config: Ceiling of the decay.
    """

    def __init__(self, masters: Sequence[Tensor], *, config: EMAConfig) -> None:
        self.shadow = [master.detach().clone() for master in masters]
        self.num_updates = 0
        self._decay = config.decay

    @torch.no_grad()
    def update(self, masters: Sequence[Tensor]) -> None:
        """Set s to d s + (1 - d) master, with d = min(decay, (1 + n) / (10 + n)), n = 1, 2, .."""
        self.num_updates += 1
        n = self.num_updates
        decay = min(self._decay, (1 + n) / (10 + n))
        for shadow, master in zip(self.shadow, masters, strict=True):
            shadow.lerp_(master.detach(), 1 - decay)

    @torch.no_grad()
    def swap(self, masters: Sequence[Tensor]) -> None:
        """Exchange shadow and masters, so that whatever reads masters reads the average."""
        for shadow, master in zip(self.shadow, masters, strict=True):
            kept = shadow.clone()
            shadow.copy_(master)
            master.copy_(kept)

    @torch.no_grad()
    def restore(self, masters: Sequence[Tensor], *, num_updates: int) -> None:
        """Continue from an average that lies in the masters for now."""
        for shadow, master in zip(self.shadow, masters, strict=True):
            shadow.copy_(master)
        self.num_updates = num_updates
