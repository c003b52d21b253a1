"""How long the traffic of a step takes on nodes of several GPUs, and what network it wants.

A model of bandwidth alone: what leaves each GPU over the links of its node and what leaves each
node over its network cards, whichever takes longer. Latency and other jobs on the same network are
left out: what it says is the least that must be expected.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from sat_udpdiff.config import ConfigError
from sat_udpdiff.plan.traffic import Among, Exchange

Rings = Literal["flat", "hierarchical"]

REACHED = 0.8
"""Share of a link's rate that collectives are taken to reach. Assumed; nothing here measured it."""

CARDS_GBIT: Mapping[str, float] = {
    "10gbe": 10.0,
    "25gbe": 25.0,
    "roce100": 100.0,
    "hdr": 200.0,
    "ndr": 400.0,
}
"""Gbit/s of a network card in one direction, by the names of `--network`: Ethernet of two speeds,
RDMA over Ethernet, InfiniBand HDR and NDR."""

WITHIN_GB: Mapping[str, float] = {
    "h200": 450.0,
    "h100-pcie": 64.0,
    "h100": 450.0,
    "a100": 300.0,
    "a100-40g": 300.0,
    "a800": 200.0,
    "l40s": 32.0,
    "b200": 900.0,
    "rtx4090": 32.0,
}
"""GB/s that a GPU sends to those of its node, by the names of `GPUS`; from vendors' data sheets.
NVLink 3, 4 and 5 where there is one (half of what sheets call the bandwidth of both directions),
else PCIe 4 or 5 with 16 lanes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Links:
    """Bytes per second that are reached in one direction."""

    within: float
    """Of one GPU to the others of its node."""
    between: float
    """Of one node to the others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Group:
    size: int
    per_node: int
    """Members on each node that it has members on."""
    groups: int
    """That have members on a node."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Where the ranks are.

    Those that share a layer's weights lie next to each other, then those that share a sample's
    tokens, then the copies of the network.

    Raises:
        ConfigError: The parts do not divide the ranks, or lie across the borders of nodes.
    """

    nodes: int
    gpus: int
    """On each node."""
    tensor: int = 1
    sequence: int = 1

    def __post_init__(self) -> None:
        """Check the product."""
        inner = self.tensor * self.sequence
        groups = f"parallel: tensor {self.tensor} x sequence {self.sequence} = {inner}"
        gpus = f"{self.nodes} node{'s' * (self.nodes > 1)} x {self.gpus} GPU{'s' * (self.gpus > 1)}"
        keys = ("parallel.tensor_size", "parallel.sequence_size")
        change = f"change --gpus, {' or '.join(keys)}"
        if self.world_size % inner:
            raise ConfigError(
                f"{groups} does not divide {gpus} = {self.world_size}; {change}", keys=keys
            )
        if max(inner, self.gpus) % min(inner, self.gpus):
            raise ConfigError(
                f"{groups} GPUs of {gpus} neither divide a node nor fill several, and such a "
                f"layout is not planned; {change}",
                keys=keys,
            )

    @property
    def world_size(self) -> int:
        """All ranks."""
        return self.nodes * self.gpus

    @property
    def copies(self) -> int:
        """Of the network, each with samples of its own."""
        return self.world_size // (self.tensor * self.sequence)

    def group(self, among: Among) -> _Group:
        """The ranks that exchange something, each group of them."""
        size, stride = {
            "tensor": (self.tensor, 1),
            "sequence": (self.sequence, self.tensor),
            # Copies of the network and ranks that share tokens hold one set of shards together.
            "zero": (self.world_size // self.tensor, self.tensor),
        }[among]
        per_node = min(size, max(1, self.gpus // stride))
        return _Group(size=size, per_node=per_node, groups=self.gpus // per_node)


@dataclass(frozen=True, kw_only=True, slots=True)
class Wire:
    """Bytes of one exchange on the wire, in one direction."""

    sent: float
    """What a GPU sends in all."""
    within: float
    """The most that one sends to those of its node."""
    between: float
    """What leaves a node."""

    def seconds(self, links: Links) -> float:
        """Chunks flow over both kinds of links at once: the slower one counts."""
        return max(self.within / links.within, self.between / links.between)


def wire(exchange: Exchange, *, layout: Layout, rings: Rings = "flat") -> Wire:
    """Bytes on the wire of one exchange.

    A ring of n ranks sends (n-1)/n of a tensor per rank to gather or to scatter it, and twice that
    to reduce it for all (Patarasu and Yuan 2009). A flat ring enters and leaves each node once, so
    as much leaves the node. A hierarchical one scatters within the node first, and a ring of nodes
    does the rest.

    Args:
        exchange: One of them.
        layout: Where the ranks are.
        rings: Of NCCL's algorithms; all-to-alls have neither.
    """
    group = layout.group(exchange.among)
    n, m, size = group.size, group.per_node, exchange.size
    nodes = n // m
    if exchange.kind == "all-to-all":
        # Every rank has another part for every other.
        return Wire(
            sent=size * (n - 1) / n,
            within=size * (m - 1) / n,
            between=layout.gpus * size * (n - m) / n,
        )
    # Once around, or twice: to sum, and to tell the sum.
    whole = size * (2 if exchange.kind == "all-reduce" else 1)
    sent = whole * (n - 1) / n
    if rings == "hierarchical":
        within, between = whole * (m - 1) / m, whole * (nodes - 1) / nodes
    else:
        within, between = sent if m > 1 else 0.0, sent if nodes > 1 else 0.0
    return Wire(sent=sent, within=within, between=group.groups * between)


@dataclass(frozen=True, kw_only=True, slots=True)
class Computing:
    """Seconds of computation on one GPU."""

    forward: float
    """Of a micro-batch."""
    backward: float
    """Of a micro-batch, recomputed layers included."""
    step: float
    """All of a step, encoders included."""


def exposed_seconds(
    exchanges: Sequence[Exchange],
    *,
    computing: Computing,
    layout: Layout,
    links: Links,
    rings: Rings = "flat",
) -> float:
    """Seconds of a step in which GPUs wait for each other.

    What is sent beside a pass counts where it takes longer than the pass. Assumed: passes are not
    slowed down by it.
    """
    beside: dict[tuple[str, int], float] = defaultdict(float)
    total = 0.0
    for exchange in exchanges:
        seconds = wire(exchange, layout=layout, rings=rings).seconds(links)
        if exchange.beside == "nothing":
            total += seconds * exchange.times
        else:
            beside[exchange.beside, exchange.times] += seconds
    for (what, times), seconds in beside.items():
        window = computing.forward if what == "forward" else computing.backward
        total += times * max(0.0, seconds - window)
    return total


def wanted_between(
    exchanges: Sequence[Exchange],
    *,
    computing: Computing,
    layout: Layout,
    links: Links,
    share: float,
) -> float | None:
    """Least bytes per second between nodes at which waiting costs at most a share of the step.

    Args:
        exchanges: Of a step.
        computing: On one GPU.
        layout: Where the ranks are.
        links: Of which those within nodes count.
        share: Of the time that computing takes.

    Returns:
        0 where nothing goes between nodes; None where the links within nodes are too slow already.
    """

    def waits(between: float) -> float:
        trial = replace(links, between=between)
        return exposed_seconds(exchanges, computing=computing, layout=layout, links=trial)

    limit = share * computing.step
    low, high = 1e3, 1e18
    if waits(high) > limit:
        return None
    if waits(low) <= limit:
        return 0.0
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if waits(middle) > limit else (low, middle)
    return high
