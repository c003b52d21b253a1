"""Two ranks, of which one hangs, fails or is killed: both end soon, and what they say names it."""

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sat_udpdiff.training.hang_watch import HUNG

ROOT = Path(__file__).parents[2]
# train.py whose second rank meets its end at the batch of its third step.
PROGRAM = """
import os, signal, sys, time
from sat_udpdiff import train
from sat_udpdiff.training import loop
fault, take, taken = sys.argv.pop(1), loop.TimedBatches.__next__, []

def a_place_to_stand_at(batches):
    taken.append(None)
    if os.environ["RANK"] == "1" and len(taken) == 3:
        if fault == "hang":
            time.sleep(10_000)
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise KeyError("a fault of the test")
    return take(batches)

loop.TimedBatches.__next__ = a_place_to_stand_at
sys.exit(train.main())
"""
SETTINGS = (
    *("train.steps=50", "train.micro_batch_size=1", "model.num_layers=1", "data.num_workers=0"),
    *("ema.enabled=false", "checkpoint.every_steps=2", "run.hang_minutes=0.5"),
)


def train(fault: str, run: Path, *, world, environment: dict[str, str]) -> list[tuple[int, str]]:
    """Exit status and messages of both ranks, started by nobody who would end one of them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    words = world.train_command(run, *SETTINGS)[1:]
    same = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, fault, *words],
            env=environment | same | {"RANK": rank, "LOCAL_RANK": rank, "SLURMD_NODENAME": node},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, node in (("0", "n1"), ("1", "n2"))
    ]
    try:
        errors = [process.communicate(timeout=500)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    # What was saved before is whole, and the run can go on.
    assert (run / "checkpoints/latest").read_text() == "step_00000002\n"
    return [(process.returncode, text) for process, text in zip(running, errors, strict=True)]


@pytest.mark.slow
def test_a_rank_that_hangs_is_found_by_the_stacks_of_all(small_world, user_env, tmp_path):
    (first, of_first), (second, of_second) = train(
        "hang", tmp_path / "run", world=small_world, environment=user_env
    )
    assert (first, second) == (HUNG, HUNG)
    expected = "no step was done for 0.5 minutes (run.hang_minutes=0.5), 2 were before"
    assert f"train.py: rank 0 of 2 on n1: {expected}" in of_first
    assert f"train.py: rank 1 of 2 on n2: {expected}" in of_second
    # The one waits in a collective, the other where it hangs.
    assert "in all_reduce" in of_first and "a_place_to_stand_at" not in of_first
    assert "in a_place_to_stand_at" in of_second and "in all_reduce" not in of_second
    assert of_second.count("no step was done") == 1


@pytest.mark.parametrize(
    ("fault", "status", "reason"),
    [("raise", 1, "KeyError: 'a fault of the test'"), ("kill", -signal.SIGKILL, "")],
)
def test_a_rank_that_is_gone_ends_the_other(fault, status, reason, small_world, user_env, tmp_path):
    (first, of_first), (second, of_second) = train(
        fault, tmp_path / "run", world=small_world, environment=user_env
    )
    assert (first, second) == (1, status)
    assert "train.py: rank 0 of 2 on n1: another rank is gone" in of_first
    assert "to resume, run the same command again" in of_first
    assert "Traceback" not in of_first
    assert reason in of_second
    if reason:
        assert "train.py: rank 1 of 2 on n2: failed\nTraceback" in of_second
