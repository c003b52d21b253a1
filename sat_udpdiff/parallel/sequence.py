"""Sequence parallel: each process of a group holds a run of the tokens of the same samples.

DeepSpeed-Ulysses (arXiv:2309.14509): everything between the patch projection and the last linear
works on the tokens that are here; around attention an all-to-all swaps them for all tokens of some
heads. Heads must divide evenly; the tokens, text and video in one sequence, need not.

Every process is given the whole input and returns the whole output, the same to the last bit, so
nothing outside knows of it. Gradients: the loss of every process is the whole loss, and the
backward pass of the last gathering counts all these copies, so that the mean over the group of a
weight's gradients is the gradient of the loss. ZeRO takes that mean, over data and sequence ranks
together, and nothing is left to scale.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from sat_udpdiff.model.positions import TokenGrid
from sat_udpdiff.sat_compat import BaseMixin, non_conflict


def split_evenly(count: int, *, parts: int) -> list[int]:
    """Borders 0 .. count of `parts` runs whose lengths differ by one at most."""
    return [part * count // parts for part in range(parts + 1)]


class SequenceParallel(BaseMixin):
    """Added last to a network, it shares the network's tokens out over a group.

    Args:
        group: Of processes with the same weights that are given the same inputs.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        super().__init__()
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def share(self, grid: TokenGrid) -> TokenGrid:
        """The same tokens, of which this process holds its run."""
        borders = split_evenly(grid.total, parts=self.size)
        return replace(grid, part=(borders[self.rank], borders[self.rank + 1]))

    @non_conflict
    def word_embedding_forward(
        self, input_ids: Tensor, *, grid: TokenGrid, old_impl: Any, **kwargs: object
    ) -> Float[Tensor, "b n d"]:
        """Embed all tokens, which costs next to nothing, and keep those of this process."""
        return old_impl(input_ids, grid=grid, **kwargs)[:, grid.here]

    @non_conflict
    def position_embedding_forward(
        self, position_ids: Tensor, *, grid: TokenGrid, old_impl: Any, **kwargs: object
    ) -> Float[Tensor, "1 n d"] | None:
        """The rows of the position table, if there is one, of the tokens of this process."""
        table = old_impl(position_ids, grid=grid, **kwargs)
        return None if table is None else table[:, grid.here]

    @non_conflict
    def attention_fn(
        self,
        query: Float[Tensor, "b heads n d"],
        key: Float[Tensor, "b heads n d"],
        value: Float[Tensor, "b heads n d"],
        *args: object,
        grid: TokenGrid,
        old_impl: Any,
        **kwargs: object,
    ) -> Float[Tensor, "b heads n d"]:
        """Attend with all tokens and some heads; a norm of queries and keys is inside."""
        borders = split_evenly(grid.total, parts=self.size)
        lengths = [stop - start for start, stop in pairwise(borders)]
        all_tokens = _to_heads((query, key, value), lengths=lengths, group=self.group)
        attended = old_impl(*all_tokens, *args, grid=grid, **kwargs)
        return _to_tokens(attended, lengths=lengths, group=self.group)

    @non_conflict
    def final_forward(
        self,
        logits: Float[Tensor, "b n d"],
        *,
        grid: TokenGrid,
        old_impl: Any,
        **kwargs: object,
    ) -> Float[Tensor, "b n_all f"]:
        """The features of all video tokens, whoever computed them."""
        features = old_impl(logits, grid=grid, **kwargs)
        start = max(grid.here.start, grid.text) - grid.text
        return _Gather.apply(features, start, grid.video, self.group)


def _to_heads(
    qkv: Sequence[Float[Tensor, "b heads n d"]],
    *,
    lengths: Sequence[int],
    group: dist.ProcessGroup,
) -> tuple[Float[Tensor, "b some_heads all d"], ...]:
    """Queries, keys and values of all tokens for this process's heads, in one exchange.

    Args:
        qkv: Of all heads, for the tokens that are here.
        lengths: Tokens of each process.
        group: Of the exchange.
    """
    size = len(lengths)
    by_receiver = [x.unflatten(1, (size, -1)).movedim(1, 0) for x in qkv]
    sent = torch.stack(by_receiver, dim=1)  # (receiver, qkv, b, heads, n, d)
    _, three, batch, heads, here, width = sent.shape
    per_token = three * batch * heads * width
    received = _Exchange.apply(
        sent.flatten(), [per_token * here] * size, [per_token * n for n in lengths], group
    )
    of_senders = [
        part.view(three, batch, heads, n, width)
        for part, n in zip(received.split([per_token * n for n in lengths]), lengths, strict=True)
    ]
    return torch.cat(of_senders, dim=3).unbind(0)


def _to_tokens(
    x: Float[Tensor, "b some_heads all d"], *, lengths: Sequence[int], group: dist.ProcessGroup
) -> Float[Tensor, "b heads n d"]:
    """All heads of this process's tokens, stored as (b, n, heads, d), which SAT reads next."""
    size, rank = len(lengths), dist.get_rank(group)
    batch, heads, _, width = x.shape
    sent = torch.cat([part.flatten() for part in x.split(list(lengths), dim=2)])
    per_token = batch * heads * width
    here = lengths[rank]
    received = _Exchange.apply(
        sent, [per_token * n for n in lengths], [per_token * here] * size, group
    )
    by_sender = received.view(size, batch, heads, here, width)
    return by_sender.permute(1, 3, 0, 2, 4).flatten(2, 3).transpose(1, 2)


class _Exchange(torch.autograd.Function):
    """All-to-all of a flat tensor; the gradient goes the same ways back."""

    @staticmethod
    def forward(
        ctx: Any, flat: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup
    ) -> Tensor:
        ctx.sent, ctx.received, ctx.group = sent, received, group
        out = flat.new_empty(sum(received))
        dist.all_to_all_single(out, flat, received, sent, group=group)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        back = grad.new_empty(sum(ctx.sent))
        dist.all_to_all_single(back, grad.contiguous(), ctx.sent, ctx.received, group=ctx.group)
        return back, None, None, None


class _Gather(torch.autograd.Function):
    """Put the runs of all processes behind one another.

    Backward: every process has a loss of its own that sees this one's tokens. The losses are the
    same, and so are their gradients, so the sum over processes is one of them times their number.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, start: int, length: int, group: dist.ProcessGroup) -> Tensor:
        ctx.run = slice(start, start + x.shape[1])
        ctx.size = dist.get_world_size(group)
        # Runs differ in length, which not every backend gathers; adding zeros changes no number.
        whole = x.new_zeros(x.shape[0], length, x.shape[2])
        whole[:, ctx.run] = x
        dist.all_reduce(whole, group=group)
        return whole

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad[:, ctx.run] * ctx.size, None, None, None
