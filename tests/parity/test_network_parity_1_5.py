"""CogVideoX 1.5: our network, training input and sampling against diffusers and CogVideo.

Patches hold two latent frames, and clips of an odd number of them begin with a copy of the first.
"""

import dataclasses

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from torch.testing import assert_close

from sat_udpdiff.config import ModelConfig
from sat_udpdiff.model.patches import repeat_first_frame
from sat_udpdiff.model.transformer import build_network
from sat_udpdiff.weights.key_map import diffusers_to_sat, sat_to_diffusers
from tests.parity.test_network_parity import randomise

HEAD, HEADS, LAYERS = 64, 2, 3
TEXT, TEXT_DIM = 10, 40

CONFIG = ModelConfig(
    family="1.5-5b",
    num_layers=LAYERS,
    hidden_size=HEAD * HEADS,
    num_heads=HEADS,
    time_embed_dim=48,
    patch_size_t=2,
    text_dim=TEXT_DIM,
    text_length=TEXT,
    activation_checkpointing="none",
    task_signal="none",
)


def make_pair(dtype, *, groups=1, patch=2, patch_bias=False):
    """Ours, and theirs with the settings of the released 1.5 weights and the same numbers."""
    config = dataclasses.replace(CONFIG, dense_groups=groups, patch_size=patch)
    ours = randomise(build_network(config, dtype=dtype, device="cpu"))
    theirs = CogVideoXTransformer3DModel(
        num_attention_heads=HEADS,
        attention_head_dim=HEAD,
        in_channels=16 * (1 + groups),
        out_channels=16 * (1 + groups),
        time_embed_dim=config.time_embed_dim,
        text_embed_dim=TEXT_DIM,
        num_layers=LAYERS,
        patch_size=patch,
        patch_size_t=2,
        patch_bias=patch_bias,
        sample_width=300,
        sample_height=300,
        sample_frames=81,
        max_text_seq_length=TEXT,
        use_rotary_positional_embeddings=True,
    ).to(dtype)
    theirs.norm_out.norm.eps = 1e-6
    theirs.load_state_dict(sat_to_diffusers(ours.state_dict()), strict=True)
    return ours, theirs


def make_inputs(dtype, *, frames=4, height=12, width=18, channels=32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(2, frames, channels, height, width, generator=generator, dtype=dtype)
    text = torch.randn(2, TEXT, TEXT_DIM, generator=generator, dtype=dtype)
    return latents, text, torch.tensor([7, 981])


def run_ours(network, latents, text, timesteps):
    return network(latents, timesteps=timesteps, text=text)


def run_theirs(network, latents, text, timesteps):
    """As CogVideoXPipeline calls it for 1.5: rotary tables sliced out of 150 x 150."""
    patch = network.config.patch_size
    rotary = get_3d_rotary_pos_embed(
        HEAD,
        None,
        (latents.shape[3] // patch, latents.shape[4] // patch),
        (latents.shape[1] + 1) // 2,
        grid_type="slice",
        max_size=(300 // patch, 300 // patch),
    )
    return network(latents, text, timesteps, image_rotary_emb=rotary, return_dict=False)[0]


def largest_difference(a, b):
    return (a - b).abs().max().item()


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 5e-5), (torch.float64, 3e-7)])
@pytest.mark.parametrize("groups", [0, 1])
@pytest.mark.parametrize("patch_bias", [False, True])
def test_outputs_equal_diffusers(groups, patch_bias, dtype, bound):
    """`patch_bias` is false in the released configuration, and the projection has a bias anyway."""
    ours, theirs = make_pair(dtype, groups=groups, patch_bias=patch_bias)
    inputs = make_inputs(dtype, channels=16 * (1 + groups))
    with torch.no_grad():
        out, reference = run_ours(ours, *inputs), run_theirs(theirs, *inputs)
    assert reference.std() > 0.3
    assert largest_difference(out, reference) < bound


