"""A run that is killed and started again is the unbroken run: every number, bit for bit."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed import killed_runs
from tests.distributed.killed_runs import Kill, differences, logged

PROGRAM = Path(killed_runs.__file__)
STEPS, EVERY = 8, 2
SETTINGS = (
    *(f"train.steps={STEPS}", f"checkpoint.every_steps={EVERY}", "checkpoint.keep_last=2"),
    *("train.micro_batch_size=1", "model.num_layers=1", "data.num_workers=0"),
    "run.hang_minutes=0.75",
    "log.heartbeat_seconds=0",  # by which it is seen how far a start came
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("kills")


@pytest.fixture(scope="module")
def result(small_world, user_env, folder) -> dict:
    """What came of five kills."""
    plan = {
        "arguments": ["--base", str(small_world.base), *SETTINGS],
        "folder": str(folder),
        "saves": STEPS // EVERY,
        "kills": 5,
        "kills_per_run": 5,
        "seed": 0,
    }
    (folder / "plan.json").write_text(json.dumps(plan))
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(folder / "plan.json"), str(folder / "result.json")],
        env=user_env | {"DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        timeout=850,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "result.json").read_text())


@pytest.fixture(scope="module")
def kills(result) -> list[Kill]:
    return [Kill(**kill) for kill in result["kills"]]


def test_all_runs_end_as_the_unbroken_one(result, folder):
    # Also: no survivor hung, none had to show a traceback, no checkpoint was lost or damaged.
    assert result["faults"] == []
    assert len(result["kills"]) == 5 and result["runs"] >= 1
    unbroken = folder / "unbroken"
    assert [line["step"] for line in logged(unbroken)] == list(range(1, STEPS + 1))
    for number in range(result["runs"]):
        assert differences(folder / f"run_{number}", unbroken) == []


def test_some_kills_fell_into_saves_and_one_of_them_before_the_first_checkpoint(kills):
    assert sum(kill.was_saving for kill in kills) >= 2
    # The next start had nothing more to go on from than this one.
    assert any(kill.kept == kill.resumed and kill.done > kill.resumed for kill in kills)


def test_no_more_is_lost_than_from_one_save_to_the_next_but_one(kills):
    # What is being written while training goes on counts when the next save begins, at the latest.
    assert all(0 <= kill.lost <= 2 * EVERY for kill in kills)


@pytest.mark.parametrize(
    ("name", "at"),
    [
        (f"checkpoints/step_{STEPS:08d}/ema.safetensors", b""),
        (f"checkpoints/step_{STEPS:08d}/state.json", b'"samples_seen": 1'),
        ("metrics.jsonl", b'"loss": 2.'),
    ],
)
def test_a_changed_bit_would_be_seen(name, at, result, folder, tmp_path):
    unbroken, copy = folder / "unbroken", tmp_path / "copy"
    shutil.copytree(unbroken, copy)
    assert differences(copy, unbroken) == []
    content = bytearray((copy / name).read_bytes())
    content[content.index(at) + len(at) if at else -1] ^= 1
    (copy / name).write_bytes(content)
    assert len(differences(copy, unbroken)) == 1
