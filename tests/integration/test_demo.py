"""The demonstration from end to end, at a few steps: every command in it runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image


@pytest.mark.slow
def test_the_demonstration_runs(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "sat_udpdiff.tiny.demo", "--output", str(tmp_path / "demo")]
    words += ["--clips", "8", "--steps", "2", "--prompts", "2"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert "deepspeed --num_gpus 2 --quiet sat_udpdiff/train.py" in done.stdout
    assert "python -m data_loaders.latents" in done.stdout
    assert done.stdout.count("training waited for data for") == 2
    numbers = json.loads((tmp_path / "demo" / "report.json").read_text())
    assert numbers["num_prompts"] == 2
    for task in ("segmentation", "depth"):
        assert 0.0 <= numbers[task]["foreground_iou"] <= 1.0
        assert 0.0 < numbers[task]["depth_map_distance"] < 441.7
    assert -1.0 <= numbers["baseline_frame_consistency"] <= 1.0
    with Image.open(tmp_path / "demo" / "contact_sheet.png") as sheet:
        assert sheet.width > 500
    samples = tmp_path / "demo" / "multitask" / "samples"
    assert {path.name for path in samples.iterdir()} == {
        f"{number:03d}_{task}" for number in range(2) for task in ("segmentation", "depth")
    }
    record = json.loads((samples / "001_depth" / "sample.json").read_text())
    assert "--task depth" in record["command"]
    assert record["weights"]["file"].endswith("step_00000002/network.safetensors")
    lines = (tmp_path / "demo" / "multitask" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 2
