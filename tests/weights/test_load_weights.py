"""Weights from every place, and what is said when they do not fit."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from sat_udpdiff.config import Config, InitConfig, ModelConfig
from sat_udpdiff.model.transformer import build_network, initialise
from sat_udpdiff.weights.find import find_weights
from sat_udpdiff.weights.key_map import sat_to_diffusers
from sat_udpdiff.weights.load import load_network_weights

BASE = ModelConfig(
    family="tiny",
    num_layers=2,
    hidden_size=32,
    num_heads=2,
    time_embed_dim=16,
    text_dim=8,
    text_length=4,
    latent_channels=4,
    dense_groups=0,
    task_signal="none",
)
DENSE = replace(BASE, dense_groups=1, task_signal="embedding")


def network(model: ModelConfig):
    return build_network(model, dtype=torch.float32, device="cpu")


@pytest.fixture
def base_state() -> dict[str, torch.Tensor]:
    """A 16-channel network (4 here) with every weight random."""
    generator = torch.Generator().manual_seed(3)
    state = network(BASE).state_dict()
    return {key: torch.randn(value.shape, generator=generator) for key, value in state.items()}


@pytest.fixture
def base_file(tmp_path, base_state):
    path = tmp_path / "base.safetensors"
    save_file(base_state, path)
    return path


def load(source, model: ModelConfig = DENSE, **options) -> dict[str, torch.Tensor]:
    made = network(model)
    config = Config(model=model, init=InitConfig(weights=None if source is None else str(source)))
    load_network_weights(made, config, **options)
    return made.state_dict()


def test_null_draws_from_the_seed():
    expected = network(DENSE)
    initialise(expected, 0)
    loaded = load(None)
    assert all(loaded[key].equal(value) for key, value in expected.state_dict().items())


def test_a_base_file_is_expanded_once(base_file, base_state, tmp_path):
    first = load(base_file)
    key = "mixins.patch_embed.proj.weight"
    assert first[key].equal(torch.cat([base_state[key]] * 2, dim=1))
    again = tmp_path / "expanded.safetensors"
    save_file(first, again)
    second = load(again)
    assert all(second[key].equal(first[key]) for key in first)


def test_a_baseline_takes_the_file_as_it_is(base_file, base_state):
    loaded = load(base_file, BASE)
    assert all(loaded[key].equal(base_state[key]) for key in base_state)


def test_a_diffusers_folder_gives_the_same(base_file, base_state, tmp_path):
    folder = tmp_path / "pipeline" / "transformer"
    folder.mkdir(parents=True)
    renamed = {k: v.contiguous() for k, v in sat_to_diffusers(base_state).items()}
    save_file(renamed, folder / "diffusion_pytorch_model.safetensors")
    expected = load(base_file)
    for place in (folder, folder.parent):
        loaded = load(place)
        assert all(loaded[key].equal(expected[key]) for key in expected)


def test_a_sat_checkpoint_folder_gives_the_same(base_file, base_state, tmp_path):
    folder = tmp_path / "sat" / "1"
    folder.mkdir(parents=True)
    module = {f"model.diffusion_model.{key}": value for key, value in base_state.items()}
    module["first_stage_model.decoder.weight"] = torch.zeros(3)
    torch.save({"module": module}, folder / "mp_rank_00_model_states.pt")
    expected, loaded = load(base_file), load(folder.parent)
    assert all(loaded[key].equal(expected[key]) for key in expected)


def test_of_several_sat_saves_the_one_that_latest_names(base_state, tmp_path):
    for step in ("1000", "2000", "3000"):
        (tmp_path / step).mkdir()
        torch.save({"module": base_state}, tmp_path / step / "mp_rank_00_model_states.pt")
    with pytest.raises(ValueError, match=r"a file `latest` .* got 1000, 2000, 3000"):
        find_weights(str(tmp_path), ema=False)
    (tmp_path / "latest").write_text("2000\n")
    assert find_weights(str(tmp_path), ema=False).parent.name == "2000"


def test_averaged_weights_are_not_taken_for_plain_ones(base_file):
    for weights in (str(base_file), "tiny"):
        with pytest.raises(ValueError, match="--ema: expected a run or checkpoint folder"):
            find_weights(weights, ema=True)


def test_a_hub_that_does_not_answer_is_one_line(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"weights: no folder 'runs/bse' here, and the hub id"):
        find_weights("runs/bse", ema=False)


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    class Payload:
        def __reduce__(self):
            return (print, ("ran",))

    path = tmp_path / "model.pt"
    torch.save({"module": Payload()}, path)
    with pytest.raises(ValueError, match=r"model\.pt: this pickle asks for print"):
        load(path)


def test_nothing_there_is_said_with_what_was_expected(tmp_path):
    with pytest.raises(ValueError, match=r"found nothing at '\./nowhere/at/all'"):
        load("./nowhere/at/all")
    with pytest.raises(ValueError, match=r"expected a run, one of its checkpoints"):
        load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"\x08\x00\x00\x00\x00\x00\x00\x00{}"])
def test_a_damaged_file_is_named(content, tmp_path):
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.safetensors"):
        load(path)


def test_a_file_that_was_cut_short_is_named(base_file):
    base_file.write_bytes(base_file.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"base\.safetensors: not a readable safetensors file"):
        load(base_file)


def test_a_wrong_number_of_channels_is_named(base_file, base_state):
    key = "mixins.patch_embed.proj.weight"
    save_file(base_state | {key: torch.zeros(32, 6, 2, 2)}, base_file)
    with pytest.raises(ValueError, match=r"base\.safetensors: .*proj\.weight.*4 channels.*got"):
        load(base_file)


def test_missing_unexpected_and_misshaped_keys_are_listed(base_file, base_state):
    state = dict(base_state)
    del state["time_embed.0.bias"]
    state["extra.weight"] = torch.zeros(1)
    state["time_embed.2.bias"] = torch.zeros(17)
    save_file(state, base_file)
    with pytest.raises(ValueError, match=r"not the weights of this network") as caught:
        load(base_file)
    message = str(caught.value)
    assert "1 missing key: time_embed.0.bias" in message
    assert "1 unexpected key: extra.weight" in message
    assert "1 mis-shaped key: time_embed.2.bias (expected (16,), got (17,))" in message


def test_sampling_refuses_a_network_without_dense_channels(base_file):
    with pytest.raises(ValueError, match=r"base\.safetensors"):
        load(base_file, expand=False)


def test_an_index_may_not_point_out_of_its_folder(base_state, tmp_path):
    folder = tmp_path / "transformer"
    folder.mkdir()
    renamed = {k: v.contiguous() for k, v in sat_to_diffusers(base_state).items()}
    save_file(renamed, tmp_path / "diffusion_pytorch_model.safetensors")
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "../diffusion_pytorch_model.safetensors"}}'
    )
    with pytest.raises(ValueError, match=r"the shard diffusion_pytorch_model\.safetensors is"):
        load(folder)
    assert load_file(tmp_path / "diffusion_pytorch_model.safetensors")
