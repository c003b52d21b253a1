"""Checkpoints are complete or absent: full disks, kills, damage."""

import errno
import json
import re
from collections import namedtuple
from dataclasses import replace
from importlib import metadata

import pytest
import torch

from sat_udpdiff.config import CheckpointConfig, Config, EMAConfig, RunConfig
from sat_udpdiff.distributed import Place
from sat_udpdiff.training import checkpoint
from sat_udpdiff.training.ema import EMA
from sat_udpdiff.training.state import TrainState
from sat_udpdiff.weights.run_folder import CheckpointError, find_latest, open_checkpoint

ONE = Place(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"), backend="gloo")
KINDS = ("network", "exp_avg", "exp_avg_sq")
Usage = namedtuple("Usage", "total used free")


class FlatEngine:
    """Two named parameters in one flat master, as ZeRO keeps them."""

    num_parameters = 10
    base_sha256 = ""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.flat = {kind: torch.randn(10, generator=generator) for kind in KINDS}
        self.steps = 0.0

    def masters(self):
        return [self.flat["network"]]

    def gather(self, kind, *, keep):
        assert keep
        return {"a": self.flat[kind][:6].view(2, 3).clone(), "b": self.flat[kind][6:].clone()}

    def scatter(self, kind, tensors):
        self.flat[kind][:6] = tensors["a"].flatten()
        self.flat[kind][6:] = tensors["b"]

    def counters(self):
        return {"adam_step": self.steps}

    def set_counters(self, counters):
        self.steps = counters["adam_step"]


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def engine():
    return FlatEngine(0)


def save(run, engine, *, step, ema=None, keep_last=2):
    run.mkdir(exist_ok=True)
    config = replace(
        Config(), run=RunConfig(output=str(run)), checkpoint=CheckpointConfig(keep_last=keep_last)
    )
    engine.steps = float(step)
    state = TrainState(step=step, samples_seen=2 * step, meters=[[0.5]])
    return checkpoint.save(engine, ema=ema, state=state, config=config, place=ONE)


def names(run):
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_everything_comes_back_bit_for_bit(run, engine):
    ema = EMA(engine.masters(), config=EMAConfig(enabled=True, decay=0.5))
    engine.flat["network"] += 1
    ema.update(engine.masters())
    save(run, engine, step=7, ema=ema)
    other = FlatEngine(1)
    other_ema = EMA(other.masters(), config=EMAConfig(enabled=True, decay=0.5))
    state = checkpoint.restore(find_latest(run), engine=other, ema=other_ema)
    assert state == TrainState(step=7, samples_seen=14, meters=[[0.5]])
    assert all(other.flat[kind].equal(engine.flat[kind]) for kind in KINDS)
    assert other_ema.shadow[0].equal(ema.shadow[0])
    assert not other_ema.shadow[0].equal(engine.flat["network"])
    assert (other_ema.num_updates, other.steps) == (1, 7.0)


def test_averaging_switched_on_later_starts_from_the_weights(run, engine):
    save(run, engine, step=1)
    other = FlatEngine(1)
    ema = EMA(other.masters(), config=EMAConfig(enabled=True))
    checkpoint.restore(find_latest(run), engine=other, ema=ema)
    assert ema.shadow[0].equal(engine.flat["network"])
    assert ema.num_updates == 0


def test_ema_follows_its_formula():
    master = torch.zeros(1)
    ema = EMA([master], config=EMAConfig(enabled=True, decay=0.2))
    master += 1
    expected = 0.0
    for n in (1, 2, 3):
        ema.update([master])
        decay = min(0.2, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay)
        assert ema.shadow[0].item() == pytest.approx(expected, rel=1e-6)


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("call", ["save_file", "save_config", "_flush"])
def test_a_full_disk_keeps_the_checkpoint_before(call, run, engine, monkeypatch):
    save(run, engine, step=1)
    before = {
        path.name: path.read_bytes() for path in (run / "checkpoints/step_00000001").iterdir()
    }
    monkeypatch.setattr(checkpoint, call, no_space)
    with pytest.raises(
        CheckpointError, match=r"step_00000002: No space left on device .*step_00000001 kept"
    ):
        save(run, engine, step=2)
    monkeypatch.undo()
    assert names(run) == ["latest", "step_00000001"]
    after = {path.name: path.read_bytes() for path in (run / "checkpoints/step_00000001").iterdir()}
    assert after == before
    assert find_latest(run).step == 1
    save(run, engine, step=2)
    assert find_latest(run).step == 2


def test_a_checkpoint_says_what_wrote_it(run, engine):
    save(run, engine, step=1)
    content = json.loads((run / "checkpoints/step_00000001/state.json").read_text())
    assert content["packages"]["torch"] == metadata.version("torch")
    assert content["git_commit"] is None or re.fullmatch("[0-9a-f]{40}", content["git_commit"])


def test_too_little_space_is_seen_before_anything_is_written(run, engine, monkeypatch):
    save(run, engine, step=1)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: Usage(1000, 900, 100))
    with pytest.raises(CheckpointError, match="needs 120 bytes, 100 are free; step_00000001 kept"):
        save(run, engine, step=2)
    assert names(run) == ["latest", "step_00000001"]


