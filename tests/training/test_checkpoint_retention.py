"""What is kept and what is deleted: never the last complete checkpoint."""

import errno
import os
import shutil
import threading
from pathlib import Path

import pytest

from sat_udpdiff.training import checkpoint, checkpoint_files
from sat_udpdiff.training.checkpoint import Saver
from sat_udpdiff.training.state import TrainState
from sat_udpdiff.weights import run_folder
from sat_udpdiff.weights.run_folder import CheckpointError, find_latest, step_folder


def steps(run):
    return sorted(int(path.name[5:]) for path in (run / "checkpoints").glob("step_*"))


def cut(folder):
    path = folder / "network.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def flip(folder):
    """One bit of the last number; size and header are as they were."""
    path = folder / "network.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def names(run):
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def refuse_to_delete(monkeypatch, name):
    """Let no folder be deleted whose name has `name` in it."""
    delete = shutil.rmtree

    def refuse(path, ignore_errors=False):
        if name not in Path(path).name:
            delete(path, ignore_errors)
        elif not ignore_errors:
            raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(shutil, "rmtree", refuse)


@pytest.mark.parametrize("keep_last", [0, 1, 2, 3, 4, 5])
def test_only_the_newest_are_kept(keep_last, run, engine, save):
    for step in range(1, 8):
        save(run, engine, step=step, keep_last=keep_last)
    assert steps(run) == list(range(1, 8) if keep_last == 0 else range(8 - keep_last, 8))


def test_multiples_are_kept_for_ever(run, engine, save):
    for step in range(1, 12):
        save(run, engine, step=step, keep_last=2, keep_every=4)
    assert steps(run) == [4, 8, 10, 11]


@pytest.mark.parametrize("keep_last", [1, 2, 3])
def test_damaged_ones_do_not_count(keep_last, run, engine, save):
    for step in (1, 2, 3, 4):
        save(run, engine, step=step, keep_last=0)
    for step in (2, 4):
        cut(run / f"checkpoints/step_{step:08d}")
    save(run, engine, step=5, keep_last=keep_last)
    # Whole are 1, 3 and 5; damaged ones go when as many whole ones are newer.
    assert steps(run) == {1: [5], 2: [3, 4, 5], 3: [1, 2, 3, 4, 5]}[keep_last]


@pytest.mark.parametrize("keep_last", [2, 3])
def test_a_flipped_bit_in_an_old_one_does_not_count(keep_last, run, engine, save):
    for step in (1, 2, 3):
        save(run, engine, step=step, keep_last=0)
    flip(step_folder(run, step=3))
    save(run, engine, step=4, keep_last=keep_last)
    assert steps(run) == {2: [2, 3, 4], 3: [1, 2, 3, 4]}[keep_last]
    flip(step_folder(run, step=4))
    assert find_latest(run, tell=lambda _: None, verify=True).step == 2


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
def test_an_old_one_that_cannot_be_looked_at_does_not_count(code, run, engine, save, monkeypatch):
    for step in (1, 2, 3):
        save(run, engine, step=step, keep_last=0)
    stat, sick = Path.stat, step_folder(run, step=3) / "exp_avg.safetensors"

    def fail(path, **options):
        if path == sick:
            raise OSError(code, os.strerror(code))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", fail)
    save(run, engine, step=4, keep_last=2)
    assert steps(run) == [2, 3, 4]
    with pytest.raises(CheckpointError, match=f"exp_avg.safetensors: .*{os.strerror(code)}"):
        run_folder.open_checkpoint(sick.parent)


def test_bytes_are_read_once_and_only_before_something_is_deleted(
    run, engine, make_config, place, monkeypatch
):
    read, check = [], run_folder.check_sum

    def note(found, name):
        read.append((found.step, name))
        check(found, name)

    monkeypatch.setattr(run_folder, "check_sum", note)
    run.mkdir()
    saver = Saver(make_config(run, keep_last=2), place=place(0, 1))
    for step in range(1, 6):
        saver.save(engine, ema=None, state=TrainState(step=step))
    saver.finish()
    saver.close()
    # The third save is the first to delete one: then 3 and 2 have to be whole.
    assert list(dict.fromkeys(step for step, _ in read)) == [3, 2, 4, 5]
    assert (
        len(set(read))
        == len(read)
        == 4 * len(run_folder.open_checkpoint(step_folder(run, step=5)).sums)
    )
    assert steps(run) == [4, 5]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_training_goes_on_while_old_ones_are_compared_and_deleted(
    asynchronous, run, engine, make_engine, make_config, save, team, monkeypatch
):
    save(run, engine, step=1)
    may_delete, prune, ranks = threading.Event(), checkpoint.prune, team(2)

    def wait(*arguments, **named):
        assert may_delete.wait(30)
        prune(*arguments, **named)

    monkeypatch.setattr(checkpoint, "prune", wait)

    def train(place):
        saver = Saver(make_config(run, keep_last=1, asynchronous=asynchronous), place=place)
        saver.save(make_engine(0), ema=None, state=TrainState(step=2))
        while not ranks.gather(steps(run) == [1, 2], place=place)[0]:
            saver.poll()
        for _ in range(5):
            saver.poll()
        seen = steps(run)
        ranks.gather(None, place=place)
        may_delete.set()
        saver.finish()
        saver.close()
        return seen

    assert ranks.run(train) == [[1, 2]] * 2
    assert steps(run) == [2]


