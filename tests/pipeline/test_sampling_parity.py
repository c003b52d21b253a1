"""Whole sampling runs: our sampler, UDPDiffPipeline, and diffusers' own pipeline, same noise.

Five steps, which divide 1000: elsewhere diffusers' schedulers step to other timesteps than they
visit next.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXPipeline
from PIL import Image

from sat_udpdiff import generation
from sat_udpdiff.diffusion.noise import start_noise
from sat_udpdiff.generation import SampleRequest, generate, sample_latents

PROMPT = "a red disc moves left"
SEEDS = (3, 8)
SHAPE = (3, 32, 8, 12)
REQUEST = SampleRequest(
    prompt=PROMPT, task="depth", seeds=SEEDS, num_frames=9, height=32, width=48, batch_size=2
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def diffusers_noise(seed):
    """The draws of diffusers' DPM scheduler: one in the first step, later two, the second used."""
    generator = seeded(seed)

    def make(seeds, *, shape, device):
        def noise_fn(step):
            for _ in range(1 if step == 0 else 2):
                noise = torch.randn((len(seeds), *shape), generator=generator)
            return noise

        return noise_fn

    return make


def largest(a, b):
    assert a.shape == b.shape
    return (a - b).abs().max().item()


def joined(output):
    return torch.cat([output.frames, output.dense], dim=2)


@pytest.mark.parametrize("sampler", ["dpmpp_2m_sde", "ddim"])
@pytest.mark.parametrize("guidance", ["constant", "dynamic_released", "dynamic_step"])
def test_latents_equal_our_sampler(exported, pipeline, encoders, monkeypatch, sampler, guidance):
    monkeypatch.setattr(generation, "per_sample_noise", diffusers_noise(5))
    sample = replace(exported.config.sample, sampler=sampler, guidance=guidance)
    config = replace(exported.config, sample=sample)
    ours = sample_latents(exported.network, REQUEST, seeds=SEEDS, encoders=encoders, config=config)
    if sampler == "ddim":
        pipeline.scheduler = CogVideoXDDIMScheduler.from_config(pipeline.scheduler.config)
    theirs = pipeline(
        PROMPT,
        "depth",
        guidance=guidance,
        num_videos_per_prompt=2,
        latents=start_noise(SEEDS, shape=SHAPE),
        generator=seeded(5),
        output_type="latent",
    )
    assert ours.std() > 0.3
    assert largest(ours, joined(theirs)) < 1e-4


def test_latents_equal_our_sampler_with_patches_over_time(export, tmp_path, encoders, monkeypatch):
    """CogVideoX 1.5: 3 latent frames and one in front, which both leave out in the end."""
    monkeypatch.setattr(generation, "per_sample_noise", diffusers_noise(5))
    exported = export(tmp_path, "model.patch_size=2", "model.patch_size_t=2", "init.weights=null")
    monkeypatch.setattr(
        generation,
        "start_noise",
        lambda *_, **__: torch.randn(1, 4, *SHAPE[1:], generator=seeded()),
    )
    request = replace(REQUEST, seeds=(3,))
    ours = sample_latents(
        exported.network, request, seeds=(3,), encoders=encoders, config=exported.config
    )
    theirs = exported.open()(
        PROMPT,
        "depth",
        latents=torch.randn(1, 4, *SHAPE[1:], generator=seeded()),
        generator=seeded(5),
        output_type="latent",
    )
    assert ours.shape == (1, *SHAPE)
    assert largest(ours, joined(theirs)) < 1e-4


@pytest.mark.parametrize("task", ["segmentation", "depth"])
def test_pictures_and_what_they_say_equal_our_sampler(
    exported, pipeline, encoders, monkeypatch, task
):
    monkeypatch.setattr(generation, "per_sample_noise", diffusers_noise(5))
    request = replace(REQUEST, task=task, seeds=(3,))
    (ours,) = generate(exported.network, request, encoders=encoders, config=exported.config)
    theirs = pipeline(
        PROMPT,
        task,
        latents=start_noise((3,), shape=SHAPE),
        generator=seeded(5),
        output_type="np",
    )
    for frames, reference in ((theirs.frames, ours.rgb), (theirs.dense, ours.dense)):
        levels = np.rint(frames[0] * 255).astype(int)
        assert np.abs(levels - reference).max() <= 1
        assert reference.std() > 8
    if task == "depth":
        assert theirs.entity_ids is None
        # One of 256 levels where rounding falls to the other side.
        assert np.abs(theirs.depth[0] - ours.depth).max() < 0.02
    else:
        assert theirs.depth is None
        assert (theirs.entity_ids[0] == ours.entity_ids).mean() > 0.99
        assert len(np.unique(ours.entity_ids)) > 1


def run_cogvideox(baseline, *, guidance, sampler, eps):
    """diffusers' own pipeline on the exported folder: (latents, first frame)."""
    theirs = CogVideoXPipeline.from_pretrained(baseline.folder)
    theirs.set_progress_bar_config(disable=True)
    assert type(theirs.transformer).__module__.startswith("diffusers.")
    if sampler == "ddim":
        theirs.scheduler = CogVideoXDDIMScheduler.from_config(theirs.scheduler.config)
    if eps is not None:
        theirs.transformer.norm_out.norm.eps = eps
    embeds, _ = theirs.encode_prompt([PROMPT] * 2, max_sequence_length=48)
    return theirs(
        prompt_embeds=embeds,
        negative_prompt_embeds=torch.zeros_like(embeds),
        num_inference_steps=5,
        guidance_scale=2.5,
        use_dynamic_cfg=guidance == "dynamic_released",
        latents=start_noise(SEEDS, shape=(3, 16, 8, 12)),
        generator=seeded(5),
        output_type="latent",
    ).frames


@pytest.mark.parametrize("sampler", ["dpmpp_2m_sde", "ddim"])
@pytest.mark.parametrize("guidance", ["constant", "dynamic_released"])
# None: as diffusers ships it, 1e-5; the network was trained with 1e-6.
@pytest.mark.parametrize(("eps", "bound"), [(1e-6, 1e-4), (None, 3e-4)])
def test_a_baseline_in_diffusers_own_pipeline_equals_our_sampler(
    baseline, encoders, monkeypatch, sampler, guidance, eps, bound
):
    monkeypatch.setattr(generation, "per_sample_noise", diffusers_noise(5))
    sample = replace(baseline.config.sample, sampler=sampler, guidance=guidance)
    config = replace(baseline.config, sample=sample)
    request = replace(REQUEST, task=None)
    ours = sample_latents(baseline.network, request, seeds=SEEDS, encoders=encoders, config=config)
    theirs = run_cogvideox(baseline, guidance=guidance, sampler=sampler, eps=eps)
    assert ours.std() > 0.3
    assert largest(ours, theirs) < bound


def test_pil_frames_are_those_of_our_sampler(exported, pipeline, encoders, monkeypatch):
    monkeypatch.setattr(generation, "per_sample_noise", diffusers_noise(5))
    request = replace(REQUEST, seeds=(3,))
    (ours,) = generate(exported.network, request, encoders=encoders, config=exported.config)
    theirs = pipeline(
        PROMPT,
        "depth",
        latents=start_noise((3,), shape=SHAPE),
        generator=seeded(5),
    )
    assert len(theirs.frames) == len(theirs.dense) == 1
    assert all(isinstance(frame, Image.Image) for frame in theirs.dense[0])
    for frames, reference in ((theirs.frames, ours.rgb), (theirs.dense, ours.dense)):
        levels = np.stack([np.asarray(frame) for frame in frames[0]]).astype(int)
        assert np.abs(levels - reference).max() <= 1
