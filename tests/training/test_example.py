"""From clips to what the loss takes, for patches over time: 9 frames are 3 latent frames."""

from dataclasses import replace
from itertools import islice

import pytest
import torch

from data_loaders import latents
from data_loaders.loader import Batches
from sat_udpdiff.generation import Encoders
from sat_udpdiff.training.example import make_example

PATCHES = "model.patch_size_t=2"


@pytest.fixture(scope="module")
def encoders(small_world, tmp_path_factory):
    return Encoders.load(small_world.config(tmp_path_factory.mktemp("run")), device="cpu")


def examples(config, *, encoders, count=2):
    keywords = {"encoders": encoders, "config": config, "samples_seen": 0, "global_batch": 4}
    with Batches(config) as stream:
        return [make_example(batch, **keywords) for batch in islice(stream, count)]


@pytest.mark.parametrize("more", [[], ["model.dense_groups=0", "model.task_signal=none"]])
def test_a_clip_begins_with_a_copy_that_has_noise_of_its_own(small_world, encoders, tmp_path, more):
    config = small_world.config(tmp_path, "data.num_workers=0", *more)
    patched = replace(config, model=replace(config.model, patch_size_t=2))
    plain = examples(config, encoders=encoders)
    for before, after in zip(plain, examples(patched, encoders=encoders), strict=True):
        assert (before.x0.shape[1], after.x0.shape[1]) == (3, 4)
        assert torch.equal(after.x0[:, 1:], before.x0)
        assert torch.equal(after.x0[:, 0], before.x0[:, 0])
        assert after.noise.shape == after.x0.shape
        # A noise that repeated itself would tell the network what the next frame's is.
        assert (after.noise[:, 0] - after.noise[:, 1]).abs().mean() > 0.5
        assert torch.equal(after.t, before.t)
        assert torch.equal(after.text, before.text)


def test_a_cache_serves_both_generations(small_world, encoders, tmp_path):
    """It holds latents without copies, so that it need not be made again."""
    base, shards = str(small_world.base), str(small_world.folder / "shards")
    command = ["--base", base, "--shards", shards, "--output", str(tmp_path / "cache")]
    assert latents.main([*command, PATCHES, "--recolourings", "1"]) == 0
    source = ["data.source=latents", f"data.latents={tmp_path / 'cache'}", "data.num_workers=0"]
    for more in ([], [PATCHES]):
        config = small_world.config(tmp_path, *source, *more)
        cached = examples(config, encoders=None)
        clips = small_world.config(tmp_path, "data.num_workers=0", "data.recolourings=1", *more)
        for example, other in zip(cached, examples(clips, encoders=encoders), strict=True):
            assert example.x0.shape[1] == (4 if more else 3)
            torch.testing.assert_close(example.x0, other.x0, rtol=1e-4, atol=1e-5)
            assert torch.equal(example.noise, other.noise)
