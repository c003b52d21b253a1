"""What a step of the released models sends, by hand."""

from pathlib import Path

import pytest
import torch

from sat_udpdiff.config_io import load_config
from sat_udpdiff.model.transformer import build_network
from sat_udpdiff.plan.sizes import Parameters, count_parameters, derive_sizes
from sat_udpdiff.plan.traffic import (
    sequence_exchanges,
    share_of_rank,
    tensor_exchanges,
    zero_exchanges,
)

CONFIGS = Path(__file__).parents[2] / "configs"
COUNT = 5_570_677_376
ALL = Parameters(total=COUNT, trained=COUNT, small=677_376)


def load(*overrides, family="5b"):
    return load_config([str(CONFIGS / f"{name}.yaml") for name in (family, "multitask")], overrides)


def of_5b(*overrides, parameters=ALL, **arguments):
    found = zero_exchanges(load(*overrides), parameters=parameters, **arguments)
    return [(x.kind, x.size, x.times, x.beside) for x in found]


def test_stage_2_reduces_every_micro_batch_whole_and_gathers_once():
    assert of_5b() == [
        ("all-reduce", 2.0 * COUNT, 1, "backward"),
        ("all-gather", 2.0 * COUNT, 1, "nothing"),
    ]
    four = of_5b("train.accumulation_steps=4")
    assert [times for _, _, times, _ in four] == [4, 1]
    # Sums are in fp32, and what is sent is not.
    assert four[0][1] == 2.0 * COUNT
    assert of_5b("train.precision=fp32")[0][1] == 4.0 * COUNT


def test_stage_1_reduces_once():
    found = of_5b("train.zero_stage=1", "train.accumulation_steps=4")
    assert [times for _, _, times, _ in found] == [1, 1]


def test_stage_3_gathers_in_both_passes_what_it_cannot_keep():
    found = of_5b("train.zero_stage=3", "train.accumulation_steps=2")
    assert found == [
        ("all-gather", 2 * 5.57e9, 2, "forward"),
        ("all-gather", 2 * 4.57e9, 2, "backward"),
        ("reduce-scatter", 2.0 * COUNT, 2, "backward"),
        ("all-gather", 2.0 * 677_376, 1, "nothing"),
    ]
    small = Parameters(total=1_000_000, trained=1_000_000, small=0)
    kept = of_5b("train.zero_stage=3", parameters=small)
    assert [(kind, beside) for kind, _, _, beside in kept] == [
        ("all-gather", "forward"),
        ("reduce-scatter", "backward"),
    ]


def test_frozen_weights_have_no_gradients_to_send():
    few = Parameters(total=COUNT, trained=10, small=0)
    assert [size for _, size, _, _ in of_5b(parameters=few)] == [20.0, 20.0]
    found = of_5b("train.zero_stage=3", parameters=few)
    assert found[0][1] == 2.0 * COUNT
    assert found[2][:2] == ("reduce-scatter", 20.0)


def test_split_sequences_reduce_in_fp32():
    assert of_5b(sequence=2)[0] == ("all-reduce", 4.0 * COUNT, 1, "backward")
    assert of_5b(sequence=2)[1][1] == 2.0 * COUNT


@pytest.mark.parametrize(
    ("mode", "passes"), [("none", 2 * 42), ("selective", 3 * 21 + 2 * 21), ("full", 3 * 42)]
)
def test_split_layers_reduce_tokens_twice_in_every_pass(mode, passes):
    config = load(f"model.activation_checkpointing={mode}", "train.accumulation_steps=2")
    sizes = derive_sizes(config)
    (found,) = tensor_exchanges(config, sizes=sizes, tensor=2)
    assert (found.kind, found.size) == ("all-reduce", 17_776 * 3072 * 2)
    assert found.times == 2 * passes * 2
    (found,) = tensor_exchanges(config, sizes=sizes, tensor=2, sequence=4)
    assert found.size == 17_776 * 3072 * 2 / 4
    assert tensor_exchanges(config, sizes=sizes, tensor=1) == []


def test_split_sequences_change_places_four_times_in_every_pass():
    config = load("train.micro_batch_size=3")
    sizes = derive_sizes(config)
    (found,) = sequence_exchanges(config, sizes=sizes, sequence=4)
    assert (found.kind, found.size) == ("all-to-all", 3 * 17_776 * 3072 * 2 / 4)
    assert found.times == 4 * 3 * 42
    assert found.total == found.size * found.times
    (found,) = sequence_exchanges(config, sizes=sizes, sequence=4, tensor=2)
    assert found.size == 3 * 17_776 * 3072 * 2 / 8
    assert sequence_exchanges(config, sizes=sizes, sequence=1) == []


def test_split_weights_are_those_of_the_linears_of_the_layers():
    config = load(family="tiny")
    network = build_network(config.model, dtype=torch.float32, device=torch.device("meta"))
    split = 0
    for name, weight in network.named_parameters():
        widens = ".query_key_value." in name or ".dense_h_to_4h." in name
        narrows = name.endswith((".attention.dense.weight", ".dense_4h_to_h.weight"))
        split += weight.numel() * (widens or narrows)
    whole = count_parameters(config)
    found = share_of_rank(whole, model=config.model, tensor=4)
    assert split > 0
    assert whole.total - found.total == whole.trained - found.trained == split - split // 4
    assert share_of_rank(whole, model=config.model, tensor=1) == whole


def test_small_tensors_are_counted():
    config = load(family="tiny")
    network = build_network(config.model, dtype=torch.float32, device=torch.device("meta"))
    sizes = [weight.numel() for weight in network.parameters()]
    small = sum(size for size in sizes if size <= 100_000)
    assert 0 < small < sum(sizes)
    assert count_parameters(config).small == small
