"""Real training runs through the launchers: one rank is bit-equal, two ranks equal one.

Slurm's are in test_slurm.py.
"""

import json
import shutil
import sys
from pathlib import Path

import pytest

from sat_udpdiff.free_port import free_port

SEEN = ("step", "loss", "grad_norm", "lr", "samples_seen")


def read_metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def launcher(name: str, *, ranks: int) -> list[str]:
    port = str(free_port())
    return {
        "python": [sys.executable],
        "torchrun": ["torchrun", "--nproc_per_node", str(ranks), "--master_port", port],
        "deepspeed": ["deepspeed", "--num_gpus", str(ranks), "--master_port", port],
        "mpirun": [
            *("mpirun", "--allow-run-as-root", "--oversubscribe", "-np", str(ranks)),
            sys.executable,
        ],
    }[name]


@pytest.fixture(scope="module")
def reference(small_world, launch, tmp_path_factory) -> list[dict]:
    """One rank, two samples per step, plain python."""
    run = tmp_path_factory.mktemp("python")
    done = launch([*launcher("python", ranks=1), *small_world.train_command(run)])
    assert done.returncode == 0, done.stderr
    metrics = read_metrics(run)
    assert [line["step"] for line in metrics] == [1, 2, 3, 4, 5, 6]
    assert metrics[-1]["samples_seen"] == 12
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    return metrics


@pytest.mark.parametrize("name", ["torchrun", "deepspeed"])
def test_one_rank_gives_the_same_losses_to_the_last_bit(
    name, reference, small_world, launch, tmp_path
):
    done = launch([*launcher(name, ranks=1), *small_world.train_command(tmp_path)])
    assert done.returncode == 0, done.stderr
    for line, expected in zip(read_metrics(tmp_path), reference, strict=True):
        assert {key: line[key] for key in SEEN} == {key: expected[key] for key in SEEN}


@pytest.mark.parametrize("name", ["torchrun", "deepspeed", "mpirun"])
def test_two_ranks_of_one_sample_equal_one_rank_of_two(
    name, reference, small_world, launch, tmp_path
):
    if name == "mpirun" and shutil.which(name) is None:
        pytest.skip("no mpirun (apt-get install openmpi-bin)")
    overrides = "train.micro_batch_size=1"
    done = launch([*launcher(name, ranks=2), *small_world.train_command(tmp_path, overrides)])
    assert done.returncode == 0, done.stderr
    for line, expected in zip(read_metrics(tmp_path), reference, strict=True):
        # The order of fp32 sums differs; 4e-6 relative was measured after six steps.
        assert line["loss"] == pytest.approx(expected["loss"], rel=3e-5)
        assert line["grad_norm"] == pytest.approx(expected["grad_norm"], rel=3e-5)
        assert line["samples_seen"] == expected["samples_seen"]


def test_one_rank_accumulates_to_the_global_batch_of_two(reference, small_world, launch, tmp_path):
    overrides = ("train.micro_batch_size=1", "train.global_batch=2")
    done = launch([sys.executable, *small_world.train_command(tmp_path, *overrides)])
    assert done.returncode == 0, done.stderr
    assert "global batch 2 = 1 x 2 x 1 (micro-batch, accumulation, ranks)" in done.stderr
    for line, expected in zip(read_metrics(tmp_path), reference, strict=True):
        assert line["loss"] == pytest.approx(expected["loss"], rel=3e-5)
        assert line["samples_seen"] == expected["samples_seen"]


def test_weights_that_do_not_fit_end_all_ranks_with_the_reason(small_world, launch, tmp_path):
    command = small_world.train_command(tmp_path, "init.weights=tiny", "train.micro_batch_size=1")
    done = launch([*launcher("torchrun", ranks=2), *command])
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("train.py: ")]
    lines = [line for line in said if "preflight" not in line]
    assert len(lines) == 1, "what both have to say, the first of them says"
    assert "these are weights of the tiny CogVideoX, not of" in lines[0]
    assert not (tmp_path / "checkpoints").exists()
