"""Two ranks, of which one hangs, fails or is killed: both end soon, and what they say names it."""

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from sat_udpdiff.free_port import free_port
from sat_udpdiff.training.hang_watch import HUNG

# train.py, whose second rank meets its end at the batch of its third step, or as it would build its
# network. The ranks of all faults are forks of one process that has imported everything; nobody
# ends one for another.
PROGRAM = """
import importlib, json, os, signal, sys, time
from pathlib import Path
from sat_udpdiff import train
from sat_udpdiff.training import loop
from tests.parallel.forked_runs import _IMPORTS, be_rank

for module in _IMPORTS["train"]:
    importlib.import_module(module)

def call(fault, words):
    take, taken = loop.TimedBatches.__next__, []

    def a_place_to_stand_at(batches):
        taken.append(None)
        if os.environ["RANK"] == "1" and len(taken) == 3:
            if fault == "hang":
                time.sleep(10_000)
            if fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyError("a fault of the test")
        return take(batches)

    def a_place_to_wait_at(*_, **__):
        time.sleep(10_000)

    if fault != "hang early":
        loop.TimedBatches.__next__ = a_place_to_stand_at
    elif os.environ["RANK"] == "1":
        train.build_engine = a_place_to_wait_at
    return train.main(words)

children = {}
for case in json.loads(sys.argv[1]):
    for rank, log in enumerate(case["logs"]):
        child = os.fork()
        if child == 0:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": case["port"]}
            os.environ["SLURMD_NODENAME"] = f"n{rank + 1}"
            os._exit(be_rank(lambda: call(case["fault"], case["words"]), log=Path(log)))
        children[child] = log
statuses = {}
while children:
    child, status = os.wait()
    statuses[children.pop(child)] = os.waitstatus_to_exitcode(status)
print(json.dumps(statuses))
"""
SETTINGS = (
    *("train.steps=50", "train.micro_batch_size=1", "model.num_layers=1", "data.num_workers=0"),
    *("ema.enabled=false", "checkpoint.every_steps=2", "checkpoint.asynchronous=false"),
    "log.heartbeat_seconds=0",
)
FAULTS = ("hang", "raise", "kill", "hang early")
Told = dict[str, list[tuple[int, str]]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def told(runs, small_world, user_env) -> Told:
    """Exit status and words of both ranks, by fault."""
    cases = []
    for fault in FAULTS:
        port = str(free_port())
        minutes = "run.hang_minutes=0.5" if "hang" in fault else "run.hang_minutes=8"
        words = small_world.train_command(runs / fault, *SETTINGS, minutes)[1:]
        logs = [str(runs / f"{fault}{rank}.log") for rank in (0, 1)]
        cases.append({"fault": fault, "port": port, "words": words, "logs": logs})
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, json.dumps(cases)],
        env=user_env,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as program:
        try:
            out, _ = program.communicate(timeout=550)
        finally:
            with suppress(ProcessLookupError):  # all have ended, as they should
                os.killpg(program.pid, signal.SIGKILL)
    statuses = json.loads(out)
    return {
        case["fault"]: [(statuses[log], Path(log).read_text()) for log in case["logs"]]
        for case in cases
    }


@pytest.mark.usefixtures("told")
@pytest.mark.parametrize("fault", FAULTS[:3])
def test_what_was_saved_before_is_whole(fault, runs):
    assert (runs / fault / "checkpoints/latest").read_text() == "step_00000002\n"
    # The first rank says what became of the run, whichever rank it was.
    beat = json.loads((runs / fault / "heartbeat.json").read_text())
    assert (beat["status"], beat["step"]) == ("hung" if fault == "hang" else "failed", 2)


def test_a_rank_that_hangs_is_found_by_the_stacks_of_all(told):
    (first, of_first), (second, of_second) = told["hang"]
    assert (first, second) == (HUNG, HUNG)
    expected = "no step was done for 0.5 minutes (run.hang_minutes=0.5), 2 were before"
    assert f"train.py: rank 0 of 2 on n1: {expected}" in of_first
    assert f"train.py: rank 1 of 2 on n2: {expected}" in of_second
    # The one waits in a collective, the other where it hangs.
    assert "in all_reduce" in of_first and "a_place_to_stand_at" not in of_first
    assert "in a_place_to_stand_at" in of_second and "in all_reduce" not in of_second
    assert re.search(r"^\[rank 1\]   File .* in a_place_to_stand_at$", of_second, re.MULTILINE)
    assert of_second.count("no step was done") == 1


def test_a_rank_that_hangs_before_the_first_step_is_found_too(told, runs):
    (first, of_first), (second, of_second) = told["hang early"]
    assert (first, second) == (HUNG, HUNG)
    assert "no step was done for 0.5 minutes (run.hang_minutes=0.5), 0 were before" in of_first
    assert "in build_engine" in of_first and "in a_place_to_wait_at" in of_second
    assert not (runs / "hang early" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("fault", "status", "reason"),
    [("raise", 1, "KeyError: 'a fault of the test'"), ("kill", -signal.SIGKILL, "")],
)
def test_a_rank_that_is_gone_ends_the_other(fault, status, reason, told):
    (first, of_first), (second, of_second) = told[fault]
    assert (first, second) == (1, status)
    assert "train.py: rank 0 of 2 on n1: another rank is gone" in of_first
    assert "to resume, run the same command again" in of_first
    assert "Traceback" not in of_first
    assert reason in of_second
    if reason:
        assert "train.py: rank 1 of 2 on n2: failed\nTraceback" in of_second
