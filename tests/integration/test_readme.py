"""The commands of README.md, as they stand there: only names of folders and sizes are changed."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_loaders.decode import encode_rgb
from sat_udpdiff.free_port import free_port

ROOT = Path(__file__).parents[2]
FOLDERS = (
    "SHARDS", "OWN", "LATENTS", "VIDEOS", "RUN", "OWN_RUN", "CACHED_RUN", "LORA_RUN",
    "LORA", "SAMPLES", "SCORES", "SAMPLE_SCORES", "captions.jsonl", "page.html",
)  # fmt: skip
# What a command gets besides, so that it ends soon; later words win.
SHORTER = {
    "data_loaders.synthetic": ["--clips", "4"],
    "data_loaders.panda_dense": [
        *("clip.num_frames=9", "clip.height=32", "clip.width=48"),
        *("select.thresholds.min_source_rows=null", "select.thresholds.max_cuts=null"),
    ],
    "configs/tiny.yaml": ["train.steps=2", "train.micro_batch_size=1"],
    "sat_udpdiff/sample.py": ["--steps", "2"],
    "configs/evaluation/tiny.yaml": [
        *("prompts.count=2", "reference.count=2", "sample.num_steps=2", "fvd.min_videos=2"),
    ],
}


def commands() -> list[list[str]]:
    """Words of each command below "Your own run" and "Evaluation"."""
    text = (ROOT / "README.md").read_text()
    text = text.split("## Your own run")[1].split("\n## Panda-Dense")[0]
    block = "\n".join(line[4:] for line in text.splitlines() if line.startswith("    "))
    lines = block.replace("\\\n", " ").splitlines()
    found = [shlex.split(line, comments=True) for line in lines]
    return [words for words in found if words and words[0] != "source"]


def prepared(words: list[str], folder: Path) -> list[str]:
    """The same command with this Python, and all folders below `folder`."""
    names = "|".join(map(re.escape, FOLDERS))
    pattern = re.compile(rf"(?:(?<==)|^)({names})(?=/|$)")
    words = [pattern.sub(lambda match: str(folder / match[1]), word) for word in words]
    for marker, more in SHORTER.items():
        words += more if marker in words else []
    if words[0] == "deepspeed":
        launcher = [sys.executable, str(Path(sys.executable).parent / "deepspeed")]
        return [*launcher, "--master_port", str(free_port()), *words[1:]]
    assert words[0] == "python"
    return [sys.executable, *words[1:]]


@pytest.mark.slow
def test_every_command_of_the_readme_works(tmp_path):
    (tmp_path / "VIDEOS").mkdir()
    rng = np.random.default_rng(0)
    for name in ("one", "two"):
        frame = rng.integers(0, 255, (4, 6, 3), np.uint8).repeat(16, axis=0).repeat(16, axis=1)
        video = np.stack([np.roll(frame, 2 * t, axis=1) for t in range(12)])
        (tmp_path / "VIDEOS" / f"{name}.mp4").write_bytes(encode_rgb(video, fps=8.0, codec="h264"))
    captions = [{"path": f"{name}.mp4", "caption": "squares"} for name in ("one", "two")]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, captions)) + "\n")
    shown = commands()
    assert len(shown) == 15
    for words in shown:
        ready = prepared(words, tmp_path)
        done = subprocess.run(
            ready, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stderr[-3000:]}"
    assert "<video" in (tmp_path / "page.html").read_text()
    assert (tmp_path / "LORA" / "pytorch_lora_weights.safetensors").is_file()
    assert list((tmp_path / "SAMPLES").glob("*/side_by_side.mp4"))
    for scores in ("SCORES", "SAMPLE_SCORES"):
        assert "<video" in (tmp_path / scores / "report.html").read_text()
