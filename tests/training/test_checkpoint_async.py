"""Saving while training goes on: the same bytes, one at a time, published by all or by none."""

import threading
from contextlib import closing

import pytest

from sat_udpdiff.config import EMAConfig
from sat_udpdiff.training import checkpoint
from sat_udpdiff.training.checkpoint import Saver
from sat_udpdiff.training.ema import EMA
from sat_udpdiff.training.state import TrainState
from sat_udpdiff.weights.run_folder import CheckpointError, find_latest

KINDS = ("network", "exp_avg", "exp_avg_sq", "ema")
NO_SPACE = OSError(28, "No space left on device")


class Gate:
    """Holds writers back until it is opened; may fail on one file."""

    def __init__(self, monkeypatch, *, fails: str = "", error: Exception = NO_SPACE) -> None:
        self.open = threading.Event()
        self.begun = threading.Event()
        write = checkpoint.write_tensors

        def wait(path, tensors, *, facts):
            self.begun.set()
            assert self.open.wait(30)
            if path.stem == fails:
                raise error
            return write(path, tensors, facts=facts)

        monkeypatch.setattr(checkpoint, "write_tensors", wait)


def names(run):
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def state(step):
    return TrainState(step=step, samples_seen=2 * step, meters=[[0.5]])


def files(run, step):
    folder = run / f"checkpoints/step_{step:08d}"
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    # These name the run and whether it was asynchronous.
    return {name: found[name] for name in found if name.endswith(".safetensors")}


def test_training_goes_on_and_the_bytes_are_those_of_a_synchronous_save(
    tmp_path, engine, make_engine, make_config, save, place, monkeypatch
):
    averages = [
        EMA(one.masters(), config=EMAConfig(enabled=True)) for one in (engine, make_engine(0))
    ]
    save(tmp_path / "waiting", engine, step=1, ema=averages[0], asynchronous=False)
    expected = files(tmp_path / "waiting", 1)
    run, gate = tmp_path / "run", Gate(monkeypatch)
    run.mkdir()
    saver = Saver(make_config(run, asynchronous=True), place=place(0, 1))
    saver.save(engine, ema=averages[0], state=state(1))
    assert gate.begun.wait(30)
    # The next step.
    for values in engine.flat.values():
        values.zero_()
    averages[0].update(engine.masters())
    saver.poll()
    assert find_latest(run) is None
    gate.open.set()
    saver.finish()
    saver.close()
    assert files(run, 1) == expected
    assert set(expected) == {f"{kind}.safetensors" for kind in KINDS}
    assert find_latest(run, verify=True).content["ema_updates"] == 0


def test_a_save_waits_for_the_one_before(run, engine, make_config, place, monkeypatch):
    run.mkdir()
    gate = Gate(monkeypatch)
    saver = Saver(make_config(run, asynchronous=True), place=place(0, 1))
    saver.save(engine, ema=None, state=state(1))
    threading.Timer(0.05, gate.open.set).start()
    saver.save(engine, ema=None, state=state(2))
    assert find_latest(run).step == 1
    saver.finish()
    saver.close()
    assert find_latest(run, verify=True).step == 2


