"""One run per folder: who is refused, who takes over, and what is left behind."""

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace

import pytest

from sat_udpdiff.config import ConfigError
from sat_udpdiff.training import run_lock
from sat_udpdiff.training.run_lock import LOCK_FILE, RunLock, hold, this_process
from sat_udpdiff.weights.run_folder import CheckpointError

# Locks are of processes, so the other run is one; it ends when its input does.
HOLDER = """
import fcntl, sys
file = open(sys.argv[1], "r+")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def no_job(monkeypatch):
    for key in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(key, raising=False)


@pytest.fixture
def leave(run):
    """Leave the lock file of another run behind, as if it had been killed."""

    def write(owner):
        run.mkdir(exist_ok=True)
        (run / LOCK_FILE).write_text(json.dumps(asdict(owner)))
        return owner

    return write


def elsewhere(**changes):
    return replace(this_process({}), host="node7", boot="another", pid=123, **changes)


def unheard(message):
    pytest.fail(f"nothing was to be said: {message}")


def test_a_full_disk_leaves_no_lock_without_a_name(run, monkeypatch):
    def fill(*_):
        raise OSError(28, "No space left on device")

    run.mkdir()
    monkeypatch.setattr("os.pwrite", fill)
    with pytest.raises(OSError, match="No space left"):
        RunLock(run, tell=unheard)
    assert list(run.iterdir()) == []


def test_a_second_run_on_this_machine_is_refused_until_the_first_is_killed(run, leave):
    owner = leave(this_process({}))
    command = [sys.executable, "-c", HOLDER, str(run / LOCK_FILE)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError) as caught:
            RunLock(run, tell=unheard)
        message = str(caught.value)
        assert message.startswith(f"run.output: another run is at work in {run}: process ")
        assert f"process {owner.pid} on {owner.host}, since {owner.since}" in message
        assert "\n" not in message
        holder.kill()
    lock = RunLock(run, tell=unheard)
    lock.check()
    lock.release()
    assert not run.joinpath(LOCK_FILE).exists()


def test_a_run_on_another_machine_that_gives_signs_of_life_is_left_alone(run, leave, monkeypatch):
    leave(elsewhere())
    monkeypatch.setattr(run_lock, "PATIENCE_SECONDS", 30.0)
    said, waiting = [], threading.Event()

    def hear(message):
        said.append(message)
        waiting.set()

    def beat():
        assert waiting.wait(30)
        time.sleep(0.05)
        os.utime(run / LOCK_FILE, ns=(1, 1))  # long ago: clocks are no matter

    heart = threading.Thread(target=beat)
    heart.start()
    with pytest.raises(ConfigError, match=r"process 123 on node7, since .*delete .*run\.lock"):
        RunLock(run, tell=hear)
    heart.join()
    assert "watching it for 30 s" in said[0]
    assert json.loads((run / LOCK_FILE).read_text())["host"] == "node7"


def test_a_run_on_another_machine_that_is_silent_is_taken_over(run, leave, monkeypatch):
    leave(elsewhere())
    monkeypatch.setattr(run_lock, "PATIENCE_SECONDS", 0.05)
    said = []
    lock = RunLock(run, tell=said.append)
    lock.check()
    lock.release()
    assert said[1] == f"no sign of life: taking {run} over"


@pytest.mark.parametrize(("restarts", "waits"), [("1", False), ("0", True), (None, True)])
def test_a_job_that_was_queued_again_does_not_wait_for_itself(
    restarts, waits, run, leave, monkeypatch
):
    leave(elsewhere(job="7"))
    monkeypatch.setattr(run_lock, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    if restarts is not None:
        monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
    said = []
    RunLock(run, tell=said.append).release()
    assert bool(said) is waits


def test_where_there_are_no_locks_this_machine_is_watched_too(run, leave, monkeypatch):
    leave(this_process({}))
    monkeypatch.setattr(run_lock, "PATIENCE_SECONDS", 0.05)

    def no_locks(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(run_lock.fcntl, "lockf", no_locks)
    said = []
    RunLock(run, tell=said.append).release()
    assert "watching it" in said[0]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": 1}'])
def test_a_file_that_names_nobody_is_no_lock(content, run):
    run.mkdir()
    (run / LOCK_FILE).write_text(content)
    RunLock(run, tell=unheard).release()


def test_a_lock_that_was_taken_is_noticed(run):
    lock = RunLock(run, tell=unheard)
    # As another machine does that has waited long enough; the same file, not a new one.
    run_lock._write(lock._file, elsewhere())
    with pytest.raises(CheckpointError, match=r"another run has taken .* \(process 123 on node7"):
        lock.check()
    lock.release()
    assert (run / LOCK_FILE).exists()


def test_a_lock_file_that_was_replaced_is_noticed(run, leave):
    lock = RunLock(run, tell=unheard)
    (run / LOCK_FILE).unlink()
    lock.check()  # nobody else has come
    leave(elsewhere())
    with pytest.raises(CheckpointError, match="another run has taken this folder"):
        lock.check()
    lock.release()


def test_the_heart_beats(run, monkeypatch):
    monkeypatch.setattr(run_lock, "BEAT_SECONDS", 0.01)
    lock = RunLock(run, tell=unheard)
    os.utime(run / LOCK_FILE, ns=(1, 1))
    deadline = time.monotonic() + 30
    while (run / LOCK_FILE).stat().st_mtime_ns == 1:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    lock.release()


def test_a_start_that_fails_leaves_nothing_behind(tmp_path):
    output = tmp_path / "a/b"
    RunLock(output, tell=unheard).release()
    assert list(tmp_path.iterdir()) == []
    lock = RunLock(output, tell=unheard)
    (output / "config.yaml").touch()
    lock.release()
    assert [path.name for path in output.iterdir()] == ["config.yaml"]


def test_all_ranks_are_refused_together(tmp_path, team):
    (tmp_path / "file").touch()

    def start(place):
        with hold(tmp_path / "file", place=place, tell=unheard):
            pytest.fail("a run in a file")

    errors = team(2).run(start)
    assert all(isinstance(error, ConfigError) for error in errors)
    assert str(errors[0]) == str(errors[1])
    assert str(errors[0]).startswith(f"run.output: cannot write to {tmp_path / 'file'}: ")


def test_a_read_only_folder_is_refused_in_one_line(run, place, faults):
    run.mkdir()

    def read_only():
        raise OSError(30, "Read-only file system")

    faults(at=0, act=read_only, lasts=True)
    with (
        pytest.raises(ConfigError, match=f"cannot write to {run}: Read-only file system"),
        hold(run, place=place(0, 1), tell=unheard),
    ):
        pytest.fail("a run in a read-only folder")
