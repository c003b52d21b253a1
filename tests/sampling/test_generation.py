"""From a request to samples: determinism, guidance branches, tasks, refusals."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from data_loaders.captions import TASK_PHRASES
from sat_udpdiff.colormaps import depth, location_aware, pixelplanes
from sat_udpdiff.colormaps.pixel_values import to_uint8
from sat_udpdiff.config import Config, TextEncoderConfig, VideoCodecConfig
from sat_udpdiff.encoders.text import TextEncoder
from sat_udpdiff.encoders.vae import VideoCodec
from sat_udpdiff.generation import (
    Encoders,
    SampleRequest,
    check_task,
    decode_dense,
    generate,
    sample_latents,
)
from sat_udpdiff.model.transformer import build_network, initialise
from tests.small_codec import small_vae

CONFIG = Config()
CONFIG = replace(
    CONFIG,
    model=replace(
        CONFIG.model,
        family="tiny",
        num_layers=1,
        hidden_size=32,
        num_heads=2,
        time_embed_dim=16,
        latent_channels=4,
        text_dim=128,
        text_length=12,
        activation_checkpointing="none",
    ),
    codec=VideoCodecConfig(spatial_compression=4, scale_factor=0.9, dtype="fp32", weights="test"),
    text=TextEncoderConfig(weights="tiny", dtype="fp32"),
    sample=replace(CONFIG.sample, num_steps=3, guidance="constant", guidance_scale=2.0),
)
REQUEST = SampleRequest(
    prompt="a red disc moves left", task="depth", seeds=(1, 2, 3), num_frames=5, height=16, width=24
)


def with_model(**changes) -> Config:
    return replace(CONFIG, model=replace(CONFIG.model, **changes))


@pytest.fixture(scope="module")
def encoders() -> Encoders:
    vae = small_vae((8, 8, 8))
    text = TextEncoder.load(CONFIG.text, text_length=12, text_dim=128)
    return Encoders(codec=VideoCodec(vae, config=CONFIG.codec), text=text)


def make_network(config: Config):
    network = build_network(config.model, dtype=torch.float32, device="cpu")
    initialise(network, 0)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for parameter in network.parameters():
            # Zeros (task table, biases) would hide faults.
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return network.eval()


@pytest.fixture(scope="module")
def network():
    return make_network(CONFIG)


class Recorder:
    """A network of zero velocity that remembers what it was given."""

    def __init__(self):
        self.calls = []

    def __call__(self, latents, *, timesteps, text, task):
        self.calls.append((latents, timesteps, text, task))
        return torch.zeros_like(latents)


@pytest.mark.parametrize("sampler", ["dpmpp_2m_sde", "ddim"])
def test_a_sample_is_bit_equal_whatever_else_is_asked_for(network, encoders, sampler):
    config = replace(CONFIG, sample=replace(CONFIG.sample, sampler=sampler))
    together = generate(network, REQUEST, encoders=encoders, config=config)
    alone = generate(network, replace(REQUEST, seeds=(2,)), encoders=encoders, config=config)
    assert [sample.seed for sample in together] == [1, 2, 3]
    np.testing.assert_array_equal(together[1].rgb, alone[0].rgb)
    np.testing.assert_array_equal(together[1].dense, alone[0].dense)
    np.testing.assert_array_equal(together[1].depth, alone[0].depth)
    assert np.abs(together[0].rgb.astype(int) - together[1].rgb).max() > 8


@pytest.mark.parametrize("sampler", ["dpmpp_2m_sde", "ddim"])
def test_batch_size_changes_rounding_only(network, encoders, sampler):
    config = replace(CONFIG, sample=replace(CONFIG.sample, sampler=sampler))
    keywords = {"encoders": encoders, "config": config}
    batch = sample_latents(network, REQUEST, seeds=(1, 2, 3), **keywords)
    rows = [sample_latents(network, REQUEST, seeds=(seed,), **keywords) for seed in (1, 2, 3)]
    assert batch.shape == (3, 2, 8, 4, 6)
    assert_close(batch, torch.cat(rows), rtol=1e-4, atol=1e-5)


def test_global_random_state_has_no_influence(network, encoders):
    samples = []
    for seed in (0, 99):
        torch.manual_seed(seed)
        np.random.seed(seed)
        request = replace(REQUEST, seeds=(4,))
        samples += generate(network, request, encoders=encoders, config=CONFIG)
    np.testing.assert_array_equal(samples[0].dense, samples[1].dense)


def test_both_branches_know_the_task_and_only_one_the_prompt(encoders):
    recorder = Recorder()
    sample_latents(recorder, REQUEST, seeds=(1, 2), encoders=encoders, config=CONFIG)
    assert [int(call[1][0]) for call in recorder.calls] == [999, 666, 332]
    latents, timesteps, text, task = recorder.calls[1]
    assert_close(latents[:2], latents[2:], rtol=0, atol=0)
    assert (latents[0] - latents[1]).abs().max() > 0.1
    assert timesteps.tolist() == [666] * 4
    assert task.tolist() == [1, 1, 1, 1]
    assert_close(text[:2], torch.zeros(2, 12, 128))
    assert_close(text[2:], encoders.text.encode([REQUEST.prompt] * 2))


def test_guidance_weighs_the_branches(encoders):
    """Velocity 1 with text and 0 without: the estimate must move by the scale."""

    def network(latents, *, timesteps, text, task):
        has_text = (text.abs().amax((1, 2)) > 0).float().reshape(-1, 1, 1, 1, 1)
        return has_text.expand_as(latents)

    ends = []
    for scale in (0.0, 1.0, 2.5):
        settings = replace(CONFIG.sample, sampler="ddim", num_steps=1, guidance_scale=scale)
        config = replace(CONFIG, sample=settings)
        ends.append(sample_latents(network, REQUEST, seeds=(1,), encoders=encoders, config=config))
    # One step from pure noise (a = 0) ends at x0_hat = -v.
    for end, velocity in zip(ends, (0.0, 1.0, 2.5), strict=True):
        assert_close(end, torch.full_like(end, -velocity))


def test_the_task_id_changes_the_sample(network, encoders):
    pair = [
        sample_latents(
            network, replace(REQUEST, task=task), seeds=(1,), encoders=encoders, config=CONFIG
        )
        for task in ("depth", "segmentation")
    ]
    assert (pair[0] - pair[1]).abs().max() > 1e-3


def test_task_by_prompt_is_told_in_words(encoders):
    recorder, config = Recorder(), with_model(task_signal="prompt")
    sample_latents(recorder, REQUEST, seeds=(1,), encoders=encoders, config=config)
    _, _, text, task = recorder.calls[0]
    assert task is None
    assert_close(text[1:], encoders.text.encode([TASK_PHRASES["depth"] + REQUEST.prompt]))


def test_products_fit_the_task(network, encoders):
    keywords = {"encoders": encoders, "config": CONFIG}
    (sample,) = generate(network, replace(REQUEST, seeds=(1,)), **keywords)
    assert sample.rgb.shape == sample.dense.shape == (5, 16, 24, 3)
    assert sample.rgb.dtype == sample.dense.dtype == np.uint8
    assert sample.depth.shape == (5, 16, 24)
    assert sample.entity_ids is None
    (sample,) = generate(network, replace(REQUEST, seeds=(1,), task="segmentation"), **keywords)
    assert sample.entity_ids.shape == (5, 16, 24)
    assert sample.depth is None


def test_the_two_halves_are_decoded_apart(encoders):
    latents = torch.randn(1, 2, 8, 4, 6, generator=torch.Generator().manual_seed(3))

    def network(noisy, *, timesteps, text, task):
        return -latents.expand_as(noisy)

    config = replace(CONFIG, sample=replace(CONFIG.sample, sampler="ddim", num_steps=1))
    request = replace(REQUEST, seeds=(1,))
    (sample,) = generate(network, request, encoders=encoders, config=config)
    for group, frames in ((latents[:, :, :4], sample.rgb), (latents[:, :, 4:], sample.dense)):
        np.testing.assert_array_equal(frames, to_uint8(encoders.codec.decode(group)[0]))


def test_baseline_gives_the_video_alone(encoders):
    config = with_model(dense_groups=0, task_signal="none")
    request = replace(REQUEST, task=None, seeds=(1,))
    (sample,) = generate(make_network(config), request, encoders=encoders, config=config)
    assert sample.rgb.shape == (5, 16, 24, 3)
    assert sample.dense is sample.depth is sample.entity_ids is None


def test_steps_are_counted(encoders):
    counted = []
    request = replace(REQUEST, batch_size=2)
    generate(Recorder(), request, encoders=encoders, config=CONFIG, on_step=counted.append)
    assert counted == [2, 2, 2, 1, 1, 1]


def test_dense_maps_are_read_by_the_configured_colormap():
    ids = np.zeros((2, 32, 48), np.int32)
    ids[:, 4:20, 4:20], ids[:, 10:30, 28:44] = 1, 2
    colors = np.array([[250, 20, 30], [20, 240, 40]], np.uint8)
    found, disparity = decode_dense(
        pixelplanes.encode(ids, colors=colors), task="segmentation", config=CONFIG.colormap
    )
    assert disparity is None
    assert len(np.unique(found)) == 3

    grid = replace(CONFIG.colormap, segmentation="location_aware", location_grid=4)
    painted = location_aware.encode(ids, grid=4)
    found, _ = decode_dense(painted, task="segmentation", config=grid)
    np.testing.assert_array_equal(found, location_aware.decode(painted, grid=4))

    ramp = np.linspace(0, 1, 48, dtype=np.float32)[None, None].repeat(32, axis=1)
    none, disparity = decode_dense(depth.encode(ramp), task="depth", config=CONFIG.colormap)
    assert none is None
    assert np.abs(disparity - ramp).max() <= 1 / 512 + 1e-6


@pytest.mark.parametrize("sampler", ["dpmpp_2m_sde", "ddim"])
@pytest.mark.parametrize(("num_frames", "seen"), [(9, 4), (5, 2), (13, 4), (1, 2)])
def test_patches_over_time_are_filled_in_front(encoders, sampler, num_frames, seen):
    """3 latent frames are sampled as 4, and the first of them is gone before decoding."""
    settings = replace(CONFIG.sample, sampler=sampler, num_steps=1)
    config = replace(with_model(patch_size_t=2), sample=settings)
    ramp = torch.arange(seen, dtype=torch.float32).reshape(1, seen, 1, 1, 1) / 10

    def network(noisy, *, timesteps, text, task):
        assert noisy.shape[1] == seen
        return -ramp.expand_as(noisy)  # one step from pure noise ends at x0_hat = -v

    request = replace(REQUEST, num_frames=num_frames)
    keywords = {"seeds": (1, 2), "encoders": encoders, "config": config}
    latents = sample_latents(network, request, **keywords)
    kept = (num_frames - 1) // 4 + 1
    assert latents.shape == (2, kept, 8, 4, 6)
    assert_close(latents, ramp[:, seen - kept :].expand_as(latents))


def test_a_network_with_patches_over_time_gives_every_frame(encoders):
    config = with_model(patch_size_t=2)
    request = replace(REQUEST, num_frames=9, seeds=(1,))
    (sample,) = generate(make_network(config), request, encoders=encoders, config=config)
    assert sample.rgb.shape == sample.dense.shape == (9, 16, 24, 3)
    assert sample.depth.shape == (9, 16, 24)


def test_to_uint8_reaches_both_ends():
    frames = torch.tensor([-1.5, -1.0, 0.0, 1.0, 1.5]).reshape(5, 1, 1, 1).expand(5, 3, 1, 1)
    assert to_uint8(frames)[:, 0, 0, 0].tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "  "}, "prompt: expected some text"),
        ({"seeds": ()}, "seeds: expected one or more integers >= 0"),
        ({"seeds": (1, -2)}, r"seeds: expected .* >= 0, got \[1, -2\]"),
        ({"batch_size": 0}, "batch size: expected at least 1, got 0"),
        ({"num_frames": 8}, r"expected 4k \+ 1, got 8"),
        ({"height": 20}, "height: expected a multiple of 8 pixels, got 20"),
        ({"width": 30}, "width: expected a multiple of 4 pixels .*, got 30"),
        ({"task": None}, "task: expected one of segmentation, depth, got none"),
    ],
)
def test_impossible_requests_are_refused_before_the_network_runs(encoders, change, message):
    recorder = Recorder()
    with pytest.raises(ValueError, match=message):
        generate(recorder, replace(REQUEST, **change), encoders=encoders, config=CONFIG)
    assert recorder.calls == []


def test_tasks_must_be_those_of_the_network(encoders):
    with pytest.raises(ValueError, match=r"task: .*\(nearest: depth\), got dept"):
        check_task("dept", config=CONFIG)
    single = replace(
        CONFIG, data=replace(CONFIG.data, tasks=("segmentation",), task_weights=(1.0,))
    )
    with pytest.raises(ValueError, match=r"trained on segmentation only .*got depth"):
        generate(Recorder(), REQUEST, encoders=encoders, config=single)
    baseline = with_model(dense_groups=0, task_signal="none")
    with pytest.raises(ValueError, match="makes no dense map"):
        generate(Recorder(), REQUEST, encoders=encoders, config=baseline)
