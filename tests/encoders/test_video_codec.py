"""The video codec against direct calls of diffusers, and its messages."""

import json
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from sat_udpdiff.config import VideoCodecConfig
from sat_udpdiff.encoders.vae import VideoCodec
from tests.small_codec import random_vae

CONFIG = VideoCodecConfig(
    weights="tests",
    scale_factor=0.7,
    spatial_compression=4,
    temporal_compression=4,
    slicing=False,
    dtype="fp32",
)


@pytest.fixture(scope="module")
def codec() -> VideoCodec:
    return VideoCodec(random_vae(), config=CONFIG)


def clip(num_frames: int = 17, *, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(num_frames)
    return torch.rand(batch, num_frames, 3, 16, 24, generator=generator) * 2 - 1


def test_whole_clip_encoding_is_one_pass_of_the_encoder(codec):
    rgb = clip()
    ours = codec.encode(rgb)
    vae = random_vae().eval()
    with torch.no_grad():
        mean, logvar = vae.encoder(rgb.transpose(1, 2))[0].transpose(1, 2).chunk(2, dim=2)
    assert ours.mean.shape == (2, 5, 4, 4, 6)
    assert_close(ours.mean, 0.7 * mean, rtol=1e-5, atol=1e-6)
    assert_close(ours.logvar.exp().sqrt(), 0.7 * (0.5 * logvar).exp(), rtol=1e-5, atol=1e-6)


def test_chunked_encoding_is_diffusers_default_and_differs_from_whole(codec):
    rgb = clip()
    chunked = VideoCodec(random_vae(), config=replace(CONFIG, encode_chunks="diffusers"))
    with torch.no_grad():
        direct = random_vae().eval().encode(rgb.transpose(1, 2)).latent_dist.mean.transpose(1, 2)
    assert_close(chunked.encode(rgb).mean, 0.7 * direct, rtol=1e-5, atol=1e-6)
    assert (chunked.encode(rgb).mean - codec.encode(rgb).mean).abs().max() > 1e-3


def test_whole_clip_encoding_follows_the_clip_not_an_earlier_one(codec):
    before = codec.encode(clip(9)).mean
    codec.encode(clip(17))
    assert_close(codec.encode(clip(9)).mean, before, rtol=0, atol=0)


def test_decode_is_diffusers_default_on_unscaled_latents(codec):
    latents = torch.randn(2, 5, 4, 4, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        direct = random_vae().eval().decode(latents.transpose(1, 2) / 0.7).sample.transpose(1, 2)
    rgb = codec.decode(latents)
    assert rgb.shape == (2, 17, 3, 16, 24)
    assert_close(rgb, direct.clamp(-1, 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_frames", [1, 5, 9, 13])
def test_decode_returns_as_many_frames_as_were_encoded(codec, num_frames):
    rgb = clip(num_frames, batch=1)
    assert codec.decode(codec.encode(rgb).mean).shape == rgb.shape


def test_batch_size_does_not_change_a_clip(codec):
    rgb = clip(9, batch=3)
    together = codec.encode(rgb)
    alone = codec.encode(rgb[1:2])
    assert_close(together.mean[1:2], alone.mean, rtol=1e-5, atol=1e-6)
    assert_close(codec.decode(together.mean)[1:2], codec.decode(alone.mean), rtol=1e-4, atol=1e-5)


def test_sample_moves_by_the_standard_deviation(codec):
    latents = codec.encode(clip(9))
    zero, one = torch.zeros_like(latents.mean), torch.ones_like(latents.mean)
    assert_close(latents.sample(zero), latents.mean)
    assert_close(latents.sample(one) - latents.mean, (0.5 * latents.logvar).exp())


def test_slicing_gives_the_same_latents(codec):
    sliced = VideoCodec(random_vae(), config=replace(CONFIG, slicing=True))
    rgb = clip(9, batch=3)
    assert_close(sliced.encode(rgb).mean, codec.encode(rgb).mean, rtol=1e-5, atol=1e-6)


def test_tiling_keeps_the_shapes():
    tiled = VideoCodec(random_vae(), config=replace(CONFIG, tiling=True))
    rgb = torch.zeros(1, 5, 3, 64, 96)
    latents = tiled.encode(rgb).mean
    assert latents.shape == (1, 2, 4, 16, 24)
    assert (latents - VideoCodec(random_vae(), config=CONFIG).encode(rgb).mean).abs().max() > 1e-3
    assert tiled.decode(latents).shape == rgb.shape
    assert tiled.vae.tile_sample_min_height == 24
    assert tiled.vae.tile_sample_min_width == 40


def test_codec_is_frozen_and_keeps_no_graph(codec):
    assert not any(p.requires_grad for p in codec.vae.parameters())
    assert not codec.vae.training
    assert not codec.encode(clip(1).requires_grad_()).mean.requires_grad


def test_bf16_computes_in_bf16_and_returns_float32():
    codec = VideoCodec(random_vae(), config=replace(CONFIG, dtype="bf16"))
    assert next(codec.vae.parameters()).dtype == torch.bfloat16
    latents = codec.encode(clip(5))
    assert latents.mean.dtype == torch.float32
    assert codec.decode(latents.mean).dtype == torch.float32


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 8, 3, 16, 24), "expected 4k \\+ 1, got 8; nearest are 5 and 9"),
        ((1, 9, 3, 18, 24), "height: expected a multiple of 4 .*got 18"),
        ((1, 9, 3, 16, 26), "width: expected a multiple of 4 .*got 26"),
        ((1, 9, 4, 16, 24), "expected \\(b, t, 3, h, w\\), got \\(1, 9, 4, 16, 24\\)"),
    ],
)
def test_clips_that_do_not_fit_are_refused_with_numbers(codec, shape, message):
    with pytest.raises(ValueError, match=message):
        codec.encode(torch.zeros(shape))


def test_latents_with_the_wrong_channels_are_refused(codec):
    with pytest.raises(ValueError, match="expected \\(b, t, 4, h, w\\), got \\(1, 3, 8, 4, 6\\)"):
        codec.decode(torch.zeros(1, 3, 8, 4, 6))


def test_loads_a_saved_folder_and_its_vae_subfolder(tmp_path, codec):
    random_vae().save_pretrained(tmp_path / "model" / "vae")
    for weights in (tmp_path / "model", tmp_path / "model" / "vae"):
        loaded = VideoCodec.load(replace(CONFIG, weights=str(weights)))
        rgb = clip(5)
        assert_close(loaded.encode(rgb).mean, codec.encode(rgb).mean, rtol=1e-6, atol=1e-7)


def test_missing_weights_name_the_place_and_the_cure(tmp_path):
    with pytest.raises(ValueError, match=r"codec.weights: no folder '.*nowhere'.*hf download"):
        VideoCodec.load(replace(CONFIG, weights=str(tmp_path / "nowhere")))
    with pytest.raises(ValueError, match=r"codec.weights: no config.json in .*hf download"):
        VideoCodec.load(replace(CONFIG, weights=str(tmp_path)))


def test_damaged_weights_are_an_error_not_a_random_codec(tmp_path):
    random_vae().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["layers_per_block"] = 2
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"tensors of .* do not fit its config.json"):
        VideoCodec.load(replace(CONFIG, weights=str(tmp_path)))
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"codec.weights: cannot load the folder"):
        VideoCodec.load(replace(CONFIG, weights=str(tmp_path)))


def test_compression_must_be_that_of_the_weights():
    with pytest.raises(ValueError, match=r"codec.spatial_compression: tests has 4, configured 8"):
        VideoCodec(random_vae(), config=replace(CONFIG, spatial_compression=8))
