"""Adapters into a network: of a run, of a LoRA file, and what is said when they do not fit."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from sat_udpdiff import convert
from sat_udpdiff.config import Config, InitConfig, LoraConfig, ModelConfig
from sat_udpdiff.config_io import load_config, save_config
from sat_udpdiff.model.low_rank import add_adapters, is_adapter, is_trained, merge_adapters
from sat_udpdiff.model.transformer import build_network
from sat_udpdiff.weights.adapted import check_start, load_weights
from sat_udpdiff.weights.lora_map import DENSE_FILE, LORA_FILE, read_lora, write_lora
from tests.weights.test_load_weights import BASE, DENSE

LORA = LoraConfig(rank=4, alpha=6.0)


def network(model: ModelConfig, dtype=torch.float32):
    return build_network(model, dtype=dtype, device="cpu")


def randomised(state, seed):
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.randn(value.shape, generator=generator) for key, value in state.items()}


@pytest.fixture
def base_file(tmp_path):
    path = tmp_path / "base.safetensors"
    save_file(randomised(network(BASE).state_dict(), 3), path)
    return path


def config_of(base, model=DENSE, lora=LORA):
    return Config(model=model, init=InitConfig(weights=base and str(base)), lora=lora)


@pytest.fixture
def checkpoint(base_file, tmp_path):
    """What a LoRA run on `base_file` would save, every trained weight random."""
    made = network(DENSE)
    loaded = load_weights(made, config_of(base_file))
    trained = {k: v for k, v in made.state_dict().items() if is_trained(k, DENSE)}
    folder = tmp_path / "step"
    folder.mkdir()
    path = folder / "network.safetensors"
    save_file(randomised(trained, 5), path, metadata={"base_sha256": loaded.base_sha256})
    save_config(config_of(base_file), folder / "config.yaml")
    return path


def test_a_start_has_the_expanded_base_and_fresh_adapters(base_file):
    plain, adapted, by_hand = network(DENSE), network(DENSE), network(DENSE)
    load_weights(plain, config_of(base_file, lora=LoraConfig()))
    loaded = load_weights(adapted, config_of(base_file))
    by_hand.load_state_dict(plain.state_dict())
    add_adapters(by_hand, LORA, seed=0)
    expected = by_hand.state_dict()
    assert loaded.source == f"{base_file}, expanded from 4 to 8 channels"
    assert adapted.state_dict().keys() == expected.keys()
    assert all(value.equal(expected[name]) for name, value in adapted.state_dict().items())
    assert any(map(is_adapter, expected))


@pytest.mark.parametrize("expand", [True, False], ids=["resumed", "sampled"])
def test_a_checkpoint_lies_over_its_base(expand, base_file, checkpoint):
    made, plain = network(DENSE), network(DENSE)
    load_weights(made, config_of(base_file), weights=str(checkpoint), expand=expand)
    load_weights(plain, config_of(base_file, lora=LoraConfig()))
    saved, base = load_file(checkpoint), plain.state_dict()
    for name, value in made.state_dict().items():
        assert value.equal(saved[name] if name in saved else base[name]), name
    assert not saved["mixins.final_layer.linear.bias"].equal(base["mixins.final_layer.linear.bias"])


@pytest.mark.parametrize("model", [DENSE, BASE], ids=["dense", "baseline"])
def test_whole_weights_get_adapters_that_change_nothing(model, base_file, tmp_path):
    """As for a run whose adapters were merged: it brings its configuration with `lora.rank`."""
    whole = tmp_path / "merged.safetensors"
    save_file(randomised(network(model).state_dict(), 8), whole)
    made = network(model)
    load_weights(made, config_of(base_file, model), weights=str(whole), expand=False)
    state, saved = made.state_dict(), load_file(whole)
    assert all(state[name].equal(saved[name]) for name in saved)
    assert not any(state[name].any() for name in state if ".lora_B." in name)


def test_another_base_is_refused(base_file, checkpoint, tmp_path):
    other = tmp_path / "other.safetensors"
    state = load_file(base_file)
    state["transformer.layers.1.mlp.dense_4h_to_h.weight"][0, 0] += 1
    save_file(state, other)
    with pytest.raises(ValueError, match=r"trained on other base weights than init\.weights=.*oth"):
        load_weights(network(DENSE), config_of(other), weights=str(checkpoint))


def test_what_is_trained_may_differ_in_the_base(base_file, checkpoint, tmp_path):
    """The checkpoint has it in any case, so a base expanded in another way serves as well."""
    config = replace(config_of(base_file), init=InitConfig(weights=str(base_file), dense_scale=0.5))
    load_weights(network(DENSE), config, weights=str(checkpoint))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_base_is_known_in_another_precision(dtype, base_file, checkpoint):
    load_weights(network(DENSE, dtype), config_of(base_file), weights=str(checkpoint))


def test_a_missing_base_is_one_line_that_names_the_adapters(base_file, checkpoint):
    base_file.unlink()
    with pytest.raises(ValueError, match=r"step/network\.safetensors: needs the base .*found noth"):
        load_weights(network(DENSE), config_of(base_file), weights=str(checkpoint))


def test_adapters_are_no_whole_weights(base_file, checkpoint):
    with pytest.raises(ValueError, match=r"network\.safetensors: holds adapters; set lora\.rank"):
        load_weights(
            network(DENSE), config_of(base_file, lora=LoraConfig()), weights=str(checkpoint)
        )
    with pytest.raises(ValueError, match=r"init\.weights: expected whole weights, got adapters"):
        load_weights(network(DENSE), config_of(checkpoint))


@pytest.mark.parametrize(
    ("lora", "expected"),
    [
        (LoraConfig(rank=2), r"mis-shaped keys: .*lora_A\.0\.weight.* \(expected \(2, 32\), got"),
        (LoraConfig(rank=4, targets=("to_q",)), r"12 unexpected keys: transformer\.layers\.\{0-1"),
        (LoraConfig(rank=4, targets=("to_q", "to_k", "to_v", "to_out.0", "ff.net.2")), "4 missing"),
    ],
)
def test_adapters_of_another_kind_are_named(lora, expected, base_file, checkpoint):
    with pytest.raises(ValueError, match=expected):
        load_weights(network(DENSE), config_of(base_file, lora=lora), weights=str(checkpoint))


def test_a_start_is_checked_before_it_is_made(base_file, checkpoint, tmp_path):
    check_start(config_of(base_file))
    with pytest.raises(ValueError, match=r"init\.weights: expected whole weights, got adapters"):
        check_start(config_of(checkpoint))
    with pytest.raises(ValueError, match=r"lora\.weights: .* no file .*nowhere"):
        check_start(config_of(base_file, lora=replace(LORA, weights="nowhere")))


class TestConverter:
    """What the converter makes of a LoRA checkpoint."""

    def convert(self, checkpoint, folder, *words):
        return convert.main([str(checkpoint), str(folder), *words])

    def test_the_lora_file_and_back_is_exact(self, base_file, checkpoint, tmp_path, capsys):
        out = tmp_path / "out"
        assert self.convert(checkpoint, out, "--to", "lora") == 0
        assert f"note: {DENSE_FILE} holds what was trained as a whole" in capsys.readouterr().out
        saved = load_file(checkpoint)
        file, adapters = read_lora(str(out), lora=LORA, num_layers=2)
        assert file == out / LORA_FILE
        assert adapters.keys() == {name for name in saved if is_adapter(name)}
        assert all(adapters[name].equal(saved[name]) for name in adapters)
        dense = load_file(out / DENSE_FILE)
        assert dense.keys() == {
            "patch_embed.proj.weight",
            "patch_embed.proj.bias",
            "proj_out.weight",
            "proj_out.bias",
            "time_embedding.task_table.weight",
        }
        assert dense["proj_out.weight"].equal(saved["mixins.final_layer.linear.weight"])
        # A second run may begin with them.
        made = network(DENSE)
        loaded = load_weights(made, config_of(base_file, lora=replace(LORA, weights=str(file))))
        assert f"adapters {file}" in loaded.source
        assert all(made.state_dict()[name].equal(value) for name, value in adapters.items())

    @pytest.mark.parametrize("base_dtype", [torch.float32, torch.bfloat16])
    def test_other_forms_are_the_merged_network(self, base_dtype, base_file, checkpoint, tmp_path):
        """Sampled without adapters, from the converted folder alone."""
        base = {name: value.to(base_dtype) for name, value in load_file(base_file).items()}
        save_file(base, base_file)
        if base_dtype == torch.bfloat16:
            # fp32 was hashed as bf16: the same base.
            assert base["time_embed.0.weight"].dtype == torch.bfloat16
        adapted, merged = network(DENSE), network(DENSE)
        load_weights(adapted, config_of(base_file), weights=str(checkpoint))
        assert self.convert(checkpoint, tmp_path / "ours", "--to", "udpdiff") == 0
        config = load_config([str(tmp_path / "ours" / "config.yaml")])
        assert config.lora == LoraConfig()
        load_weights(merged, config, weights=str(tmp_path / "ours"), expand=False)
        expected = merge_adapters(adapted.state_dict(), LORA)
        state = merged.state_dict()
        assert state.keys() == expected.keys()
        assert all(state[name].equal(expected[name]) for name in expected)
        for form in ("diffusers", "sat"):
            assert self.convert(checkpoint, tmp_path / form, "--to", form) == 0
            assert self.convert(tmp_path / form, tmp_path / f"{form}_back", "--to", "udpdiff") == 0
            back = load_file(tmp_path / f"{form}_back" / "network.safetensors")
            assert all(back[name].equal(expected[name]) for name in expected)

    def test_the_wrong_base_is_refused_before_anything_is_written(
        self, base_file, checkpoint, tmp_path, capsys
    ):
        state = load_file(base_file)
        state["time_embed.0.bias"][0] += 1
        save_file(state, base_file)
        assert self.convert(checkpoint, tmp_path / "out", "--to", "diffusers") == 2
        assert "trained on other base weights than init.weights=" in capsys.readouterr().err
        other = tmp_path / "other.safetensors"
        base_file.rename(other)
        assert self.convert(checkpoint, tmp_path / "out", "--to", "diffusers") == 2
        (message,) = capsys.readouterr().err.splitlines()
        assert "needs the base weights of its run" in message
        assert not (tmp_path / "out").exists()
        state["time_embed.0.bias"][0] -= 1
        save_file(state, other)
        moved = f"init.weights={other}"
        assert self.convert(checkpoint, tmp_path / "out", moved, "--to", "udpdiff") == 0

    def test_whole_weights_are_no_lora(self, base_file, tmp_path, capsys):
        words = ("--base", str(checkpoint_config(tmp_path)), "--to", "lora")
        assert self.convert(base_file, tmp_path / "out", *words) == 2
        assert "expected a LoRA run or one of its checkpoints" in capsys.readouterr().err


def checkpoint_config(folder):
    """A value file of the baseline."""
    save_config(config_of(None, BASE), folder / "baseline.yaml")
    return folder / "baseline.yaml"


class TestForeignFiles:
    """LoRA files that are not what the configuration says, or no LoRA file at all."""

    @pytest.fixture
    def file(self, tmp_path):
        made = network(BASE)
        add_adapters(made, LORA, seed=0)
        return write_lora(tmp_path / "lora", made.state_dict(), lora=LORA, model=BASE)[0]

    def refused(self, place, match, *, lora=LORA, num_layers=2):
        with pytest.raises(ValueError, match=match) as caught:
            read_lora(str(place), lora=lora, num_layers=num_layers)
        assert "\n" not in str(caught.value)
        assert "lora.weights" in str(caught.value)

    def test_other_settings_are_named(self, file):
        changed = replace(LORA, rank=8, alpha=None)
        self.refused(file, r"was made with lora\.rank=4, got 8", lora=changed)
        self.refused(file, r"lora\.alpha=6, got 4", lora=replace(LORA, alpha=None))
        changed = replace(LORA, targets=("to_q",))
        self.refused(file, r"lora\.targets=\[to_k,to_out\.0,to_q,to_v\], got", lora=changed)
        self.refused(file, r"in each of 3 layers, got 16 tensors of 2 layers", num_layers=3)

    def test_without_metadata_alpha_is_the_rank(self, file):
        save_file(load_file(file), file)
        self.refused(file, r"lora\.alpha=4, got 6")
        _, adapters = read_lora(str(file), lora=replace(LORA, alpha=None), num_layers=2)
        assert len(adapters) == 16

    def test_no_file_and_no_lora_file(self, file, tmp_path):
        self.refused(tmp_path / "nowhere", "no file .*nowhere")
        self.refused(tmp_path, "no file .*pytorch_lora_weights")
        file.write_bytes(file.read_bytes()[:-7])
        self.refused(file, "is no readable LoRA file")

    def test_keys_that_are_no_adapter_are_named(self, file):
        tensors = load_file(file)
        save_file(tensors | {"transformer.proj_out.lora_A.weight": torch.zeros(4, 8)}, file)
        self.refused(file, r"expected adapters of to_q, .*1 unexpected key: proj_out\.lora_A")
        half = dict(list(tensors.items())[1:])
        metadata = {"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": 6})}
        save_file(half, file, metadata=metadata)
        self.refused(file, "got 15 tensors of 2 layers")

    @pytest.mark.parametrize(
        "setting", [{"use_dora": True}, {"use_rslora": True}, {"rank_pattern": {"to_q": 2}}]
    )
    def test_kinds_of_peft_that_are_no_plain_lora_are_refused(self, setting, file):
        settings = {f"transformer.{key}": value for key, value in setting.items()}
        metadata = {"lora_adapter_metadata": json.dumps(settings)}
        save_file(load_file(file), file, metadata=metadata)
        self.refused(file, rf"{next(iter(setting))}=.* is not supported")
