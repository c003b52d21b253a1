"""Runs of two ranks: the ZeRO stage changes between starts; a disk is full at the start."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

PROGRAM = Path(__file__).parents[1] / "parallel" / "forked_runs.py"
SETTINGS = (
    *("train.micro_batch_size=1", "model.num_layers=1", "data.num_workers=0"),
    *("checkpoint.every_steps=1", "checkpoint.keep_last=1", "optimizer.warmup_steps=0"),
)
TIMED = re.compile("second|rank_lag")
STAGES = (2, 1, 3)
"""Of step 1, 2, ..."""


@pytest.fixture(scope="module")
def folder(small_world, user_env, tmp_path_factory) -> tuple[Path, str]:
    """Where the runs lie, and what was said of the start that was to fail."""
    folder = tmp_path_factory.mktemp("one_folder")
    # What is written under this name, before it is renamed, meets a full disk.
    (folder / "full").mkdir()
    (folder / "full/config.yaml.partial").symlink_to("/dev/full")
    leftover = folder / "full/checkpoints/.staging_deleted_step_00000001"
    leftover.mkdir(parents=True)
    (leftover / "ema.safetensors").touch()

    def start(name: str, *, steps: int, stage: int, **more: bool) -> dict:
        words = [f"train.steps={steps}", f"train.zero_stage={stage}", f"run.output={folder / name}"]
        return {
            "program": "sat_udpdiff.train",
            "ranks": 2,
            "arguments": ["--base", str(small_world.base), *SETTINGS, *words],
        } | more

    starts = [
        start("full", steps=1, stage=2, fails=True),
        start("unbroken", steps=len(STAGES), stage=2),
        *(start("changed", steps=i, stage=stage) for i, stage in enumerate(STAGES, start=1)),
    ]
    return folder, make(starts, folder=folder, env=user_env)


def make(starts: list[dict], *, folder: Path, env: dict[str, str]) -> str:
    """Make them; returns what those that were to fail said."""
    (folder / "plan.json").write_text(json.dumps(starts))
    done = subprocess.run(
        [sys.executable, str(PROGRAM), "sample", "train", str(folder / "plan.json")],
        env=env | {"DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def lines(run: Path) -> list[dict]:
    read = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in line if not TIMED.search(key)} for line in read]


def test_the_stage_may_change_between_starts(folder):
    changed, unbroken = (lines(folder[0] / name) for name in ("changed", "unbroken"))
    assert [line["step"] for line in unbroken] == [1, 2, 3]
    assert len(changed) == len(unbroken)
    for line, expected in zip(changed, unbroken, strict=True):
        # Stage 3 sums the squares of the gradient norm in other parts.
        assert line.keys() == expected.keys()
        empty = [key for key in expected if expected[key] is None]
        assert [line.pop(key) for key in empty] == [expected.pop(key) for key in empty]
        assert line == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", ["network", "exp_avg", "exp_avg_sq", "ema"])
def test_every_tensor_goes_through_all_stages(kind, folder):
    changed, unbroken = (
        load_file(folder[0] / name / f"checkpoints/step_{len(STAGES):08d}/{kind}.safetensors")
        for name in ("changed", "unbroken")
    )
    assert changed.keys() == unbroken.keys()
    for key, value in unbroken.items():
        assert (changed[key] - value).norm() <= 1e-6 * value.norm(), key


def test_a_full_disk_at_the_start_ends_all_ranks_and_names_the_file(folder):
    where, said = folder
    path = where / "full/config.yaml"
    assert f"train.py: [Errno 28] No space left on device: '{path}'" in said
    assert "train.py: rank 1 of 2 on " in said and "another rank is gone" in said
    assert "Traceback" not in said
    assert not (where / "full/metrics.jsonl").exists()


def test_what_a_kill_left_is_removed_before_anything_else(folder):
    assert list((folder[0] / "full/checkpoints").iterdir()) == []
