"""A save fails, or its process is killed, at each of its file operations in turn."""

import errno
import os
import random
import signal
import time
from itertools import count
from types import SimpleNamespace

import pytest

from sat_udpdiff.training import checkpoint
from sat_udpdiff.weights.run_folder import CheckpointError, find_latest

# A child that is forked for being killed runs no thread of this process.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


@pytest.fixture(autouse=True)
def no_flushing(monkeypatch):
    """What a process wrote outlives it without; a thousand saves would wait for the disk."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def names(run):
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def no_space():
    raise OSError(errno.ENOSPC, "No space left on device")


def read_only():
    raise OSError(errno.EROFS, "Read-only file system")


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(("act", "lasts"), [(no_space, False), (no_space, True), (read_only, True)])
def test_a_disk_that_fails_anywhere_leaves_the_last_good_one(
    act, lasts, asynchronous, tmp_path, engine, save, faults
):
    settings = {"keep_last": 1, "asynchronous": asynchronous}
    failed = 0
    for at in count():
        run = tmp_path / str(at)
        before = files(save(run, engine, step=1, **settings))
        fault = faults(at=at, act=act, lasts=lasts)
        message = ""
        try:
            save(run, engine, step=2, **settings)
        except CheckpointError as error:
            message = str(error)
        fault.undo()
        if fault.count <= at:
            break
        found = find_latest(run, verify=True, tell=pytest.fail)
        if message:
            failed += 1
            reason = "No space left" if act is no_space else "Read-only file system"
            assert f"step_00000002: {reason}" in message
            assert "step_00000001" in message
            assert files(run / "checkpoints/step_00000001") == before
        else:
            assert found.step == 2
        # Room again: the same command goes on, and nothing is left over.
        save(run, engine, step=3, **settings)
        assert names(run) == ["latest", "step_00000003"]
        assert find_latest(run, verify=True, tell=pytest.fail).step == 3
    assert failed > 20


def test_a_full_disk_says_what_was_and_what_is(run, engine, save, faults):
    save(run, engine, step=1)
    faults(at=6, act=no_space)
    with pytest.raises(
        CheckpointError,
        match=r"step_00000002: No space left on device \([\d,]+ bytes were written, [\d,]+ are "
        r"free\); step_00000001 kept",
    ):
        save(run, engine, step=2)


def test_too_little_space_is_seen_before_anything_is_written(run, engine, save, monkeypatch):
    save(run, engine, step=1)
    usage = SimpleNamespace(free=100)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CheckpointError, match="needs 120 bytes, 100 are free; step_00000001 kept"):
        save(run, engine, step=2)
    assert names(run) == ["latest", "step_00000001"]


def test_a_kill_at_any_operation_leaves_a_whole_one(tmp_path, engine, save, faults):
    killed = 0
    for at in count():
        run = tmp_path / str(at)
        save(run, engine, step=1, keep_last=1)
        child = os.fork()
        if child == 0:
            try:
                faults(at=at, act=lambda: os.kill(os.getpid(), signal.SIGKILL))
                save(run, engine, step=2, keep_last=1)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            break
        killed += 1
        found = find_latest(run, verify=True, tell=pytest.fail)
        assert found.step in (1, 2)
        save(run, engine, step=found.step + 1, keep_last=1)
        assert names(run) == ["latest", f"step_{found.step + 1:08d}"]
    assert killed > 20


def save_for_ever(run, *, first, make_engine, save, pipe) -> None:
    """Save states that follow from their step alone; say after each that it is done."""
    for step in count(first):
        save(run, make_engine(step), step=step, asynchronous=step % 2 == 0)
        os.write(pipe, b".")


def test_a_kill_at_any_moment_loses_the_save_in_progress_at_most(run, make_engine, save):
    moments, done = random.Random(0), 0
    for _ in range(12):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                save_for_ever(run, first=done + 1, make_engine=make_engine, save=save, pipe=write)
            finally:
                os._exit(1)
        os.close(write)
        for _ in range(moments.randrange(3)):
            done += len(os.read(read, 1))
        # Anywhere in a save, whose length is not known: a few milliseconds on an idle machine.
        time.sleep(moments.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while os.read(read, 1):
            done += 1
        os.close(read)
        found = find_latest(run, verify=True, tell=pytest.fail)
        if found is None:
            assert done == 0
            continue
        assert found.step in (done, done + 1)
        done = found.step
        expected, other = make_engine(done), make_engine(10**6)
        assert checkpoint.restore(found, engine=other, ema=None).step == done
        assert all(other.flat[kind].equal(expected.flat[kind]) for kind in expected.flat)
    assert done > 5
