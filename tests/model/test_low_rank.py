"""Adapters: they begin as nothing, train alone, and fold into the weights."""

import dataclasses
import math

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sat_udpdiff.config import LoraConfig, ModelConfig
from sat_udpdiff.model.accounting import backward_flops, forward_flops
from sat_udpdiff.model.low_rank import (
    PLACES,
    adapter_key,
    add_adapters,
    is_adapter,
    merge_adapters,
    merged_weight,
)
from sat_udpdiff.model.transformer import build_network, initialise

SMALL = ModelConfig(
    family="tiny",
    num_layers=2,
    hidden_size=64,
    num_heads=2,
    time_embed_dim=24,
    text_dim=20,
    text_length=6,
    activation_checkpointing="none",
)
BASELINE = dataclasses.replace(SMALL, dense_groups=0, task_signal="none")
LORA = LoraConfig(rank=4, alpha=6.0)
ALL = LoraConfig(rank=4, alpha=6.0, targets=tuple(PLACES))
NEW = {
    "mixins.patch_embed.proj.weight",
    "mixins.patch_embed.proj.bias",
    "mixins.final_layer.linear.weight",
    "mixins.final_layer.linear.bias",
    "mixins.task_embedding.table.weight",
}


def make(model=SMALL, *, lora: LoraConfig | None = LORA, dtype=torch.float32, seed=0):
    network = build_network(model, dtype=torch.float32, device="cpu")
    initialise(network, 0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():  # zeros and ones hide faults
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    network.to(dtype)
    if lora is not None:
        add_adapters(network, lora, seed=seed)
    return network


def randomise_adapters(network, seed=5):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if is_adapter(name):
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return network


def run(network, *, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    channels = 16 * (1 + network.config.dense_groups)
    return network(
        torch.randn(2, 2, channels, 6, 8, generator=generator).to(dtype),
        timesteps=torch.tensor([31, 431]),
        text=torch.randn(2, 6, 20, generator=generator).to(dtype),
        task=torch.tensor([0, 1]),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model", [SMALL, BASELINE], ids=["dense", "baseline"])
def test_new_adapters_change_nothing_to_the_bit(model, dtype):
    with torch.no_grad():
        expected = run(make(model, lora=None, dtype=dtype), dtype=dtype)
        out = run(make(model, lora=ALL, dtype=dtype), dtype=dtype)
    assert expected.isfinite().all()
    assert out.equal(expected)


def test_the_names_of_the_base_stay():
    base, adapted = (make(lora=lora).state_dict() for lora in (None, ALL))
    assert [name for name in adapted if not is_adapter(name)] == list(base)
    assert all(adapted[name].equal(base[name]) for name in base)
    added = {name for name in adapted if is_adapter(name)}
    assert added == {
        adapter_key(layer, target, matrix)
        for layer in range(2)
        for target in PLACES
        for matrix in "AB"
    }


def test_matrices_start_as_peft_draws_them():
    state = make(lora=ALL).state_dict()
    for target, (inputs, outputs) in {
        "to_k": (64, 64),
        "to_out.0": (64, 64),
        "ff.net.0.proj": (64, 256),
        "ff.net.2": (256, 64),
    }.items():
        down, up = (state[adapter_key(1, target, matrix)] for matrix in "AB")
        assert (down.shape, up.shape) == ((4, inputs), (outputs, 4))
        bound = 1 / math.sqrt(inputs)
        assert 0.9 * bound < down.abs().max() <= bound
        assert down.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.15)
        assert not up.any()


def test_adapters_follow_the_seed_and_nothing_else_that_it_draws():
    one, same, other = (make(lora=ALL, seed=seed).state_dict() for seed in (0, 0, 1))
    names = [name for name in one if ".lora_A." in name]
    assert all(one[name].equal(same[name]) for name in names)
    assert not any(one[name].equal(other[name]) for name in names)
    drawn = {tuple(one[name].flatten()[:4].tolist()) for name in names}
    assert len(drawn) == len(names)
    # `initialise` begins with this generator; the adapters must not repeat its numbers.
    first = torch.empty(4, 64).uniform_(-1 / 8, 1 / 8, generator=torch.Generator().manual_seed(0))
    assert not one[names[0]].equal(first)


@pytest.mark.parametrize(
    "targets", [("to_q",), ("to_k", "to_v"), ("to_out.0",), ("ff.net.0.proj", "ff.net.2")]
)
def test_an_adapter_adds_its_product_to_its_own_features(targets):
    lora = LoraConfig(rank=3, alpha=4.5, targets=targets)
    network = randomise_adapters(make(lora=lora))
    layer: torch.nn.Module = network.get_submodule("transformer.layers.1")
    for name in {PLACES[target].linear for target in targets}:
        linear = layer.get_submodule(name)
        x = torch.randn(5, linear.weight.shape[1], generator=torch.Generator().manual_seed(2))
        change = linear(x) - torch.nn.functional.linear(x, linear.weight, linear.bias)
        expected = torch.zeros_like(change)
        for target in targets:
            place = PLACES[target]
            if place.linear == name:
                down, up = (network.state_dict()[adapter_key(1, target, matrix)] for matrix in "AB")
                expected.chunk(place.parts, dim=-1)[place.part].copy_(1.5 * x @ down.T @ up.T)
        assert expected.abs().max() > 0.1
        torch.testing.assert_close(change, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("model", "new"), [(SMALL, NEW), (BASELINE, set())])
def test_what_is_trained(model, new):
    network = make(model)
    run(network).square().mean().backward()
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert trained == new | {name for name in network.state_dict() if is_adapter(name)}
    for name, parameter in network.named_parameters():
        # With B = 0 no gradient reaches A yet.
        moves = name in trained and ".lora_A." not in name
        assert (parameter.grad is not None and parameter.grad.any().item()) == moves, name


def test_gradients_are_those_of_the_merged_weights():
    """dL/dB = scale dL/dW A^T and dL/dA = scale B^T dL/dW, with W the merged weight."""
    network = randomise_adapters(make(lora=ALL, dtype=torch.float64))
    whole = make(lora=None, dtype=torch.float64)
    whole.load_state_dict(merge_adapters(network.state_dict(), ALL))
    for one in (network, whole):
        run(one, dtype=torch.float64).square().mean().backward()
    parameters, merged = dict(network.named_parameters()), dict(whole.named_parameters())
    for target, place in PLACES.items():
        weight = merged[f"transformer.layers.0.{place.linear}.weight"]
        gradient = weight.grad.chunk(place.parts)[place.part]
        down, up = (parameters[adapter_key(0, target, matrix)] for matrix in "AB")
        torch.testing.assert_close(up.grad, 1.5 * gradient @ down.T, rtol=1e-7, atol=1e-12)
        torch.testing.assert_close(down.grad, 1.5 * up.T @ gradient, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("model", [SMALL, BASELINE], ids=["dense", "baseline"])
def test_recomputed_layers_give_the_same_gradients(model):
    gradients = []
    for checkpointing in ("none", "full"):
        changed = dataclasses.replace(model, activation_checkpointing=checkpointing)
        network = randomise_adapters(make(changed))
        run(network).square().mean().backward()
        gradients.append({n: p.grad for n, p in network.named_parameters() if p.requires_grad})
    assert all(value.any() for value in gradients[0].values())
    assert all(gradients[0][name].equal(gradients[1][name]) for name in gradients[0])


@pytest.mark.parametrize("lora", [None, ALL, LoraConfig(rank=16)], ids=["none", "all", "16"])
def test_flops_equal_the_counter(lora):
    """Of a step: what is frozen costs two products, the rest three."""
    model = dataclasses.replace(SMALL, num_layers=4)
    network = make(model, lora=lora)
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        run(network).sum().backward()
    settings = lora or LoraConfig()
    shape = (2, 6, 8)
    expected = 2 * sum(  # two samples
        flops(model, *shape, lora=settings) for flops in (forward_flops, backward_flops)
    )
    # The first layers' inputs need no gradient: a few products less.
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.03)
    assert counter.get_total_flops() <= expected
    if lora is not None:
        whole = 2 * 3 * forward_flops(model, *shape)
        assert expected < 0.9 * whole


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 2e-5), (torch.float64, 1e-12), (torch.bfloat16, 0.15)]
)
def test_merged_weights_compute_the_same(dtype, bound):
    network = randomise_adapters(make(lora=ALL, dtype=dtype))
    whole = make(lora=None, dtype=dtype)
    whole.load_state_dict(merge_adapters(network.state_dict(), ALL))
    with torch.no_grad():
        plain, adapted, merged = (
            run(one, dtype=dtype) for one in (make(lora=None, dtype=dtype), network, whole)
        )
    assert (adapted - plain).abs().max() > 1
    assert (merged - adapted).abs().max() < bound


def test_merging_needs_no_more_than_a_weight_and_its_adapters():
    state = randomise_adapters(make()).state_dict()
    name = "transformer.layers.1.attention.dense.weight"
    down_key, up_key = (adapter_key(1, "to_out.0", matrix) for matrix in "AB")
    few = {key: state[key] for key in (name, down_key, up_key)}
    merged = merged_weight(name, few, LORA)
    torch.testing.assert_close(merged, state[name] + 1.5 * state[up_key] @ state[down_key])
    assert not state[name].equal(merged)
    untouched = "transformer.layers.1.attention.dense.bias"
    assert merged_weight(untouched, state, LORA) is state[untouched]


def test_a_network_on_the_meta_device_gets_adapters_without_values():
    with torch.device("meta"):
        network = build_network(SMALL, dtype=torch.bfloat16, device="meta")
        add_adapters(network, LORA, seed=0)
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    adapters = 2 * 4 * (64 + 64) * 4
    new = 64 * 32 * 4 + 64 + (64 + 1) * 32 * 4 + 2 * 24
    assert trained == adapters + new