@pytest.mark.parametrize("size", [(2, 2, 2), (6, 16, 6), (2, 6, 22), (12, 4, 4)])
@pytest.mark.parametrize("patch", [1, 2])
def test_other_latent_sizes_equal_diffusers(patch, size):
    ours, theirs = make_pair(torch.float32, patch=patch)
    inputs = make_inputs(torch.float32, frames=size[0], height=size[1], width=size[2])
    with torch.no_grad():
        difference = largest_difference(run_ours(ours, *inputs), run_theirs(theirs, *inputs))
    assert difference < 5e-5


@pytest.mark.parametrize("groups", [0, 1])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-5), (torch.float64, 3e-7)])
def test_gradients_equal_diffusers(groups, dtype, bound):
    ours, theirs = make_pair(dtype, groups=groups)
    latents, text, timesteps = make_inputs(dtype, channels=16 * (1 + groups))
    weights = torch.randn(latents.shape, generator=torch.Generator().manual_seed(2), dtype=dtype)
    input_gradients = []
    for network, run in ((ours, run_ours), (theirs, run_theirs)):
        leaves = [latents.clone().requires_grad_(), text.clone().requires_grad_()]
        (run(network, *leaves, timesteps) * weights).sum().backward()
        input_gradients.append([leaf.grad for leaf in leaves])
    for mine, reference in zip(*input_gradients, strict=True):
        assert largest_difference(mine, reference) < bound * reference.abs().max()
    mapped = sat_to_diffusers({name: p.grad for name, p in ours.named_parameters()})
    for name, parameter in theirs.named_parameters():
        scale = parameter.grad.abs().max()
        assert scale > 0, name
        assert largest_difference(mapped[name], parameter.grad) < bound * scale, name


def test_shapes_and_names_of_the_released_weights():
    """cogvideox.md 2.2: a matrix, where 1.0 has a convolution, and twice its rows at the output."""
    ours, theirs = make_pair(torch.float32, groups=0)
    state = ours.state_dict()
    assert state["mixins.patch_embed.proj.weight"].shape == (HEAD * HEADS, 16 * 2 * 2 * 2)
    assert state["mixins.final_layer.linear.weight"].shape == (16 * 2 * 2 * 2, HEAD * HEADS)
    back = diffusers_to_sat(theirs.state_dict())
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_a_value_of_a_patch_has_its_own_weight_and_row():
    """One input value, and one output row, at a time: (c o p q) with c slowest, by hand."""
    ours, _ = make_pair(torch.float64, groups=0)
    projection = ours.get_mixin("patch_embed").proj
    for c, o, p, q in ((0, 0, 0, 1), (0, 0, 1, 0), (0, 1, 0, 0), (1, 0, 0, 0), (15, 1, 1, 1)):
        number = ((c * 2 + o) * 2 + p) * 2 + q
        latents = torch.zeros(1, 4, 16, 4, 6, dtype=torch.float64)
        latents[0, 2 + o, c, 0 + p, 4 + q] = 1.0  # token 6 + 2: second pair of frames, third column
        with torch.no_grad():
            tokens = projection(latents)[0] - projection.bias
        assert_close(tokens[8], projection.weight[:, number])
        assert not tokens[:8].any()
        assert not tokens[9:].any()

        ours.zero_grad()
        out = run_ours(ours, *make_inputs(torch.float64, channels=16, height=4, width=6))
        out[:, 2 + o, c, 0 + p, 4 + q].sum().backward()
        touched = ours.get_mixin("final_layer").linear.bias.grad
        assert touched.nonzero().tolist() == [[number]]


def test_a_clip_begins_with_a_copy_as_in_the_fine_tuning_of_cogvideo():
    """latent[:, :1] repeated in front, as finetune/models/cogvideox_t2v/lora_trainer.py does."""
    odd = torch.randn(2, 3, 32, 4, 6, generator=torch.Generator().manual_seed(0))
    full = repeat_first_frame(odd, patch_size_t=2)
    assert full.shape == (2, 4, 32, 4, 6)
    assert torch.equal(full[:, 1:], odd)
    assert torch.equal(full[:, 0], odd[:, 0])
    assert repeat_first_frame(full, patch_size_t=2) is full
    assert repeat_first_frame(odd, patch_size_t=1) is odd
    assert repeat_first_frame(odd[:, :1], patch_size_t=2).shape[1] == 2