@pytest.mark.parametrize(
    ("damage", "message"),
    [(cut, "expected .* bytes, got"), (flip, "network.safetensors: changed on the disk")],
)
def test_nothing_is_deleted_when_the_new_one_is_damaged(
    damage, message, run, make_engine, save, make_config, team, monkeypatch
):
    save(run, make_engine(0), step=1, keep_last=1)
    publish = checkpoint_files.publish

    def publish_damaged(target, **arguments):
        publish(target, **arguments)
        damage(target)

    monkeypatch.setattr("sat_udpdiff.training.checkpoint.publish", publish_damaged)
    errors = team(2).run(lambda place: save(run, make_engine(0), step=2, keep_last=1, place=place))
    assert all(isinstance(error, CheckpointError) for error in errors)
    assert str(errors[0]) == str(errors[1])
    with pytest.raises(CheckpointError, match=rf"step_00000002.*{message}"):
        raise errors[0]
    assert steps(run) == [1, 2]
    assert find_latest(run, tell=lambda _: None, verify=True).step == 1


def test_what_is_not_ours_stays(run, engine, save):
    copy = run / "checkpoints/step_00000001_copy"
    shutil.copytree(save(run, engine, step=1, keep_last=1), copy)
    save(run, engine, step=2, keep_last=1)
    assert find_latest(run).step == 2
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "latest",
        "step_00000001_copy",
        "step_00000002",
    ]


def test_what_can_never_be_deleted_is_told_and_stays_and_ends_nothing(
    run, engine, save, make_config, place, monkeypatch
):
    save(run, engine, step=1)
    refuse_to_delete(monkeypatch, "step_00000001")
    said = []
    saver = Saver(make_config(run, keep_last=1), place=place(0, 1), tell=said.append)
    for step in (2, 3):
        saver.save(engine, ema=None, state=TrainState(step=step))
        saver.finish()
    # Half a folder had lost its name before, so that no reader meets it.
    leftover, *others = names(run)
    assert leftover.startswith(".staging_deleted_")
    assert leftover.endswith("step_00000001")
    assert others == ["latest", "step_00000003"]
    busy = "could not be deleted (Device or resource busy) and stays"
    folder = run / "checkpoints"
    assert said == [f"note: {folder / name} {busy}" for name in ("step_00000001", leftover)]
    checkpoint_files.clear_staging(folder, tell=said.append)  # as a start does
    assert said[2:] == said[1:2]
    monkeypatch.undo()
    saver.save(engine, ema=None, state=TrainState(step=4))
    saver.finish()
    saver.close()
    assert names(run) == ["latest", "step_00000004"]


def test_a_damaged_one_that_cannot_be_deleted_makes_room_for_its_step(
    run, engine, save, monkeypatch
):
    refuse_to_delete(monkeypatch, "step_00000002")
    for _ in range(3):
        save(run, engine, step=2)
        cut(step_folder(run, step=2))
    save(run, engine, step=2)
    assert find_latest(run, tell=pytest.fail, verify=True).step == 2
    assert len([name for name in names(run) if "deleted" in name]) == 3


def test_a_leftover_in_the_place_of_a_save_ends_it_with_the_reason(run, engine, save, monkeypatch):
    save(run, engine, step=1)
    checkpoint_files.staging_of(step_folder(run, step=2)).mkdir()
    refuse_to_delete(monkeypatch, "step_00000002")
    with pytest.raises(CheckpointError, match="step_00000002: Device or resource busy"):
        save(run, engine, step=2)
    assert find_latest(run, verify=True).step == 1
