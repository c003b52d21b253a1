"""Our network against diffusers' CogVideoXTransformer3DModel, every weight randomised."""

import dataclasses

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed

from sat_udpdiff.config import ModelConfig
from sat_udpdiff.model.transformer import build_network
from sat_udpdiff.weights.key_map import DIFFUSERS_TASK_TABLE, diffusers_to_sat, sat_to_diffusers

HEAD, HEADS, LAYERS = 64, 2, 3
TEXT, TEXT_DIM = 10, 40
FRAMES, HEIGHT, WIDTH = 5, 12, 18

CONFIG = ModelConfig(
    family="tiny",
    num_layers=LAYERS,
    hidden_size=HEAD * HEADS,
    num_heads=HEADS,
    time_embed_dim=48,
    text_dim=TEXT_DIM,
    text_length=TEXT,
    activation_checkpointing="none",
    task_signal="none",
)


def randomise(network, seed=0):
    """Every parameter away from its usual start: zeros and ones hide faults."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if "norm" in name and name.endswith("weight") and parameter.ndim == 1:
                value = 1 + 0.2 * noise
            elif parameter.ndim == 1:
                value = 0.2 * noise
            else:
                value = noise / parameter[0].numel() ** 0.5
            parameter.copy_(value)
    return network


def make_pair(positions, dtype, *, final_eps=1e-6, groups=1, patch=2):
    config = dataclasses.replace(CONFIG, positions=positions, dense_groups=groups, patch_size=patch)
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
        sample_width=WIDTH,
        sample_height=HEIGHT,
        sample_frames=4 * (FRAMES - 1) + 1,
        max_text_seq_length=TEXT,
        spatial_interpolation_scale=config.spatial_interpolation,
        use_rotary_positional_embeddings=positions == "rotary",
    ).to(dtype)
    theirs.norm_out.norm.eps = final_eps
    theirs.load_state_dict(sat_to_diffusers(ours.state_dict()), strict=True)
    return ours, theirs


def make_inputs(dtype, *, frames=FRAMES, height=HEIGHT, width=WIDTH, channels=32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(2, frames, channels, height, width, generator=generator, dtype=dtype)
    text = torch.randn(2, TEXT, TEXT_DIM, generator=generator, dtype=dtype)
    return latents, text, torch.tensor([7, 981])


def run_ours(network, latents, text, timesteps):
    return network(latents, timesteps=timesteps, text=text)


def run_theirs(network, latents, text, timesteps):
    rotary = None
    if network.config.use_rotary_positional_embeddings:
        rows, columns = (side // network.config.patch_size for side in latents.shape[3:])
        rotary = get_3d_rotary_pos_embed(
            HEAD, ((0, 0), (rows, columns)), (rows, columns), latents.shape[1]
        )
    return network(latents, text, timesteps, image_rotary_emb=rotary, return_dict=False)[0]


def largest_difference(a, b):
    return (a - b).abs().max().item()


@pytest.mark.parametrize("positions", ["rotary", "sincos"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 5e-5), (torch.float64, 3e-7)])
def test_outputs_equal_diffusers(positions, dtype, bound):
    ours, theirs = make_pair(positions, dtype)
    inputs = make_inputs(dtype)
    with torch.no_grad():
        out, reference = run_ours(ours, *inputs), run_theirs(theirs, *inputs)
    assert reference.std() > 0.3
    assert largest_difference(out, reference) < bound


@pytest.mark.parametrize("positions", ["rotary", "sincos"])
@pytest.mark.parametrize("size", [(1, 4, 4), (3, 16, 6), (2, 6, 22)])
def test_other_latent_sizes_equal_diffusers(positions, size):
    ours, theirs = make_pair(positions, torch.float32)
    inputs = make_inputs(torch.float32, frames=size[0], height=size[1], width=size[2])
    with torch.no_grad():
        difference = largest_difference(run_ours(ours, *inputs), run_theirs(theirs, *inputs))
    assert difference < 5e-5


def test_the_baseline_equals_diffusers_at_16_channels():
    ours, theirs = make_pair("rotary", torch.float32, groups=0)
    inputs = make_inputs(torch.float32, channels=16)
    with torch.no_grad():
        difference = largest_difference(run_ours(ours, *inputs), run_theirs(theirs, *inputs))
    assert difference < 5e-5


@pytest.mark.parametrize("positions", ["rotary", "sincos"])
def test_patches_of_one_latent_pixel_equal_diffusers(positions):
    ours, theirs = make_pair(positions, torch.float32, patch=1)
    inputs = make_inputs(torch.float32)
    with torch.no_grad():
        difference = largest_difference(run_ours(ours, *inputs), run_theirs(theirs, *inputs))
    assert difference < 5e-5


def test_fp32_holds_with_the_eps_that_diffusers_ships():
    ours, theirs = make_pair("rotary", torch.float32, final_eps=1e-5)
    inputs = make_inputs(torch.float32)
    with torch.no_grad():
        difference = largest_difference(run_ours(ours, *inputs), run_theirs(theirs, *inputs))
    assert difference < 5e-5


def test_the_final_eps_is_visible_in_fp64():
    ours, theirs = make_pair("rotary", torch.float64, final_eps=1e-5)
    inputs = make_inputs(torch.float64)
    with torch.no_grad():
        difference = largest_difference(run_ours(ours, *inputs), run_theirs(theirs, *inputs))
    assert difference > 1e-6


@pytest.mark.parametrize("positions", ["rotary", "sincos"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-5), (torch.float64, 3e-7)])
def test_gradients_equal_diffusers(positions, dtype, bound):
    ours, theirs = make_pair(positions, dtype)
    latents, text, timesteps = make_inputs(dtype)
    weights = torch.randn(latents.shape, generator=torch.Generator().manual_seed(2), dtype=dtype)
    input_gradients = []
    for network, run in ((ours, run_ours), (theirs, run_theirs)):
        leaves = [latents.clone().requires_grad_(), text.clone().requires_grad_()]
        (run(network, *leaves, timesteps) * weights).sum().backward()
        input_gradients.append([leaf.grad for leaf in leaves])
    for mine, reference in zip(*input_gradients, strict=True):
        assert largest_difference(mine, reference) < bound * reference.abs().max()
    gradients = {name: p.grad for name, p in ours.named_parameters()}
    mapped = sat_to_diffusers(gradients)
    for name, parameter in theirs.named_parameters():
        reference = parameter.grad
        scale = reference.abs().max()
        if name.endswith("to_k.bias") or name.endswith("norm_k.bias"):
            # Without rotation a constant added to every key changes no attention weight; what
            # is left of this gradient is rounding.
            scale = scale + 1
        assert scale > 0, name
        assert largest_difference(mapped[name], reference) < bound * scale, name


def test_bf16_stays_near_fp32():
    ours, _ = make_pair("rotary", torch.float32)
    inputs = make_inputs(torch.float32)
    with torch.no_grad():
        reference = run_ours(ours, *inputs)
        out = run_ours(ours.to(torch.bfloat16), *inputs)
    assert out.dtype == torch.bfloat16
    assert (out.float() - reference).abs().mean() < 0.03 * reference.std()


class TestKeyMap:
    @pytest.fixture
    def state(self):
        config = dataclasses.replace(CONFIG, task_signal="embedding")
        return randomise(build_network(config, dtype=torch.float32, device="cpu")).state_dict()

    def test_there_and_back_is_exact(self, state):
        back = diffusers_to_sat(sat_to_diffusers(state))
        assert back.keys() == state.keys()
        assert all(torch.equal(back[key], state[key]) for key in state)

    def test_back_and_there_is_exact(self):
        _, theirs = make_pair("rotary", torch.float32)
        randomise(theirs, seed=5)
        state = theirs.state_dict()
        back = sat_to_diffusers(diffusers_to_sat(state))
        assert back.keys() == state.keys()
        assert all(torch.equal(back[key], state[key]) for key in state)

    def test_the_task_table_survives(self, state):
        table = sat_to_diffusers(state)[DIFFUSERS_TASK_TABLE]
        assert torch.equal(table, state["mixins.task_embedding.table.weight"])

    def test_every_missing_and_unexpected_key_is_named(self, state):
        missing = [
            "transformer.layers.2.attention.query_key_value.bias",
            "mixins.final_layer.linear.weight",
        ]
        broken = {key: value for key, value in state.items() if key not in missing}
        broken["mixins.lora.matrix"] = torch.zeros(1)
        broken["transformer.layers.3.mlp.dense_4h_to_h.bias"] = torch.zeros(1)
        with pytest.raises(ValueError, match="missing keys") as error:
            sat_to_diffusers(broken)
        for key in (*missing, "mixins.lora.matrix", "layers.3.mlp.dense_4h_to_h.bias"):
            assert key in str(error.value)

    def test_a_missing_part_of_a_fused_tensor_is_named(self, state):
        theirs = sat_to_diffusers(state)
        del theirs["transformer_blocks.1.attn1.to_k.weight"]
        theirs["transformer_blocks.1.attn1.to_x.weight"] = torch.zeros(1)
        with pytest.raises(ValueError, match="diffusers names") as error:
            diffusers_to_sat(theirs)
        assert "transformer_blocks.1.attn1.to_k.weight" in str(error.value)
        assert "transformer_blocks.1.attn1.to_x.weight" in str(error.value)

    def test_position_tables_of_official_checkpoints_are_dropped(self, state):
        official = dict(state)
        for key in (
            "mixins.pos_embed.pos_embedding",
            "mixins.pos_embed.freqs_sin",
            "mixins.pos_embed.freqs_cos",
            "transformer.position_embeddings.weight",
        ):
            official[key] = torch.zeros(1)
        assert sat_to_diffusers(official).keys() == sat_to_diffusers(state).keys()