def test_what_a_killed_save_left_is_removed_by_the_next(run, engine):
    leftover = run / "checkpoints" / ".staging_step_00000001"
    leftover.mkdir(parents=True)
    (leftover / "network.safetensors").write_bytes(b"half")
    assert find_latest(run) is None
    save(run, engine, step=2)
    assert names(run) == ["latest", "step_00000002"]


@pytest.mark.parametrize("keep_last", [0, 1, 2, 3, 4, 5])
def test_only_the_newest_are_kept(keep_last, run, engine):
    for step in range(1, 8):
        save(run, engine, step=step, keep_last=keep_last)
    kept = range(1, 8) if keep_last == 0 else range(8 - keep_last, 8)
    assert names(run) == ["latest", *(f"step_{step:08d}" for step in kept)]


def damage_missing(folder):
    (folder / "exp_avg.safetensors").unlink()


def damage_cut(folder):
    path = folder / "network.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def damage_header(folder):
    path = folder / "network.safetensors"
    path.write_bytes(b"\xff" * path.stat().st_size)


def damage_state(folder):
    (folder / "state.json").write_text("{")


@pytest.mark.parametrize("damage", [damage_missing, damage_cut, damage_header, damage_state])
def test_a_damaged_checkpoint_is_passed_over_by_name(damage, run, engine):
    save(run, engine, step=1)
    damage(save(run, engine, step=2))
    said = []
    assert find_latest(run, tell=said.append).step == 1
    assert len(said) == 1
    assert "step_00000002" in said[0]
    damage(run / "checkpoints/step_00000001")
    with pytest.raises(CheckpointError, match="all 2 checkpoints are damaged"):
        find_latest(run, tell=said.append)


def test_the_next_save_does_not_take_a_damaged_one_for_the_newest(run, engine):
    save(run, engine, step=1)
    damage_cut(save(run, engine, step=4))
    save(run, engine, step=2, keep_last=1)
    assert "step_00000002" in names(run)
    assert find_latest(run).step == 2
    save(run, engine, step=4, keep_last=1)
    assert open_checkpoint(run / "checkpoints/step_00000004").step == 4


@pytest.mark.parametrize("latest", [b"", b"step_00000009", b"\xff\xfe", None])
def test_a_bad_latest_file_costs_nothing(latest, run, engine):
    for step in (1, 2):
        save(run, engine, step=step)
    path = run / "checkpoints/latest"
    path.unlink() if latest is None else path.write_bytes(latest)
    assert find_latest(run).step == 2


def test_latest_is_obeyed(run, engine):
    for step in (1, 2):
        save(run, engine, step=step)
    (run / "checkpoints/latest").write_text("step_00000001\n")
    assert find_latest(run).step == 1


def test_state_says_what_made_it(run, engine):
    folder = save(run, engine, step=1)
    content = json.loads((folder / "state.json").read_text())
    assert content["world_size"] == 1
    assert set(content["packages"]) >= {"torch", "deepspeed"}
    assert set(content["files"]) == {f"{kind}.safetensors" for kind in KINDS} | {"config.yaml"}
