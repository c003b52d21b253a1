"""The exchanges around attention with the heads of the released networks, whatever the tokens.

Threads stand for processes, and hand each other what they would send.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import torch
import torch.distributed as dist
from torch.nn.functional import scaled_dot_product_attention

from sat_udpdiff.parallel import sequence

TOKENS, WIDTH = 23, 4


class Group(dist.ProcessGroup):
    """Of threads that meet, each with a place of its own."""

    def __init__(self, rank: int, *, size: int, barrier: threading.Barrier, sent: dict):
        super().__init__(rank, size)
        self.barrier, self.sent = barrier, sent


def all_to_all(out, flat, received, sent, *, group: Group) -> None:
    group.sent[group.rank()] = flat.split(sent)
    group.barrier.wait(30)
    parts = [group.sent[rank][group.rank()] for rank in range(group.size())]
    assert [len(part) for part in parts] == received
    out.copy_(torch.cat(parts))
    group.barrier.wait(30)


@pytest.mark.parametrize(
    ("heads", "size"), [(48, 2), (48, 4), (48, 8), (48, 3), (30, 2), (30, 3), (30, 5), (30, 6)]
)
def test_attention_of_runs_of_tokens_is_attention_of_all(heads, size, monkeypatch):
    monkeypatch.setattr(dist, "all_to_all_single", all_to_all)
    monkeypatch.setattr(dist, "get_rank", lambda group: group.rank())
    generator = torch.Generator().manual_seed(heads + size)
    shape = (2, heads, TOKENS, WIDTH)
    qkv = [torch.randn(shape, generator=generator).double().requires_grad_() for _ in range(3)]
    weights = torch.randn(shape, generator=generator).double()
    whole = scaled_dot_product_attention(*qkv)
    expected = torch.autograd.grad((whole * weights).sum(), qkv)

    borders = sequence.split_evenly(TOKENS, parts=size)
    lengths = [stop - start for start, stop in pairwise(borders)]
    assert len(set(lengths)) == (2 if TOKENS % size else 1)
    barrier, sent = threading.Barrier(size), {}

    def process(rank: int):
        group = Group(rank, size=size, barrier=barrier, sent=sent)
        run = slice(borders[rank], borders[rank + 1])
        own = [x.detach()[:, :, run].requires_grad_() for x in qkv]
        all_tokens = sequence._to_heads(own, lengths=lengths, group=group)
        assert all_tokens[0].shape == (2, heads // size, TOKENS, WIDTH)
        attended = scaled_dot_product_attention(*all_tokens)
        out = sequence._to_tokens(attended, lengths=lengths, group=group)
        return out.detach(), torch.autograd.grad((out * weights[:, :, run]).sum(), own)

    with ThreadPoolExecutor(size) as threads:
        outs, grads = zip(*threads.map(process, range(size)), strict=True)
    torch.testing.assert_close(torch.cat(outs, dim=2), whole.detach())
    for of_all, of_runs in zip(expected, zip(*grads, strict=True), strict=True):
        torch.testing.assert_close(torch.cat(of_runs, dim=2), of_all)
