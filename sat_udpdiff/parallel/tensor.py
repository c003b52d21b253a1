"""Tensor parallel on SAT's mpu: each process of a group holds a share of every layer's weights.

SAT's linears sum and copy over the group by themselves. Three gradients are wrong without what is
done here:

* SAT copies the last hidden states as if a cut layer followed, whose gradients have to be summed.
  The last linear is whole on every process, so these gradients would count once for each.
* The norms of queries and keys are whole, but see the heads of their own process alone.
* A bias that is whole and added in parts (`final_bias=False`) would see a part of its gradient.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sat_udpdiff.model.transformer import UDPDiffTransformer
from sat_udpdiff.sat_compat import (
    BaseMixin,
    RowParallelLinear,
    model_parallel_group,
    non_conflict,
)

_HEAD_NORMS = ("query_layernorm_list", "key_layernorm_list")


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """How the shares of a weight lie in the whole."""

    dim: int
    parts: int = 1
    """Equal blocks along `dim` of which each process has a share: queries, keys and values."""

    def take(self, whole: Tensor, *, rank: int, size: int) -> Tensor:
        """The share of process `rank` of `size`, a tensor of its own."""
        blocks = whole.chunk(self.parts, dim=self.dim)
        return torch.cat([block.chunk(size, dim=self.dim)[rank] for block in blocks], dim=self.dim)

    def join(self, shares: Sequence[Tensor]) -> Tensor:
        """The whole of all shares, in order of rank."""
        blocks = zip(*[share.chunk(self.parts, dim=self.dim) for share in shares], strict=True)
        return torch.cat([part for block in blocks for part in block], dim=self.dim)


_ROWS, _COLUMNS, _FUSED = Cut(dim=0), Cut(dim=1), Cut(dim=0, parts=3)
_CUTS = {
    "attention.query_key_value.weight": _FUSED,
    "attention.query_key_value.bias": _FUSED,
    "attention.dense.weight": _COLUMNS,
    "mlp.dense_h_to_4h.weight": _ROWS,
    "mlp.dense_h_to_4h.bias": _ROWS,
    "mlp.dense_4h_to_h.weight": _COLUMNS,
}
"""By what follows the layer's number; every other weight is whole on every process."""


def cut_of(name: str) -> Cut | None:
    """How the weight of this name is cut; None for one that is whole everywhere."""
    head, _, rest = name.removeprefix("transformer.layers.").partition(".")
    return _CUTS.get(rest) if head.isdigit() else None


class WeightShares:
    """From whole weights to this process's shares and back.

    Args:
        group: Of the processes that hold one network together; None = this one holds it alone.
    """

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self._group = group
        self.size = 1 if group is None else dist.get_world_size(group)
        self._rank = 0 if group is None else dist.get_rank(group)

    def take(self, name: str, whole: Tensor) -> Tensor:
        """What this process holds of the weight `name`, or of a moment of it."""
        cut = cut_of(name)
        if cut is None or self.size == 1:
            return whole
        return cut.take(whole, rank=self._rank, size=self.size)

    def join(self, name: str, share: Tensor) -> Tensor:
        """The whole, given what each process of the group holds; they call it together."""
        cut = cut_of(name)
        if cut is None or self.size == 1:
            return share
        shares = [torch.empty_like(share) for _ in range(self.size)]
        dist.all_gather(shares, share.contiguous(), group=self._group)
        return cut.join(shares)

    def count(self, network: nn.Module) -> int:
        """Trained numbers of the whole network."""
        trained = [(n, p.numel()) for n, p in network.named_parameters() if p.requires_grad]
        return sum(count * (self.size if cut_of(name) else 1) for name, count in trained)


def cut_network(network: UDPDiffTransformer) -> None:
    """Keep this process's share of every layer; the whole weights are the same everywhere.

    SAT's model-parallel group must be that of the run, and stay so while the network lives.
    """
    group = model_parallel_group()
    shares = WeightShares(group)
    layers: Any = network.get_submodule("transformer.layers")
    for layer in layers:
        layer.attention.repartition()  # SAT's count of heads
    for name, parameter in list(network.named_parameters()):
        if cut_of(name) is None:
            continue
        path, _, own_name = name.rpartition(".")
        share: Any = nn.Parameter(
            shares.take(name, parameter.detach()), requires_grad=parameter.requires_grad
        )
        # By this mark deepspeed counts it in the gradient's norm on every process of the group.
        share.model_parallel = True
        setattr(network.get_submodule(path), own_name, share)
    for module in network.modules():
        if isinstance(module, RowParallelLinear):
            module.final_bias = True
    norms: Any = network.get_mixin("adaln_layer")
    for name in _HEAD_NORMS:
        for parameter in getattr(norms, name).parameters():
            if parameter.requires_grad:
                parameter.register_hook(_SumOverGroup(group))
    network.add_mixin("tensor", _WholeLastLayer(group))


class _SumOverGroup:
    """Gradient hook: the sum over the processes of a group."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group

    def __call__(self, grad: Tensor) -> Tensor:
        total = grad.clone()
        dist.all_reduce(total, group=self._group)
        return total


class _WholeLastLayer(BaseMixin):
    """Makes up for the gradients that SAT sums in front of the last layer."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        super().__init__()
        self.group, self.size = group, dist.get_world_size(group)

    @non_conflict
    def final_forward(
        self, logits: Float[Tensor, "b n d"], *, old_impl: Any, **kwargs: object
    ) -> Float[Tensor, "b n2 f"]:
        """SAT's last step, whose equal gradients are counted once in all."""
        if model_parallel_group() is not self.group:
            # Another network was built, and SAT's linears have summed over its group.
            raise RuntimeError("SAT's model-parallel group is no longer that of the cut network")
        return old_impl(_ShareGradient.apply(logits, self.size), **kwargs)


class _ShareGradient(torch.autograd.Function):
    """Nothing forward; backward an equal share of the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int) -> Tensor:
        ctx.size = size
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad / ctx.size, None
