"""Bytes on the wire and times of them, by hand."""

import pytest

from sat_udpdiff.config import ConfigError
from sat_udpdiff.plan.network import (
    WITHIN_GB,
    Computing,
    Layout,
    Links,
    exposed_seconds,
    wanted_between,
    wire,
)
from sat_udpdiff.plan.traffic import Exchange
from sat_udpdiff.training.throughput import GPUS

TWO_NODES = Layout(nodes=2, gpus=8)
LINKS = Links(within=100.0, between=10.0)
COMPUTING = Computing(forward=1.0, backward=2.0, step=10.0)


def exchange(kind="all-reduce", *, among="zero", size=16.0, times=1, beside="nothing"):
    return Exchange(what="x", kind=kind, among=among, size=size, times=times, beside=beside)


@pytest.mark.parametrize(
    ("kind", "rings", "sent", "within", "between"),
    [
        # 15/16 of it once around, twice for all-reduces; one ring enters and leaves a node.
        ("all-gather", "flat", 15.0, 15.0, 15.0),
        ("reduce-scatter", "flat", 15.0, 15.0, 15.0),
        ("all-reduce", "flat", 30.0, 30.0, 30.0),
        # 7/8 within the node, then eight rings of two nodes, with an eighth each.
        ("all-reduce", "hierarchical", 30.0, 28.0, 16.0),
        ("all-gather", "hierarchical", 15.0, 14.0, 8.0),
        # A sixteenth to each: 7 in the node, 8 outside, from each of eight.
        ("all-to-all", "flat", 15.0, 7.0, 64.0),
    ],
)
def test_bytes_of_two_nodes_of_eight(kind, rings, sent, within, between):
    among, layout = "zero", TWO_NODES
    if kind == "all-to-all":
        among, layout = "sequence", Layout(nodes=2, gpus=8, sequence=16)
    found = wire(exchange(kind, among=among), layout=layout, rings=rings)
    assert (found.sent, found.within, found.between) == (sent, within, between)


@pytest.mark.parametrize("rings", ["flat", "hierarchical"])
def test_one_node_sends_nothing_to_others(rings):
    found = wire(exchange(size=8.0), layout=Layout(nodes=1, gpus=8), rings=rings)
    assert (found.within, found.between) == (14.0, 0.0)
    found = wire(exchange(), layout=Layout(nodes=1, gpus=1), rings=rings)
    assert (found.sent, found.within, found.between) == (0.0, 0.0, 0.0)


def test_one_gpu_per_node_has_nothing_within():
    found = wire(exchange(size=4.0), layout=Layout(nodes=4, gpus=1))
    assert (found.sent, found.within, found.between) == (6.0, 0.0, 6.0)


def test_split_layers_talk_within_the_node_and_shards_in_more_groups():
    layout = Layout(nodes=2, gpus=8, tensor=2)
    tensor = wire(exchange(among="tensor"), layout=layout)
    assert (tensor.within, tensor.between) == (16.0, 0.0)
    # Two groups of eight ranks, four of each on a node.
    zero = wire(exchange(size=8.0), layout=layout)
    assert (zero.within, zero.between) == (14.0, 2 * 14.0)


def test_ranks_that_share_tokens_share_shards_too():
    layout = Layout(nodes=2, gpus=4, tensor=2, sequence=2)
    assert layout.copies == 2
    assert layout.group("sequence").size == 2
    assert layout.group("zero").size == 4


def test_groups_that_fill_several_nodes():
    layout = Layout(nodes=2, gpus=2, tensor=4)
    found = wire(exchange(among="tensor", size=4.0), layout=layout)
    assert (found.within, found.between) == (6.0, 6.0)
    found = wire(exchange(size=4.0), layout=layout)
    assert (found.sent, found.between) == (0.0, 0.0)


@pytest.mark.parametrize("parts", [{"tensor": 5}, {"tensor": 2, "sequence": 8}, {"sequence": 24}])
def test_a_layout_that_does_not_divide_is_refused_with_all_numbers(parts):
    with pytest.raises(ConfigError, match="does not divide 3 nodes x 4 GPUs = 12;") as caught:
        Layout(nodes=3, gpus=4, **parts)
    for name, size in parts.items():
        assert f"{name} {size}" in str(caught.value)


def test_groups_across_the_borders_of_nodes_are_refused():
    with pytest.raises(ConfigError, match="sequence 6 = 6 GPUs of 3 nodes x 4 GPUs neither divide"):
        Layout(nodes=3, gpus=4, sequence=6)


def test_the_slower_link_counts_and_passes_hide_what_they_can():
    layout = TWO_NODES
    # 30 bytes out of a node at 10 per second.
    assert wire(exchange(), layout=layout).seconds(LINKS) == 3.0
    slow = Links(within=5.0, between=10.0)
    assert wire(exchange(), layout=layout).seconds(slow) == 6.0

    def waits(*exchanges):
        return exposed_seconds(exchanges, computing=COMPUTING, layout=layout, links=LINKS)

    assert waits(exchange()) == 3.0
    assert waits(exchange(beside="backward")) == 1.0
    assert waits(exchange(beside="backward", times=4)) == 4.0
    assert waits(exchange(beside="forward")) == 2.0
    # Both in the same backward pass of 2 s.
    assert waits(exchange(beside="backward"), exchange("all-gather", beside="backward")) == 2.5


def test_the_bandwidth_that_is_wanted_is_the_least_that_serves():
    def wanted(*exchanges, within=1e9, layout=TWO_NODES):
        links = Links(within=within, between=1.0)
        return wanted_between(
            exchanges, computing=COMPUTING, layout=layout, links=links, share=0.05
        )

    # 30e9 bytes in 0.5 s, or in 2.5 beside the backward pass of 2 s; four times a quarter of that.
    assert wanted(exchange(size=16e9), within=1e12) == pytest.approx(60e9, rel=2e-3)
    beside = exchange(size=16e9, beside="backward")
    assert wanted(beside, within=1e12) == pytest.approx(12e9, rel=2e-3)
    four = exchange(size=16e9, beside="backward", times=4)
    assert wanted(four, within=1e12) == pytest.approx(30e9 / 2.125, rel=2e-3)
    # 30 s within the nodes.
    assert wanted(exchange(size=16e9), within=1e9) is None
    assert wanted(exchange(), layout=Layout(nodes=1, gpus=8)) == 0.0


def test_every_gpu_has_links():
    assert set(WITHIN_GB) == set(GPUS)
