"""The network: counts, shapes, precision, task table, checkpointing, accounting."""

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sat_udpdiff.config import ModelConfig
from sat_udpdiff.config_io import load_config
from sat_udpdiff.model import positions
from sat_udpdiff.model.accounting import forward_flops, weight_decay_groups
from sat_udpdiff.model.transformer import build_network, check_inputs, initialise

CONFIGS = Path(__file__).parents[2] / "configs"

SMALL = ModelConfig(
    family="tiny",
    num_layers=3,
    hidden_size=64,
    num_heads=2,
    time_embed_dim=24,
    text_dim=20,
    text_length=6,
    activation_checkpointing="none",
)


def small(**changes):
    return dataclasses.replace(SMALL, **changes)


def make(config, *, dtype=torch.float32, seed=0):
    """A network whose every weight is random, norms and biases too."""
    network = build_network(config, dtype=dtype, device="cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(0.2 * noise + (parameter.ndim == 1) * 0.1)
    return network


def inputs(config=SMALL, *, frames=2, height=6, width=8, batch=2, seed=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    channels = config.latent_channels * (1 + config.dense_groups)
    shape = (batch, frames, channels, height, width)
    return {
        "latents": torch.randn(shape, generator=generator, dtype=dtype),
        "timesteps": torch.arange(batch) * 400 + 31,
        "text": torch.randn(
            batch, config.text_length, config.text_dim, generator=generator, dtype=dtype
        ),
        "task": torch.arange(batch) % 2,
    }


def run(network, batch):
    batch = dict(batch)
    return network(batch.pop("latents"), **batch)


def of_family(name):
    return load_config([str(CONFIGS / f"{name}.yaml")]).model


@pytest.mark.parametrize(
    ("family", "changes", "count"),
    [
        ("5b", {}, 5_570_677_376),
        ("5b", {"task_signal": "prompt"}, 5_570_676_352),
        ("5b", {"dense_groups": 0, "task_signal": "none"}, 5_570_283_072),
        ("2b", {}, 1_694_030_720),
        ("2b", {"dense_groups": 0, "task_signal": "none"}, 1_693_783_872),
        ("1.5-5b", {"dense_groups": 0, "task_signal": "none"}, 5_570_676_352),
        # 128 more columns in, and 128 more rows with their biases out; then the task table.
        ("1.5-5b", {"task_signal": "prompt"}, 5_570_676_352 + 128 * 3072 + 128 * 3073),
        ("1.5-5b", {}, 5_571_463_936),
    ],
)
def test_parameter_counts_of_the_spec(family, changes, count):
    config = dataclasses.replace(of_family(family), **changes)
    network = build_network(config, dtype=torch.bfloat16, device="meta")
    assert sum(parameter.numel() for parameter in network.parameters()) == count
    assert all(parameter.is_meta for parameter in network.parameters())
    assert not list(network.buffers())


def test_official_shapes_of_the_5b():
    state = build_network(of_family("5b"), dtype=torch.bfloat16, device="meta").state_dict()
    expected = {
        "time_embed.0.weight": (512, 3072),
        "mixins.patch_embed.proj.weight": (3072, 32, 2, 2),
        "mixins.patch_embed.text_proj.weight": (3072, 4096),
        "mixins.adaln_layer.adaLN_modulations.41.1.weight": (36864, 512),
        "mixins.adaln_layer.query_layernorm_list.41.weight": (64,),
        "transformer.layers.41.attention.query_key_value.weight": (9216, 3072),
        "transformer.layers.41.mlp.dense_h_to_4h.weight": (12288, 3072),
        "mixins.final_layer.adaLN_modulation.1.weight": (6144, 512),
        "mixins.final_layer.linear.weight": (128, 3072),
        "mixins.task_embedding.table.weight": (2, 512),
    }
    assert {key: tuple(state[key].shape) for key in expected} == expected
    assert not any("position_embeddings" in key or "pos_embed." in key for key in state)


def test_official_shapes_of_the_5b_of_1_5():
    first, second = (
        {
            name: tuple(value.shape)
            for name, value in build_network(of_family(family), dtype=torch.bfloat16, device="meta")
            .state_dict()
            .items()
        }
        for family in ("5b", "1.5-5b")
    )
    assert first.keys() == second.keys()
    assert {key: second[key] for key in second if first[key] != second[key]} == {
        "mixins.patch_embed.proj.weight": (3072, 256),
        "mixins.final_layer.linear.weight": (256, 3072),
        "mixins.final_layer.linear.bias": (256,),
    }


def test_unset_weights_show_themselves():
    network = build_network(SMALL, dtype=torch.float32, device="cpu")
    assert run(network, inputs()).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["rotary", "sincos"])
def test_output_has_the_dtype_of_the_weights(dtype, kind):
    network = make(small(positions=kind), dtype=dtype)
    out = run(network, inputs())
    assert out.dtype == dtype
    assert out.shape == (2, 2, 32, 6, 8)
    assert out.isfinite().all()
    out.float().square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


@pytest.mark.parametrize("kind", ["rotary", "sincos"])
def test_any_even_size_works_on_the_first_call(kind):
    network = make(small(positions=kind))
    for height, width in ((2, 2), (14, 10), (4, 50)):
        out = run(network, inputs(height=height, width=width, frames=3))
        assert out.shape == (2, 3, 32, height, width)


def test_tables_made_while_sampling_serve_training():
    network = make(SMALL)
    batch = inputs(height=10, width=12)
    with torch.inference_mode():
        run(network, batch)
    run(network, batch).sum().backward()
    assert network.time_embed[0].weight.grad is not None


def test_samples_of_a_batch_do_not_meet():
    network = make(SMALL, dtype=torch.float64)
    batch = inputs(dtype=torch.float64)
    whole = run(network, batch)
    second = run(network, {key: value[1:] for key, value in batch.items()})
    torch.testing.assert_close(whole[1:], second, rtol=0, atol=1e-12)


def test_modulations_of_text_and_video_are_their_own():
    """Chunks 0-5 of the modulation drive video tokens, 6-11 text tokens, which come first."""
    network = make(small(num_layers=1), dtype=torch.float64)
    size = SMALL.hidden_size
    captured = {}
    mlp = network.transformer.layers[0].mlp.dense_h_to_4h
    mlp.register_forward_pre_hook(lambda _, args: captured.update(tokens=args[0].detach()))
    batch = inputs(dtype=torch.float64)
    run(network, batch)
    before = captured["tokens"]
    bias = network.get_mixin("adaln_layer").adaLN_modulations[0][1].bias
    with torch.no_grad():
        bias[9 * size : 10 * size] += 1.0  # shift of the text's MLP
    run(network, batch)
    moved = captured["tokens"] - before
    torch.testing.assert_close(moved[:, :6], torch.ones_like(moved[:, :6]))
    torch.testing.assert_close(moved[:, 6:], torch.zeros_like(moved[:, 6:]))


class TestRotary:
    def test_angles_in_closed_form(self):
        grid = positions.TokenGrid(text=2, frames=3, rows=2, columns=4)
        table = positions.rotary_table(
            grid, head_dim=64, device=torch.device("cpu"), dtype=torch.complex128
        )
        assert table.shape == (2 + 24, 32)
        assert torch.equal(table[:2], torch.ones_like(table[:2]))
        frame, row, column = 2, 1, 3
        token = table[2 + (frame * 2 + row) * 4 + column]
        pairs = [(frame, i, 16) for i in range(8)]
        pairs += [(row, i, 24) for i in range(12)] + [(column, i, 24) for i in range(12)]
        angles = torch.tensor([p * 10000 ** (-2 * i / d) for p, i, d in pairs], dtype=torch.float64)
        torch.testing.assert_close(token, torch.polar(torch.ones_like(angles), angles))

    def test_adjacent_channels_are_a_pair(self):
        grid = positions.TokenGrid(text=0, frames=2, rows=1, columns=1)
        table = positions.rotary_table(
            grid, head_dim=16, device=torch.device("cpu"), dtype=torch.complex64
        )
        x = torch.zeros(1, 1, 2, 16)
        x[..., 0] = 1
        turned = positions.rotate(x, table)[0, 0, 1]
        expected = torch.zeros(16)
        expected[:2] = torch.tensor([1.0, 1.0])
        expected[0], expected[1] = torch.tensor(1.0).cos(), torch.tensor(1.0).sin()
        torch.testing.assert_close(turned, expected)

    def test_bf16_keeps_float32_tables(self):
        positions.rotary_table.cache_clear()
        network = make(SMALL, dtype=torch.bfloat16)
        run(network, inputs())
        table = positions.rotary_table(
            positions.TokenGrid(text=6, frames=2, rows=3, columns=4),
            head_dim=32,
            device=torch.device("cpu"),
            dtype=torch.complex64,
        )
        assert positions.rotary_table.cache_info().hits == SMALL.num_layers
        assert table.dtype == torch.complex64

    def test_head_size_must_split_into_pairs(self):
        with pytest.raises(ValueError, match=r"multiple of 16.*72 / 3 = 24"):
            build_network(small(hidden_size=72, num_heads=3), dtype=torch.float32, device="meta")


def test_sincos_channels_are_frame_column_row():
    grid = positions.TokenGrid(text=3, frames=2, rows=3, columns=4)
    table = positions.sincos_table(
        grid,
        hidden_size=32,
        spatial_interpolation=1.875,
        device=torch.device("cpu"),
        dtype=torch.float64,
    )
    assert table.shape == (1, 3 + 24, 32)
    assert not table[:, :3].any()
    frame, row, column = 1, 2, 3
    token = table[0, 3 + (frame * 3 + row) * 4 + column]
    expected = []
    for position, size in ((frame, 8), (column / 1.875, 12), (row / 1.875, 12)):
        angles = [position * 10000 ** (-i / (size // 2)) for i in range(size // 2)]
        angles = torch.tensor(angles, dtype=torch.float64)
        expected += [angles.sin(), angles.cos()]
    torch.testing.assert_close(token, torch.cat(expected))


def test_timestep_waves_are_cosines_then_sines():
    waves = positions.timestep_waves(torch.tensor([999]), size=8)[0]
    angles = torch.tensor([999.0, 99.9, 9.99, 0.999])
    torch.testing.assert_close(waves, torch.cat([angles.cos(), angles.sin()]), atol=2e-4, rtol=0)


class TestTaskTable:
    def test_zero_rows_are_no_table_at_all(self):
        network = make(SMALL)
        plain = make(small(task_signal="none"))
        plain.load_state_dict(
            {k: v for k, v in network.state_dict().items() if "task_embedding" not in k}
        )
        network.get_mixin("task_embedding").table.weight.data.zero_()
        assert torch.equal(run(network, inputs()), run(plain, inputs()))

    def test_each_task_gives_its_own_output(self):
        network = make(SMALL)
        batch = inputs()
        outputs = [run(network, batch | {"task": torch.full((2,), task)}) for task in range(2)]
        assert (outputs[0] - outputs[1]).abs().mean() > 1e-3
        network.get_mixin("task_embedding").table.weight.data[1] = 0
        changed = [run(network, batch | {"task": torch.full((2,), task)}) for task in range(2)]
        assert torch.equal(changed[0], outputs[0])
        assert not torch.equal(changed[1], outputs[1])

    def test_zero_rows_learn(self):
        network = make(SMALL)
        table = network.get_mixin("task_embedding").table.weight
        table.data.zero_()
        run(network, inputs()).sum().backward()
        assert (table.grad.abs().amax(dim=1) > 0).all()

    def test_missing_task_is_refused(self):
        with pytest.raises(ValueError, match=r"task: expected ids of shape \(2,\).*got None"):
            run(make(SMALL), inputs() | {"task": None})

    def test_prompt_signal_ignores_the_id(self):
        network = make(small(task_signal="prompt"))
        assert torch.equal(run(network, inputs()), run(network, inputs() | {"task": None}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latents": torch.zeros(2, 2, 16, 6, 8)}, r"latents: expected \(b, t, 32, h, w\)"),
        ({"latents": torch.zeros(2, 2, 32, 5, 8)}, "divisible by 2, got 5x8"),
        ({"text": torch.zeros(2, 6, 21)}, r"text: expected \(2, n, 20\), got \(2, 6, 21\)"),
        ({"text": torch.zeros(1, 6, 20)}, r"text: expected \(2, n, 20\), got \(1, 6, 20\)"),
        ({"timesteps": torch.zeros(1)}, r"timesteps: expected \(2,\), got \(1,\)"),
    ],
)
def test_wrong_shapes_are_named(change, message):
    # Beside the network, whose shapes are checked by jaxtyping first when tests run.
    with pytest.raises(ValueError, match=message):
        check_inputs(config=SMALL, **(inputs() | change))


def test_frames_that_leave_a_patch_open_are_named():
    message = r"number of frames divisible by 2 \(copies of the first in front .*\), got 3"
    with pytest.raises(ValueError, match=message):
        run(make(small(patch_size_t=2)), inputs(frames=3))


def test_patches_of_other_lengths_are_refused():
    with pytest.raises(ValueError, match=r"model.patch_size_t: expected 1 or 2, got 3"):
        build_network(small(patch_size_t=3), dtype=torch.float32, device="meta")


def test_patches_over_time_start_as_the_others():
    """Xavier-uniform in and out, with the fans of the matrices."""
    network = build_network(small(patch_size_t=2), dtype=torch.float32, device="cpu")
    initialise(network, 0)
    state = network.state_dict()
    bound = (6 / (64 + 32 * 8)) ** 0.5
    for key in ("mixins.patch_embed.proj", "mixins.final_layer.linear"):
        assert 0.99 * bound < state[f"{key}.weight"].abs().max() <= bound
        assert state[f"{key}.weight"].std() == pytest.approx(bound / 3**0.5, rel=0.02)
        assert not state[f"{key}.bias"].any()


def test_the_network_checks_its_inputs():
    with pytest.raises(ValueError, match=r"latents: expected \(b, t, 32, h, w\)"):
        run(make(SMALL), inputs() | {"latents": torch.zeros(2, 2, 16, 6, 8)})


class TestCheckpointing:
    def gradients(self, mode):
        network = make(small(activation_checkpointing=mode, num_layers=4))
        batch = inputs()
        batch["latents"].requires_grad_()
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x: (saved.append(x.numel()), x)[1], lambda x: x
        ):
            out = run(network, batch)
        out.square().sum().backward()
        gradients = {name: p.grad for name, p in network.named_parameters()}
        return gradients | {"latents": batch["latents"].grad}, sum(saved)

    def test_modes_give_equal_gradients_and_less_memory(self):
        reference, most = self.gradients("none")
        selective, fewer = self.gradients("selective")
        full, least = self.gradients("full")
        for name, gradient in reference.items():
            assert torch.equal(selective[name], gradient), name
            assert torch.equal(full[name], gradient), name
        assert least < 0.5 * fewer < 0.5 * most

    @pytest.mark.parametrize(("mode", "layers"), [("none", 0), ("selective", 2), ("full", 4)])
    def test_how_many_layers_are_recomputed(self, mode, layers):
        network = make(small(activation_checkpointing=mode, num_layers=4))
        calls = []
        for layer in network.transformer.layers:
            layer.mlp.register_forward_hook(lambda *_: calls.append(1))
        out = run(network, inputs())
        assert len(calls) == 4
        out.sum().backward()
        assert len(calls) == 4 + layers


class TestInitialise:
    def test_equal_seeds_give_equal_weights(self):
        networks = [build_network(SMALL, dtype=torch.float32, device="cpu") for _ in range(3)]
        state = torch.random.get_rng_state()
        for network, seed in zip(networks, (3, 3, 4), strict=True):
            initialise(network, seed)
        assert torch.equal(state, torch.random.get_rng_state())
        first, second, third = (network.state_dict() for network in networks)
        assert all(torch.equal(first[key], second[key]) for key in first)
        assert not torch.equal(first["time_embed.0.weight"], third["time_embed.0.weight"])

    def test_spread_of_each_kind_of_weight(self):
        config = small(hidden_size=256, num_heads=4, time_embed_dim=64, num_layers=2)
        network = build_network(config, dtype=torch.float32, device="cpu")
        initialise(network, 0)
        state = network.state_dict()
        layer, mixin = "transformer.layers.1.", "mixins."
        spread = {
            layer + "attention.query_key_value.weight": 0.02,
            layer + "mlp.dense_h_to_4h.weight": 0.02,
            layer + "attention.dense.weight": 0.02 / 4**0.5,
            layer + "mlp.dense_4h_to_h.weight": 0.02 / 4**0.5,
            # Uniform in [-b, b] has deviation b / sqrt(3).
            mixin + "patch_embed.proj.weight": (6 / (256 + 128)) ** 0.5 / 3**0.5,
            mixin + "final_layer.linear.weight": (6 / (256 + 128)) ** 0.5 / 3**0.5,
            mixin + "patch_embed.text_proj.weight": 20**-0.5 / 3**0.5,
            mixin + "adaln_layer.adaLN_modulations.1.1.weight": 64**-0.5 / 3**0.5,
            "time_embed.0.weight": 256**-0.5 / 3**0.5,
        }
        for name, deviation in spread.items():
            assert state[name].std().item() == pytest.approx(deviation, rel=0.05), name
        for name in ("attention.query_key_value.bias", "mlp.dense_4h_to_h.bias"):
            assert not state[layer + name].any()
        assert not state["mixins.task_embedding.table.weight"].any()
        assert not state["mixins.final_layer.linear.bias"].any()
        assert (state["mixins.final_layer.norm_final.weight"] == 1).all()
        assert state[mixin + "adaln_layer.adaLN_modulations.1.1.bias"].any()
        assert all(value.isfinite().all() for value in state.values())


@pytest.mark.parametrize(
    "changes", [{}, {"dense_groups": 2}, {"dense_groups": 0}, {"patch_size_t": 2}]
)
def test_flops_equal_the_counter(changes):
    config = small(**changes)
    network = make(config)
    # Three latent frames are four for patches of two.
    frames = 4 if config.patch_size_t == 2 else 3
    batch = inputs(config, batch=1, frames=frames, height=10, width=12)
    # The counter does not know the CPU's fused attention, but the products inside the plain one.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run(network, batch)
    assert forward_flops(config, 3, 10, 12) == counter.get_total_flops()


@pytest.mark.parametrize(("family", "teraflops"), [("5b", 332.2), ("2b", 120.0)])
def test_flops_of_the_spec(family, teraflops):
    flops = forward_flops(of_family(family), 13, 60, 90)
    assert flops / 1e12 == pytest.approx(teraflops, rel=2e-3)


def test_flops_of_1_5_at_its_own_size():
    flops = forward_flops(of_family("1.5-5b"), 21, 96, 170)
    assert flops / 1e12 == pytest.approx(1479, rel=1e-3)
    assert flops == forward_flops(of_family("1.5-5b"), 22, 96, 170)


def test_norms_biases_and_the_task_table_do_not_decay():
    network = make(SMALL)
    decay, keep = weight_decay_groups(network)
    assert keep["weight_decay"] == 0.0
    assert "weight_decay" not in decay
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    decayed = {names[id(parameter)] for parameter in decay["params"]}
    kept = {names[id(parameter)] for parameter in keep["params"]}
    assert decayed | kept == set(names.values())
    assert not decayed & kept
    assert "mixins.task_embedding.table.weight" in kept
    assert all(name.endswith(".weight") and "norm" not in name for name in decayed)
    assert all("norm" in name or name.endswith("bias") or "table" in name for name in kept)


def test_a_copy_is_independent():
    """An average of the weights is kept in a deep copy; SAT's hooks must point into it."""
    network = make(SMALL)
    twin = copy.deepcopy(network)
    before = run(network, inputs())
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(1.5)
    assert torch.equal(run(network, inputs()), before)
    assert not torch.equal(run(twin, inputs()), before)
