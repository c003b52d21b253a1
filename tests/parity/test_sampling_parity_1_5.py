"""A whole sampling run of CogVideoX 1.5 against diffusers' CogVideoXPipeline, from equal noise."""

from dataclasses import replace

import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)
from torch.testing import assert_close

from sat_udpdiff.config import Config, TextEncoderConfig, VideoCodecConfig
from sat_udpdiff.diffusion.noise import start_noise
from sat_udpdiff.encoders.text import TextEncoder
from sat_udpdiff.encoders.vae import VideoCodec
from sat_udpdiff.generation import Encoders, SampleRequest, sample_latents
from sat_udpdiff.model.transformer import build_network
from sat_udpdiff.weights.key_map import sat_to_diffusers
from tests.small_codec import small_vae

PROMPT = "a red disc moves left"
STEPS, SCALE, SEED = 4, 2.5, 3

CONFIG = Config()
CONFIG = replace(
    CONFIG,
    model=replace(
        CONFIG.model,
        family="1.5-5b",
        num_layers=2,
        hidden_size=128,
        num_heads=2,
        time_embed_dim=32,
        patch_size_t=2,
        latent_channels=4,
        dense_groups=0,
        task_signal="none",
        text_dim=128,
        text_length=12,
        activation_checkpointing="none",
    ),
    codec=VideoCodecConfig(spatial_compression=4, scale_factor=0.7, dtype="fp32", weights="test"),
    text=TextEncoderConfig(weights="tiny", dtype="fp32"),
    sample=replace(
        CONFIG.sample, sampler="ddim", num_steps=STEPS, guidance="constant", guidance_scale=SCALE
    ),
)


def make_networks():
    model = CONFIG.model
    ours = build_network(model, dtype=torch.float32, device="cpu")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            is_gain = "norm" in name and name.endswith("weight") and parameter.ndim == 1
            fan_in = 25 if parameter.ndim == 1 else parameter[0].numel()
            noise = torch.randn(parameter.shape, generator=generator) / fan_in**0.5
            parameter.copy_(noise + is_gain)
    theirs = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=64,
        in_channels=4,
        out_channels=4,
        time_embed_dim=model.time_embed_dim,
        text_embed_dim=model.text_dim,
        num_layers=model.num_layers,
        patch_size_t=2,
        patch_bias=False,
        sample_width=300,
        sample_height=300,
        sample_frames=81,
        max_text_seq_length=model.text_length,
        use_rotary_positional_embeddings=True,
    )
    theirs.norm_out.norm.eps = 1e-6
    theirs.load_state_dict(sat_to_diffusers(ours.state_dict()), strict=True)
    return ours.eval(), theirs.eval()


@pytest.fixture(scope="module")
def encoders() -> Encoders:
    vae = small_vae((8, 8, 8), scaling_factor=0.7)
    text = TextEncoder.load(CONFIG.text, text_length=12, text_dim=128)
    return Encoders(codec=VideoCodec(vae, config=CONFIG.codec), text=text)


@pytest.fixture(scope="module")
def networks():
    return make_networks()


def run_pipeline(transformer, *, encoders, num_frames, output_type):
    scheduler = CogVideoXDDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        snr_shift_scale=1.0,
        timestep_spacing="trailing",
    )
    pipeline = CogVideoXPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=encoders.codec.vae,
        transformer=transformer,
        scheduler=scheduler,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        num_frames=num_frames,
        num_inference_steps=STEPS,
        guidance_scale=SCALE,
        latents=start_noise((SEED,), shape=(4, 4, 4, 6), device=torch.device("cpu")),
        prompt_embeds=encoders.text.encode([PROMPT]),
        negative_prompt_embeds=encoders.text.unconditional(1),
        max_sequence_length=12,
        output_type=output_type,
        height=16,
        width=24,
    ).frames


# 9 frames are 3 latent frames, which leave a patch half full; 13 are 4.
@pytest.mark.parametrize(("num_frames", "kept"), [(9, 3), (13, 4)])
def test_latents_equal_those_of_the_pipeline(networks, encoders, num_frames, kept):
    ours, theirs = networks
    request = SampleRequest(
        prompt=PROMPT, task=None, seeds=(SEED,), num_frames=num_frames, height=16, width=24
    )
    latents = sample_latents(ours, request, seeds=(SEED,), encoders=encoders, config=CONFIG)
    assert latents.shape == (1, kept, 4, 4, 6)
    reference = run_pipeline(theirs, encoders=encoders, num_frames=num_frames, output_type="latent")
    assert reference.std() > 0.3
    # Before it decodes, the pipeline too drops what was put in front.
    assert_close(latents, reference[:, 4 - kept :], rtol=0, atol=1e-4)


def test_frames_equal_those_of_the_pipeline(networks, encoders):
    ours, theirs = networks
    request = SampleRequest(
        prompt=PROMPT, task=None, seeds=(SEED,), num_frames=9, height=16, width=24
    )
    latents = sample_latents(ours, request, seeds=(SEED,), encoders=encoders, config=CONFIG)
    frames = encoders.codec.decode(latents)[0]
    video = run_pipeline(theirs, encoders=encoders, num_frames=9, output_type="pt")[0]
    assert frames.shape == video.shape == (9, 3, 16, 24)
    assert video.std() > 0.01
    assert_close((frames + 1) / 2, video, rtol=0, atol=1e-4)
