"""A user who has a diffusers folder: convert, plan, train, sample, export, and open it there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
BASE = ("--base", "configs/tiny.yaml", "configs/multitask.yaml")
OPEN = """
import sys, torch
from sat_udpdiff.pipeline import UDPDiffPipeline
pipe = UDPDiffPipeline.from_pretrained(sys.argv[1])
out = pipe("a red disc moves left", task="segmentation", num_inference_steps=2, output_type="np",
           generator=torch.Generator().manual_seed(1))
print(type(pipe.transformer).__name__, out.frames.shape, out.entity_ids.shape)
"""


def run(*words):
    """Standard output of a program of this project."""
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_from_a_diffusers_folder_and_back_to_one(tmp_path):
    hub, trained = tmp_path / "hub", tmp_path / "run"
    shards = tmp_path / "shards"
    run("sat_udpdiff/convert.py", "tiny", hub, "--to", "diffusers")
    (hub / "config.yaml").unlink()  # as it would come from a hub
    assert json.loads((hub / "model_index.json").read_text())["_class_name"] == "CogVideoXPipeline"

    assert run("sat_udpdiff/train.py", *BASE, "--load", hub, "--plan").startswith("tiny on")
    words = ("--clips", "4", "--world", "simple", "--size", "32x48", "--seed", "0")
    run("-m", "data_loaders.synthetic", shards, *words)
    settings = (f"data.shards={shards}", f"run.output={trained}", "train.steps=2")
    run("sat_udpdiff/train.py", *BASE, "--load", hub, *settings, "train.micro_batch_size=1")

    words = ("--task", "depth", "--prompt", "a red disc moves left", "--seed", "1", "--steps", "2")
    run("sat_udpdiff/sample.py", "--load", trained, *words, "--output", tmp_path / "samples")
    assert list((tmp_path / "samples").glob("*/contact_sheet.png"))

    run("sat_udpdiff/convert.py", trained, tmp_path / "export", "--to", "diffusers")
    opened = run("-c", OPEN, tmp_path / "export")
    assert opened.startswith("UDPDiffTransformer3DModel (1, 9, 32, 48, 3) (1, 9, 32, 48)")

    run("sat_udpdiff/convert.py", tmp_path / "export", tmp_path / "ours", "--to", "udpdiff")
    (checkpoint,) = trained.glob("checkpoints/step_*")
    before = load_file(checkpoint / "network.safetensors")
    after = load_file(tmp_path / "ours" / "network.safetensors")
    assert before.keys() == after.keys()
    assert all(before[name].equal(after[name]) for name in before)
    run("sat_udpdiff/sample.py", "--load", tmp_path / "ours", *words, "--output", tmp_path / "s2")
