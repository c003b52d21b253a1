"""Our network against UDPDiffTransformer3DModel, every weight randomised."""

import dataclasses

import pytest
import torch

from sat_udpdiff.config import Config, ModelConfig
from sat_udpdiff.model.transformer import build_network
from sat_udpdiff.pipeline import UDPDiffTransformer3DModel
from sat_udpdiff.pipeline.folder import transformer_config
from sat_udpdiff.weights.key_map import DIFFUSERS_TASK_TABLE, sat_to_diffusers

LAYERS, TEXT, TEXT_DIM = 3, 10, 40
CONFIG = Config()
MODEL = ModelConfig(
    family="tiny",
    num_layers=LAYERS,
    hidden_size=128,
    num_heads=2,
    time_embed_dim=48,
    text_dim=TEXT_DIM,
    text_length=TEXT,
    activation_checkpointing="none",
)
BOUNDS = pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 5e-5), (torch.float64, 3e-7)])


def make_pair(dtype, **changes):
    """Ours, and the class that a folder of the same configuration would open."""
    model = dataclasses.replace(MODEL, **changes)
    # Another native size than the inputs have: the folder must not fix the size.
    data = dataclasses.replace(CONFIG.data, num_frames=9, height=64, width=96)
    config = dataclasses.replace(CONFIG, model=model, data=data)
    ours = build_network(model, dtype=dtype, device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if "norm" in name and name.endswith("weight") and parameter.ndim == 1:
                noise = 1 + 0.2 * noise
            elif parameter.ndim == 1:
                noise = 0.2 * noise
            elif "task_embedding" not in name:
                noise = noise / parameter[0].numel() ** 0.5
            parameter.copy_(noise)
    theirs = UDPDiffTransformer3DModel.from_config(transformer_config(config)).to(dtype)
    theirs.load_state_dict(sat_to_diffusers(ours.state_dict()), strict=True)
    return ours, theirs


def make_inputs(dtype, *, size=(5, 12, 18), channels=32):
    generator = torch.Generator().manual_seed(1)
    frames, height, width = size
    latents = torch.randn(2, frames, channels, height, width, generator=generator, dtype=dtype)
    text = torch.randn(2, TEXT, TEXT_DIM, generator=generator, dtype=dtype)
    return latents, text, torch.tensor([7, 981]), torch.tensor([1, 0])


@torch.no_grad()
def difference(ours, theirs, latents, text, timesteps, task):
    out = ours(latents, timesteps=timesteps, text=text, task=task)
    reference = theirs(latents, text, timesteps, task=task, return_dict=False)[0]
    assert reference.std() > 0.3
    return (out - reference).abs().max().item()


@BOUNDS
@pytest.mark.parametrize("positions", ["rotary", "sincos"])
@pytest.mark.parametrize("patch", [1, 2])
def test_outputs_are_equal_with_a_task_table(positions, patch, dtype, bound):
    pair = make_pair(dtype, positions=positions, patch_size=patch)
    assert difference(*pair, *make_inputs(dtype)) < bound


@BOUNDS
def test_outputs_are_equal_with_patches_over_time(dtype, bound):
    """CogVideoX 1.5."""
    pair = make_pair(dtype, patch_size_t=2)
    assert difference(*pair, *make_inputs(dtype, size=(6, 12, 18))) < bound


@BOUNDS
@pytest.mark.parametrize("signal", ["none", "prompt"])
def test_outputs_are_equal_without_a_task_table(signal, dtype, bound):
    ours, theirs = make_pair(dtype, task_signal=signal)
    assert DIFFUSERS_TASK_TABLE not in theirs.state_dict()
    assert difference(ours, theirs, *make_inputs(dtype)) < bound


@pytest.mark.parametrize("positions", ["rotary", "sincos"])
@pytest.mark.parametrize("size", [(1, 4, 4), (3, 16, 6), (2, 6, 22)])
def test_other_sizes_are_equal_without_any_preparation(positions, size):
    pair = make_pair(torch.float32, positions=positions)
    assert difference(*pair, *make_inputs(torch.float32, size=size)) < 5e-5


def test_the_task_moves_every_output():
    _, theirs = make_pair(torch.float32)
    latents, text, timesteps, _ = make_inputs(torch.float32)
    with torch.no_grad():
        zeros, ones = (
            theirs(latents, text, timesteps, task=torch.full((2,), k), return_dict=False)[0]
            for k in (0, 1)
        )
    assert (zeros - ones).abs().mean() > 0.05


def test_a_missing_task_and_a_foreign_condition_are_refused():
    _, theirs = make_pair(torch.float32)
    latents, text, timesteps, task = make_inputs(torch.float32)
    with pytest.raises(ValueError, match=r"task: expected ids of shape \(b,\), got none"):
        theirs(latents, text, timesteps)
    with pytest.raises(ValueError, match=r"timestep_cond: .* pass task=ids"):
        theirs(latents, text, timesteps, timestep_cond=task, task=task)


def test_gradients_reach_the_table_under_checkpointing():
    _, theirs = make_pair(torch.float32)
    theirs.train().enable_gradient_checkpointing()
    latents, text, timesteps, task = make_inputs(torch.float32)
    theirs(latents, text, timesteps, task=task, return_dict=False)[0].square().mean().backward()
    gradient = theirs.get_parameter(DIFFUSERS_TASK_TABLE).grad
    assert (gradient.abs().amax(1) > 0).all()


def test_a_saved_class_comes_back_with_its_tasks(tmp_path, caplog):
    _, theirs = make_pair(torch.float32)
    theirs.register_to_config(tasks=["depth"])
    theirs.save_pretrained(tmp_path)
    again, info = UDPDiffTransformer3DModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert "not expected" not in caplog.text
    assert list(again.config["tasks"]) == ["depth"]
    assert again.norm_out.norm.eps == 1e-6
    assert all(
        torch.equal(value, again.state_dict()[key]) for key, value in theirs.state_dict().items()
    )
