"""Dense channels: expanding 16-channel weights."""

import dataclasses
from itertools import product

import pytest
import torch

from sat_udpdiff.config import InitConfig, ModelConfig
from sat_udpdiff.model.dense_channels import (
    INPUT_KEY,
    OUTPUT_BIAS_KEY,
    OUTPUT_KEY,
    expand_state_dict,
)
from sat_udpdiff.model.task_embedding import TASK_TABLE_KEY
from sat_udpdiff.model.transformer import build_network, initialise

CONFIG = ModelConfig(
    family="tiny",
    num_layers=2,
    hidden_size=64,
    num_heads=2,
    time_embed_dim=24,
    text_dim=20,
    text_length=6,
    activation_checkpointing="none",
)
BASE = dataclasses.replace(CONFIG, dense_groups=0, task_signal="none")


def make_base(config=BASE, *, dtype=torch.float32):
    network = build_network(config, dtype=dtype, device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(0.2 * noise + (parameter.ndim == 1) * 0.1)
    return network


def expand(base, config=CONFIG, *, generator=None, **init):
    state = expand_state_dict(
        base.state_dict(), config=config, init=InitConfig(**init), generator=generator
    )
    network = build_network(config, dtype=base.time_embed[0].weight.dtype, device="cpu")
    network.load_state_dict(state, strict=True)
    return network


def draw(*shape, seed=1, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        *product(
            ({"positions": "rotary"}, {"positions": "sincos"}),
            ((2, 3, 8, 12), (2, 1, 2, 2), (1, 1, 2, 2)),
        ),
        *product(({"patch_size_t": 2},), ((2, 4, 8, 12), (2, 2, 2, 2), (1, 2, 2, 2))),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_a_dense_map_the_video_half_is_cogvideox_to_the_bit(changes, dtype, size):
    base = make_base(dataclasses.replace(BASE, **changes), dtype=dtype)
    wide = expand(base, dataclasses.replace(CONFIG, **changes))
    batch, frames, height, width = size
    video = draw(batch, frames, 16, height, width)
    conditions = {
        "timesteps": torch.full((batch,), 600),
        "text": draw(batch, 6, 20, seed=2),
    }
    joint = torch.cat([video, torch.zeros_like(video)], dim=2)
    with torch.no_grad():
        expected = base(video, **conditions)
        out = wide(joint, task=torch.ones(batch, dtype=torch.int64), **conditions)
    assert torch.equal(out[:, :, :16], expected)
    assert torch.equal(out[:, :, 16:], expected)


def test_both_halves_agree_for_any_dense_map():
    wide = expand(make_base())
    with torch.no_grad():
        out = wide(
            draw(1, 2, 32, 4, 6),
            timesteps=torch.tensor([5]),
            text=draw(1, 6, 20),
            task=torch.tensor([0]),
        )
    assert torch.equal(out[:, :, :16], out[:, :, 16:])


@pytest.mark.parametrize("scale", [0.5, 0.7071])
def test_scale_is_on_the_input_weights_only(scale):
    base = make_base().state_dict()
    state = expand_state_dict(base, config=CONFIG, init=InitConfig(dense_scale=scale))
    for half in state[INPUT_KEY].chunk(2, dim=1):
        assert torch.equal(half, base[INPUT_KEY] * scale)
    assert torch.equal(state[OUTPUT_KEY][64:], base[OUTPUT_KEY])
    assert torch.equal(state["mixins.patch_embed.proj.bias"], base["mixins.patch_embed.proj.bias"])


def test_scale_half_gives_cogvideox_when_both_latents_are_equal():
    base = make_base(dtype=torch.float64)
    wide = expand(base, dense_scale=0.5)
    video = draw(1, 2, 16, 4, 6, dtype=torch.float64)
    conditions = {"timesteps": torch.tensor([600]), "text": draw(1, 6, 20, dtype=torch.float64)}
    with torch.no_grad():
        out = wide(torch.cat([video, video], dim=2), task=torch.tensor([0]), **conditions)
        expected = base(video, **conditions)
    torch.testing.assert_close(out[:, :, :16], expected, rtol=0, atol=1e-12)


def test_random_keeps_the_video_and_draws_the_rest():
    base = make_base()
    kinds = [
        expand(base, dense_channels="random", generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    first, second, third = (network.state_dict() for network in kinds)
    old = base.state_dict()
    assert torch.equal(first[INPUT_KEY][:, :16], old[INPUT_KEY])
    assert torch.equal(first[OUTPUT_KEY][:64], old[OUTPUT_KEY])
    assert torch.equal(first[OUTPUT_BIAS_KEY][:64], old[OUTPUT_BIAS_KEY])
    assert not first[OUTPUT_BIAS_KEY][64:].any()
    for key in (INPUT_KEY, OUTPUT_KEY):
        assert torch.equal(first[key], second[key])
        assert not torch.equal(first[key], third[key])
    bound = (6 / (64 + 128)) ** 0.5
    for fresh in (first[INPUT_KEY][:, 16:], first[OUTPUT_KEY][64:]):
        assert 0.9 * bound < fresh.abs().max() <= bound
        assert fresh.std() == pytest.approx(bound / 3**0.5, rel=0.05)


def test_random_needs_a_generator():
    with pytest.raises(ValueError, match=r"init.dense_channels=random: expected a generator"):
        expand(make_base(), dense_channels="random")


@pytest.mark.parametrize("kind", ["duplicate", "random"])
def test_expanding_twice_changes_nothing(kind):
    init = InitConfig(dense_channels=kind, dense_scale=0.5)
    once = expand_state_dict(
        make_base().state_dict(), config=CONFIG, init=init, generator=torch.Generator()
    )
    once[TASK_TABLE_KEY] += 1
    twice = expand_state_dict(once, config=CONFIG, init=init, generator=torch.Generator())
    assert once.keys() == twice.keys()
    assert all(torch.equal(once[key], twice[key]) for key in once)


def test_the_given_state_is_left_alone():
    state = make_base().state_dict()
    before = {key: value.clone() for key, value in state.items()}
    expand_state_dict(state, config=CONFIG, init=InitConfig())
    assert state.keys() == before.keys()
    assert all(torch.equal(state[key], before[key]) for key in before)


def test_two_groups_and_none():
    base = make_base()
    assert expand(base, dataclasses.replace(CONFIG, dense_groups=2)).state_dict()[
        INPUT_KEY
    ].shape == (64, 48, 2, 2)
    same = expand(base, BASE).state_dict()
    assert all(torch.equal(same[key], value) for key, value in base.state_dict().items())


def test_a_base_gets_a_zero_table_and_an_expanded_checkpoint_does_not():
    state = expand_state_dict(make_base().state_dict(), config=CONFIG, init=InitConfig())
    assert state[TASK_TABLE_KEY].shape == (2, 24)
    assert not state[TASK_TABLE_KEY].any()
    # A single-task model loaded as a multi-task one must fail by name, not pass with a zero table.
    del state[TASK_TABLE_KEY]
    again = expand_state_dict(state, config=CONFIG, init=InitConfig())
    with pytest.raises(RuntimeError, match="task_embedding"):
        build_network(CONFIG, dtype=torch.float32, device="cpu").load_state_dict(again)


class TestPatchesOverTime:
    """CogVideoX 1.5: a matrix at the input, its columns ordered by channel first."""

    base = dataclasses.replace(BASE, patch_size_t=2)
    wide = dataclasses.replace(CONFIG, patch_size_t=2)

    def test_the_whole_matrix_is_repeated(self):
        old = make_base(self.base).state_dict()
        state = expand_state_dict(old, config=self.wide, init=InitConfig(dense_scale=0.5))
        assert state[INPUT_KEY].shape == (64, 256)
        for half in state[INPUT_KEY].chunk(2, dim=1):
            assert torch.equal(half, 0.5 * old[INPUT_KEY])
        for key in (OUTPUT_KEY, OUTPUT_BIAS_KEY):
            assert len(state[key]) == 256
            assert all(torch.equal(half, old[key]) for half in state[key].chunk(2))
        assert state[TASK_TABLE_KEY].shape == (2, 24)

    def test_both_halves_agree_for_any_dense_map(self):
        wide = expand(make_base(self.base), self.wide)
        conditions = {"timesteps": torch.tensor([5]), "text": draw(1, 6, 20)}
        with torch.no_grad():
            out = wide(draw(1, 4, 32, 4, 6), task=torch.tensor([0]), **conditions)
        assert torch.equal(out[:, :, :16], out[:, :, 16:])

    def test_random_has_the_bound_of_the_whole_matrix(self):
        base = make_base(self.base)
        generator = torch.Generator().manual_seed(0)
        state = expand(base, self.wide, dense_channels="random", generator=generator).state_dict()
        assert torch.equal(state[INPUT_KEY][:, :128], base.state_dict()[INPUT_KEY])
        assert torch.equal(state[OUTPUT_KEY][:128], base.state_dict()[OUTPUT_KEY])
        bound = (6 / (64 + 256)) ** 0.5
        for fresh in (state[INPUT_KEY][:, 128:], state[OUTPUT_KEY][128:]):
            assert 0.95 * bound < fresh.abs().max() <= bound

    def test_expanding_twice_changes_nothing(self):
        init = InitConfig(dense_scale=0.5)
        once = expand_state_dict(make_base(self.base).state_dict(), config=self.wide, init=init)
        twice = expand_state_dict(once, config=self.wide, init=init)
        assert all(torch.equal(once[key], twice[key]) for key in once | twice)

    @pytest.mark.parametrize(
        ("of", "config", "message"),
        [
            (BASE, wide, r"proj.weight: expected a matrix \(model.patch_size_t=2\), got \(64, 16,"),
            (base, CONFIG, r"expected a 2-D convolution \(model.patch_size_t=1\), got \(64, 128\)"),
            (wide, CONFIG, r"expected a 2-D convolution \(model.patch_size_t=1\), got \(64, 256\)"),
        ],
    )
    def test_weights_of_the_other_generation_are_named(self, of, config, message):
        with pytest.raises(ValueError, match=message):
            expand_state_dict(make_base(of).state_dict(), config=config, init=InitConfig())


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        (INPUT_KEY, (64, 24, 2, 2), r"patch_embed.proj.weight: expected 16 .* 32 .*got size 24"),
        (OUTPUT_KEY, (60, 64), r"final_layer.linear.weight: expected .*64 or 128.*got size 60"),
        (OUTPUT_BIAS_KEY, (96,), r"final_layer.linear.bias: expected .*got size 96"),
        (INPUT_KEY, (64, 32, 2, 2), "expected equal channels in and out"),
    ],
)
def test_wrong_channel_counts_are_named(key, shape, message):
    state = make_base().state_dict() | {key: torch.zeros(shape)}
    with pytest.raises(ValueError, match=message):
        expand_state_dict(state, config=CONFIG, init=InitConfig())


def test_a_missing_key_is_named():
    state = make_base().state_dict()
    del state[OUTPUT_BIAS_KEY]
    with pytest.raises(ValueError, match=r"final_layer.linear.bias: .*no such key"):
        expand_state_dict(state, config=CONFIG, init=InitConfig())


def test_a_wide_network_from_scratch_works():
    network = build_network(CONFIG, dtype=torch.float32, device="cpu")
    initialise(network, 0)
    out = network(
        draw(1, 2, 32, 4, 6),
        timesteps=torch.tensor([5]),
        text=draw(1, 6, 20),
        task=torch.tensor([0]),
    )
    assert not torch.equal(out[:, :, :16], out[:, :, 16:])