def test_poll_publishes_when_the_last_rank_has_written(
    run, make_engine, make_config, team, monkeypatch
):
    run.mkdir()
    ranks, write = team(2), checkpoint.write_tensors
    slow, seen = threading.Event(), []

    def write_slowly(path, tensors, *, facts):
        if path.stem == "exp_avg":  # written by the second rank
            assert slow.wait(30)
        return write(path, tensors, facts=facts)

    monkeypatch.setattr(checkpoint, "write_tensors", write_slowly)

    def train(place):
        saver = Saver(make_config(run, asynchronous=True), place=place)
        saver.save(make_engine(0), ema=None, state=state(1))
        for _ in range(5):
            saver.poll()
        if place.is_main:
            seen.append(find_latest(run))
            slow.set()
        ranks.gather(None, place=place)
        for _ in range(10_000):
            saver.poll()
            if ranks.gather((run / "checkpoints/latest").exists(), place=place)[0]:
                break
        saver.close()

    assert ranks.run(train) == [None, None]
    assert seen == [None]
    assert find_latest(run, verify=True).content["world_size"] == 2


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("fails", ["network", "exp_avg", "exp_avg_sq"])
def test_a_writer_that_fails_on_one_rank_fails_the_save_on_all(
    fails, asynchronous, run, engine, make_engine, make_config, save, team, monkeypatch
):
    save(run, engine, step=1)
    gate = Gate(monkeypatch, fails=fails)
    gate.open.set()

    def train(place):
        with closing(Saver(make_config(run, asynchronous=asynchronous), place=place)) as saver:
            saver.save(make_engine(0), ema=None, state=state(2))
            saver.finish()

    errors = team(2).run(train)
    assert all(isinstance(error, CheckpointError) for error in errors)
    assert str(errors[0]) == str(errors[1])
    assert "step_00000002: No space left on device" in str(errors[0])
    assert names(run) == ["latest", "step_00000001"]
    assert find_latest(run, verify=True).step == 1


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_writer_that_fails_as_nobody_foresaw_ends_all_ranks_with_its_reason(
    asynchronous, run, engine, make_engine, make_config, save, team, monkeypatch
):
    save(run, engine, step=1)
    Gate(monkeypatch, fails="exp_avg", error=MemoryError("no room")).open.set()

    def train(place):
        with closing(Saver(make_config(run, asynchronous=asynchronous), place=place)) as saver:
            saver.save(make_engine(0), ema=None, state=state(2))
            saver.finish()

    first, second = team(2).run(train)
    # The one that failed shows where; the other says which one and why.
    assert isinstance(second, MemoryError)
    assert isinstance(first, CheckpointError)
    assert "step_00000002: rank 1 of 2 on " in str(first)
    assert "failed: MemoryError('no room')" in str(first)
    assert str(first).endswith("step_00000001 kept")
    assert names(run) == ["latest", "step_00000001"]
    assert find_latest(run, verify=True).step == 1


def test_what_the_first_rank_cannot_say_of_the_run_ends_all_ranks(
    run, make_engine, make_config, team
):
    run.mkdir()

    def train(place):
        engine = make_engine(0)
        if place.is_main:
            engine.counters = {}.popitem
        with closing(Saver(make_config(run), place=place)) as saver:
            saver.save(engine, ema=None, state=state(1))

    first, second = team(2).run(train)
    assert isinstance(first, KeyError)
    assert isinstance(second, CheckpointError)
    assert "rank 0 of 2 on " in str(second)
    assert names(run) == []


def test_a_save_that_is_given_up_is_never_seen(run, engine, make_config, save, place, monkeypatch):
    save(run, engine, step=1)
    gate = Gate(monkeypatch)
    saver = Saver(make_config(run, asynchronous=True), place=place(0, 1))
    saver.save(engine, ema=None, state=state(2))
    assert gate.begun.wait(30)
    saver.close()  # and does not wait for what a disk may never end
    gate.open.set()
    for thread in threading.enumerate():
        if thread.name.startswith("checkpoint"):
            thread.join()
    assert find_latest(run, verify=True).step == 1
    monkeypatch.undo()
    save(run, engine, step=3, keep_last=1)
    assert names(run) == ["latest", "step_00000003"]


def test_nothing_is_published_in_a_folder_that_was_taken(run, make_engine, make_config, team):
    run.mkdir()

    def train(place):
        is_ours = iter([True, False])  # when the save begins, and when it is to be published

        def guard():
            if not next(is_ours):
                raise CheckpointError("another run has taken this folder")

        config = make_config(run, asynchronous=True)
        with closing(Saver(config, place=place, guard=guard)) as saver:
            saver.save(make_engine(0), ema=None, state=state(1))
            saver.finish()

    errors = team(2).run(train)
    assert [str(error) for error in errors] == ["another run has taken this folder"] * 2
    assert find_latest(run) is None
