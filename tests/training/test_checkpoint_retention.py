"""What is kept and what is deleted: never the last complete checkpoint."""

import shutil

import pytest

from sat_udpdiff.training import checkpoint_files
from sat_udpdiff.training.state import TrainState
from sat_udpdiff.weights.run_folder import CheckpointError, find_latest


def steps(run):
    return sorted(int(path.name[5:]) for path in (run / "checkpoints").glob("step_*"))


def cut(folder):
    path = folder / "network.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


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


def test_nothing_is_deleted_when_the_new_one_is_damaged(run, engine, save, monkeypatch):
    save(run, engine, step=1, keep_last=1)
    publish = checkpoint_files.publish

    def publish_damaged(target, **arguments):
        publish(target, **arguments)
        cut(target)

    monkeypatch.setattr("sat_udpdiff.training.checkpoint.publish", publish_damaged)
    with pytest.raises(CheckpointError, match=r"step_00000002.*expected .* bytes, got"):
        save(run, engine, step=2, keep_last=1)
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


def test_a_deletion_that_fails_is_told_and_ends_nothing(
    run, engine, save, make_config, place, monkeypatch
):
    from sat_udpdiff.training.checkpoint import Saver

    save(run, engine, step=1)

    def refuse(path, **_):
        raise PermissionError(13, "Permission denied")

    said = []
    saver = Saver(make_config(run, keep_last=1), place=place(0, 1), tell=said.append)
    monkeypatch.setattr(checkpoint_files.shutil, "rmtree", refuse)
    saver.save(engine, ema=None, state=TrainState(step=2))
    saver.finish()
    monkeypatch.undo()
    assert len(said) == 1
    assert "step_00000001 could not be deleted (Permission denied)" in said[0]
    assert find_latest(run).step == 2
    saver.save(engine, ema=None, state=TrainState(step=3))
    saver.finish()
    saver.close()
    # Half a folder had lost its name before, and is removed with the next save.
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "latest",
        "step_00000003",
    ]
