"""The first rank reads the weights; the others receive them, or its reason for stopping."""

import pytest
import torch

from sat_udpdiff.config import Config, ModelConfig
from sat_udpdiff.distributed import Place
from sat_udpdiff.model.transformer import build_network
from sat_udpdiff.training import ranks, setup

CONFIG = Config(
    model=ModelConfig(
        family="tiny", num_layers=1, hidden_size=32, num_heads=2, time_embed_dim=8, text_dim=8
    )
)


@pytest.fixture
def network():
    return build_network(CONFIG.model, dtype=torch.float32, device="cpu")


def place(rank):
    return Place(
        rank=rank, world_size=2, local_rank=rank, device=torch.device("cpu"), backend="gloo"
    )


@pytest.fixture
def sent(monkeypatch):
    """Tensors that went over the wire; they arrive filled with 7."""
    seen = []

    def send(values, *, place):
        seen.append(values)
        if place.rank:
            values.fill_(7)

    monkeypatch.setattr(ranks, "send_from_first", send)
    return seen


def load(network, rank):
    return setup._load_once(network, config=CONFIG, weights="W", place=place(rank))


def test_other_ranks_never_touch_the_disk(monkeypatch, sent, network):
    def touch(*_, **__):
        raise AssertionError("rank 1 read the weights")

    monkeypatch.setattr(setup, "load_network_weights", touch)
    monkeypatch.setattr(ranks, "gather", lambda value, place: [("FILE", None), value])
    assert load(network, 1) == "FILE"
    assert all((parameter == 7).all() for parameter in network.parameters())


def test_the_first_rank_reads_and_sends_every_weight(monkeypatch, sent, network):
    def read(network, config, *, weights):
        assert weights == "W"
        torch.nn.init.ones_(next(network.parameters()))
        return "FILE"

    monkeypatch.setattr(setup, "load_network_weights", read)
    monkeypatch.setattr(ranks, "gather", lambda value, place: [value, (None, None)])
    assert load(network, 0) == "FILE"
    assert [tensor.data_ptr() for tensor in sent] == [p.data_ptr() for p in network.parameters()]
    assert (sent[0] == 1).all()


@pytest.mark.parametrize("rank", [0, 1])
def test_what_stops_the_first_rank_stops_all_before_anything_is_sent(
    monkeypatch, sent, network, rank
):
    def fail(*_, **__):
        raise ValueError("FILE: damaged")

    monkeypatch.setattr(setup, "load_network_weights", fail)
    outcomes = [(None, "FILE: damaged"), (None, None)]
    monkeypatch.setattr(ranks, "gather", lambda value, place: outcomes)
    with pytest.raises(ValueError, match="FILE: damaged"):
        load(network, rank)
    assert not sent
