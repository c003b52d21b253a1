"""A whole ablation from the command line: two arms, two steps, two prompts; then once more."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from data_loaders.shards import write_shards
from data_loaders.synthetic import WorldConfig, make_clip

ROOT = Path(__file__).parents[2]
SMALL = (
    *("arms=[baseline,scratch_single]", "seeds=[0]", "training.steps=2", "curve.every_steps=1"),
    *("training.settings=[model.num_layers=1,init.weights=null]", "data.recolourings=1"),
    *("evaluation.prompts.count=2", "evaluation.sample.num_steps=2"),
    *("evaluation.reference.count=2", "evaluation.fvd.min_videos=2"),
)


def ablate(*words, folder):
    program = [sys.executable, "sat_udpdiff/ablate.py"]
    program += ["--config", "configs/evaluation/ablation_tiny.yaml", "--output", str(folder)]
    done = subprocess.run(
        [*program, *words], cwd=ROOT, capture_output=True, text=True, timeout=800, check=False
    )
    return done


@pytest.mark.slow
def test_two_arms_from_the_command_line(tmp_path: Path) -> None:
    world = WorldConfig(frames=9, height=32, width=48, world="simple", max_entities=3)
    write_shards((make_clip(i, seed=0, config=world) for i in range(4)), tmp_path / "clips")
    words, folder = [*SMALL, f"data.shards={tmp_path / 'clips'}"], tmp_path / "out"
    done = ablate(*words, folder=folder)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "[2/2]" in done.stdout and "45 orderings: 45 not measured" in done.stdout

    numbers = json.loads((folder / "report.json").read_text())
    assert numbers["missing"] == {} and numbers["facts"]["trainings"] == 2
    assert numbers["facts"]["command"].startswith("python sat_udpdiff/ablate.py --config ")
    found = {(one["arm"], one["task"], one["step"]) for one in numbers["scores"]}
    assert found == {
        ("baseline", None, 2),
        ("scratch_single", "depth", 1),
        ("scratch_single", "depth", 2),
    }
    assert all(one["scores"] for one in numbers["scores"])
    page = (folder / "report.html").read_text()
    # Fig. 8, and a sheet for each of the prompts.
    assert page.count("data:image/png;base64,") == 3
    with Image.open(folder / "sheets" / "00.png") as sheet:
        assert sheet.height > 2 * 80

    logs = {path: path.stat().st_mtime_ns for path in folder.rglob("*.log")}
    assert len(logs) == 5
    again = ablate(*words, folder=folder)
    assert again.returncode == 0 and "2 of 2 trainings were done already" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.log")} == logs
    assert json.loads((folder / "report.json").read_text())["scores"] == numbers["scores"]

    planned = ablate(*words, "--plan", folder=folder)
    assert planned.stdout.startswith("2 trainings of 2 steps, 0 of them left; 0 sets of 2 samples")
    refused = ablate(*words, "training.steps=4", folder=folder)
    assert refused.returncode == 2
    assert "other settings: training.steps was 2, now 4" in refused.stderr
