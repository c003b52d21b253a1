"""What a step of the released models sends, by hand."""

from pathlib import Path

import pytest
import torch

from sat_udpdiff.config_io import load_config
from sat_udpdiff.model.transformer import build_network
from sat_udpdiff.parallel.tensor import cut_of
from sat_udpdiff.plan.sizes import Parameters, count_parameters, derive_sizes, share_of_rank
from sat_udpdiff.plan.traffic import (
    gathering_exchanges,
    sequence_exchanges,
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


def test_ranks_that_share_tokens_reduce_in_the_training_precision():
    assert of_5b("parallel.sequence_size=2") == of_5b()


def test_ranks_that_share_weights_reduce_their_own():
    whole, half = zero_exchanges(load()), zero_exchanges(load("parallel.tensor_size=2"))
    cut = 42 * (12 * 3072**2 + 7 * 3072)
    assert whole[0].size - half[0].size == 2 * cut / 2
    assert whole[1].size - half[1].size == 2 * cut / 2


@pytest.mark.parametrize(
    ("mode", "passes"), [("none", 2 * 42), ("selective", 3 * 21 + 2 * 21), ("full", 3 * 42)]
)
def test_cut_layers_reduce_tokens_twice_in_every_pass_and_once_at_the_end(mode, passes):
    checkpointing = f"model.activation_checkpointing={mode}"
    config = load(checkpointing, "train.accumulation_steps=2", "parallel.tensor_size=2")
    sizes = derive_sizes(config)
    (found,) = tensor_exchanges(config, sizes=sizes)
    assert (found.kind, found.size) == ("all-reduce", 17_776 * 3072 * 2)
    assert found.times == 2 * passes * 2 + 2
    config = load("parallel.tensor_size=2", "parallel.sequence_size=4")
    (found,) = tensor_exchanges(config, sizes=sizes)
    assert found.size == 17_776 * 3072 * 2 / 4
    assert tensor_exchanges(load("parallel.sequence_size=4"), sizes=sizes) == []


def test_shared_tokens_change_places_in_every_pass():
    config = load("train.micro_batch_size=3", "parallel.sequence_size=4")
    sizes = derive_sizes(config)
    to_heads, to_tokens, outputs = sequence_exchanges(config, sizes=sizes)
    unit = 3 * 17_776 * 3072 * 2 / 4
    assert (to_heads.kind, to_heads.size, to_heads.times) == ("all-to-all", 3 * unit, 3 * 42)
    assert (to_tokens.kind, to_tokens.size, to_tokens.times) == ("all-to-all", unit, 3 * 42)
    assert to_heads.total == to_heads.size * to_heads.times
    # 2 x 2 patches of 32 channels.
    assert (outputs.kind, outputs.size, outputs.times) == ("all-reduce", 3 * 17_550 * 128 * 2, 1)
    cut = load("parallel.sequence_size=4", "parallel.tensor_size=2")
    assert sequence_exchanges(cut, sizes=sizes)[1].size == unit / 3 / 2
    assert sequence_exchanges(load("parallel.tensor_size=2"), sizes=sizes) == []


def test_saves_sum_shards_and_put_cut_weights_together():
    (one,) = gathering_exchanges(load())
    assert (one.kind, one.among, one.size) == ("all-reduce", "zero", 4.0 * COUNT)
    (one,) = gathering_exchanges(load("train.zero_stage=3"))
    assert one.kind == "all-gather"
    shards, cut = gathering_exchanges(load("parallel.tensor_size=4"))
    assert (cut.kind, cut.among) == ("all-gather", "tensor")
    assert shards.size + 3 / 4 * cut.size == 4.0 * COUNT


def test_cut_weights_are_those_that_tensor_parallel_cuts():
    config = load("parallel.tensor_size=3", family="tiny")
    network = build_network(config.model, dtype=torch.float32, device=torch.device("meta"))
    cut = sum(x.numel() for name, x in network.named_parameters() if cut_of(name) is not None)
    whole, found = count_parameters(config), share_of_rank(config)
    assert cut > 0
    assert whole.total - found.total == whole.trained - found.trained == cut * 2 // 3
    assert share_of_rank(load(family="tiny")) == whole


def test_small_tensors_are_counted():
    config = load(family="tiny")
    network = build_network(config.model, dtype=torch.float32, device=torch.device("meta"))
    sizes = [weight.numel() for weight in network.parameters()]
    small = sum(size for size in sizes if size <= 100_000)
    assert 0 < small < sum(sizes)
    assert count_parameters(config).small == small
