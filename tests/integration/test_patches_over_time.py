"""CogVideoX 1.5 at small size through the very programs: 9 frames, 3 latent frames, 2 pairs."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_network_with_patches_of_two_frames_trains_resumes_and_samples(
    small_world, launch, tmp_path
):
    run, samples = tmp_path / "run", tmp_path / "samples"
    command = [sys.executable, *small_world.train_command(run, "model.patch_size_t=2")]
    for steps in (2, 3):
        done = launch([*command, f"train.steps={steps}", "checkpoint.every_steps=1"])
        assert done.returncode == 0, done.stderr
    assert "resuming after step 2" in done.stderr
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 3
    assert np.isfinite(losses).all()

    weights = run / "checkpoints" / "step_00000003" / "network.safetensors"
    with safe_open(weights, framework="pt") as file:
        # 2 groups of 4 channels, 2 frames, 2 x 2 pixels.
        assert file.get_slice("mixins.patch_embed.proj.weight").get_shape() == [64, 64]
        assert file.get_slice("mixins.final_layer.linear.weight").get_shape() == [64, 64]

    words = ["--task", "depth", "--prompt", "a red disc moves left", "--output", str(samples)]
    program = str(ROOT / "sat_udpdiff" / "sample.py")
    done = launch([sys.executable, program, "--load", str(run), *words])
    assert done.returncode == 0, done.stderr
    (folder,) = samples.iterdir()
    assert np.load(folder / "depth.npz")["depth"].shape == (9, 32, 48)
