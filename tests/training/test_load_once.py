"""The first rank reads the weights; the others receive them, or its reason for stopping."""

import dataclasses

import pytest
import torch

from sat_udpdiff.config import Config, LoraConfig, ModelConfig
from sat_udpdiff.distributed import Place
from sat_udpdiff.model.low_rank import is_adapter
from sat_udpdiff.model.transformer import build_network
from sat_udpdiff.training import ranks, setup
from sat_udpdiff.weights.adapted import LoadedWeights

CONFIG = Config(
    model=ModelConfig(
        family="tiny", num_layers=1, hidden_size=32, num_heads=2, time_embed_dim=8, text_dim=8
    )
)
LOADED = LoadedWeights(source="FILE")


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


def load(network, rank, config=CONFIG):
    return setup._load_once(network, config=config, weights="W", place=place(rank))


def test_other_ranks_never_touch_the_disk(monkeypatch, sent, network):
    def touch(*_, **__):
        raise AssertionError("rank 1 read the weights")

    monkeypatch.setattr(setup, "load_weights", touch)
    monkeypatch.setattr(ranks, "gather", lambda value, place: [(LOADED, None), value])
    assert load(network, 1) == LOADED
    assert all((parameter == 7).all() for parameter in network.parameters())


def test_the_first_rank_reads_and_sends_every_weight(monkeypatch, sent, network):
    def read(network, config, *, weights):
        assert weights == "W"
        torch.nn.init.ones_(next(network.parameters()))
        return LOADED

    monkeypatch.setattr(setup, "load_weights", read)
    monkeypatch.setattr(ranks, "gather", lambda value, place: [value, (None, None)])
    assert load(network, 0) == LOADED
    assert [tensor.data_ptr() for tensor in sent] == [p.data_ptr() for p in network.parameters()]
    assert (sent[0] == 1).all()


@pytest.mark.parametrize("rank", [0, 1])
def test_all_ranks_make_the_groups_of_a_network_before_one_looks_at_weights(monkeypatch, rank):
    """They are made together; a rank that makes them alone waits for ever."""
    order = []
    monkeypatch.setattr(setup, "ensure_model_parallel", lambda: order.append("groups"))
    monkeypatch.setattr(setup, "check_start", lambda config: order.append("check"))
    monkeypatch.setattr(ranks, "gather", lambda value, place: [(None, None)] * 2)
    setup.check_weights(CONFIG, place=place(rank), resume_point=None)
    assert order == (["groups"] if rank else ["groups", "check"])


def test_other_ranks_have_adapters_to_receive(monkeypatch, sent, network):
    config = dataclasses.replace(CONFIG, lora=LoraConfig(rank=4))
    monkeypatch.setattr(ranks, "gather", lambda value, place: [(LOADED, None), value])
    load(network, 1, config)
    received = {name for name, value in network.state_dict().items() if (value == 7).all()}
    assert received == network.state_dict().keys()
    adapters = {name for name in received if is_adapter(name)}
    assert len(adapters) == 8
    trained = {name for name, value in network.named_parameters() if value.requires_grad}
    assert adapters < trained < received


@pytest.mark.parametrize("rank", [0, 1])
def test_what_stops_the_first_rank_stops_all_before_anything_is_sent(
    monkeypatch, sent, network, rank
):
    def fail(*_, **__):
        raise ValueError("FILE: damaged")

    monkeypatch.setattr(setup, "load_weights", fail)
    outcomes = [(None, "FILE: damaged"), (None, None)]
    monkeypatch.setattr(ranks, "gather", lambda value, place: outcomes)
    with pytest.raises(ValueError, match="FILE: damaged"):
        load(network, rank)
    assert not sent
