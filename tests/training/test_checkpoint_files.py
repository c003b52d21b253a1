"""Checkpoints are complete or absent, come back bit for bit, and damage is passed over."""

import json
import re
import threading
from hashlib import sha256
from importlib import metadata

import pytest
import torch

from sat_udpdiff.config import EMAConfig
from sat_udpdiff.training import checkpoint, resume_point
from sat_udpdiff.training.ema import EMA
from sat_udpdiff.training.resume_point import find_whole
from sat_udpdiff.training.state import TrainState
from sat_udpdiff.weights.run_folder import CheckpointError, find_latest, open_checkpoint

KINDS = ("network", "exp_avg", "exp_avg_sq")


def names(run):
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_everything_comes_back_bit_for_bit(run, engine, make_engine, save):
    ema = EMA(engine.masters(), config=EMAConfig(enabled=True, decay=0.5))
    engine.flat["network"] += 1
    ema.update(engine.masters())
    save(run, engine, step=7, ema=ema)
    other = make_engine(1)
    other_ema = EMA(other.masters(), config=EMAConfig(enabled=True, decay=0.5))
    state = checkpoint.restore(find_latest(run), engine=other, ema=other_ema)
    assert state == TrainState(step=7, samples_seen=14, meters=[[0.5]])
    assert all(other.flat[kind].equal(engine.flat[kind]) for kind in KINDS)
    assert other_ema.shadow[0].equal(ema.shadow[0])
    assert not other_ema.shadow[0].equal(engine.flat["network"])
    assert (other_ema.num_updates, other.steps) == (1, 7.0)


def test_averaging_switched_on_later_starts_from_the_weights(run, engine, make_engine, save):
    save(run, engine, step=1)
    other = make_engine(1)
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


def test_a_checkpoint_says_what_wrote_it(run, engine, save):
    save(run, engine, step=1)
    content = json.loads((run / "checkpoints/step_00000001/state.json").read_text())
    assert content["packages"]["torch"] == metadata.version("torch")
    assert content["git_commit"] is None or re.fullmatch("[0-9a-f]{40}", content["git_commit"])


def test_what_a_killed_save_left_is_removed_by_the_next(run, engine, save):
    leftover = run / "checkpoints" / ".staging_step_00000001"
    leftover.mkdir(parents=True)
    (leftover / "network.safetensors").write_bytes(b"half")
    assert find_latest(run) is None
    save(run, engine, step=2)
    assert names(run) == ["latest", "step_00000002"]


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


def damage_counter(folder):
    flip_bit(folder / "state.json", at=b'"samples_seen": 4', offset=-1)


def damage_sums(folder):
    (folder / "SHA256SUMS").unlink()


def damage_name(folder):
    flip_bit(folder / "SHA256SUMS", at=b"  config.yaml", offset=3)


def flip_bit(path, *, at, offset):
    content = bytearray(path.read_bytes())
    content[content.index(at) + (offset if offset >= 0 else len(at) + offset)] ^= 1
    path.write_bytes(content)


SEEN = [
    damage_missing,
    damage_cut,
    damage_header,
    damage_state,
    damage_counter,
    damage_sums,
    damage_name,
]


@pytest.mark.parametrize("damage", SEEN)
def test_a_damaged_checkpoint_is_passed_over_by_name(damage, run, engine, save):
    save(run, engine, step=1)
    damage(save(run, engine, step=2))
    said = []
    assert find_latest(run, tell=said.append).step == 1
    assert len(said) == 1
    assert "step_00000002" in said[0]
    if damage is damage_counter:
        return  # looks for what is written at step 2
    damage(run / "checkpoints/step_00000001")
    with pytest.raises(CheckpointError, match="all 2 checkpoints are damaged"):
        find_latest(run, tell=said.append)


@pytest.mark.parametrize("position", [0, 200, -1])
@pytest.mark.parametrize(
    "name", ["network.safetensors", "exp_avg_sq.safetensors", "config.yaml", "SHA256SUMS"]
)
def test_a_flipped_bit_anywhere_is_seen_by_a_run_that_resumes(
    name, position, run, engine, save, place
):
    save(run, engine, step=1)
    path = save(run, engine, step=2) / name
    content = bytearray(path.read_bytes())
    content[position] ^= 0b100
    path.write_bytes(content)
    said = []
    found = find_whole(run, place=place(0, 1), tell=said.append)
    assert found.step == 1
    assert "step_00000002" in said[0]
    assert find_latest(run, tell=said.append, verify=True).step == 1


def test_ranks_agree_on_what_one_of_them_finds_damaged(run, engine, save, team):
    save(run, engine, step=1)
    folder = save(run, engine, step=2)
    path = folder / "exp_avg.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    said = {rank: [] for rank in range(3)}
    ranks = team(3)
    found = ranks.run(lambda place: find_whole(run, place=place, tell=said[place.rank].append))
    assert [checkpoint.step for checkpoint in found] == [1, 1, 1]
    assert said[0] == said[1] == said[2]
    assert "exp_avg.safetensors: changed on the disk: expected sha256" in said[0][0]


def test_a_rank_that_sees_no_file_decides_for_all(run, engine, save, team, monkeypatch):
    save(run, engine, step=1)
    save(run, engine, step=2)
    ranks, seen = team(2), resume_point.open_checkpoint

    def open_for(folder):
        if threading.current_thread() is second[0] and folder.name == "step_00000002":
            raise PermissionError(13, "Permission denied", str(folder))
        return seen(folder)

    second = []
    monkeypatch.setattr(resume_point, "open_checkpoint", open_for)

    def find(place):
        if place.rank == 1:
            second.append(threading.current_thread())
        ranks.gather(None, place=place)
        return find_whole(run, place=place, tell=lambda _: None)

    assert [found.step for found in ranks.run(find)] == [1, 1]


def test_checkpoints_without_sums_still_open(run, engine, make_engine, save, place):
    """As version 1 wrote them."""
    folder = save(run, engine, step=2)
    (folder / "SHA256SUMS").unlink()
    content = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(content | {"version": 1}))
    found = find_whole(run, place=place(0, 1))
    assert (found.step, found.sums) == (2, {})
    other = make_engine(1)
    checkpoint.restore(found, engine=other, ema=None)
    assert other.flat["network"].equal(engine.flat["network"])


def test_another_format_is_refused_by_number(run, engine, save):
    folder = save(run, engine, step=2)
    (folder / "SHA256SUMS").unlink()
    content = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(content | {"version": 3}))
    with pytest.raises(CheckpointError, match="expected format version 1 to 2, got 3"):
        open_checkpoint(folder)


def test_sums_can_be_checked_by_hand(run, engine, save):
    folder = save(run, engine, step=1)
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    files = sorted(path for path in folder.iterdir() if path.name != "SHA256SUMS")
    assert lines == [f"{sha256(path.read_bytes()).hexdigest()}  {path.name}" for path in files]


def test_the_next_save_does_not_take_a_damaged_one_for_the_newest(run, engine, save):
    save(run, engine, step=1)
    damage_cut(save(run, engine, step=4))
    save(run, engine, step=2, keep_last=1)
    assert "step_00000002" in names(run)
    assert find_latest(run).step == 2
    save(run, engine, step=4, keep_last=1)
    assert open_checkpoint(run / "checkpoints/step_00000004").step == 4


@pytest.mark.parametrize("latest", [b"", b"step_00000009", b"\xff\xfe", None])
def test_a_bad_latest_file_costs_nothing(latest, run, engine, save):
    for step in (1, 2):
        save(run, engine, step=step)
    path = run / "checkpoints/latest"
    path.unlink() if latest is None else path.write_bytes(latest)
    assert find_latest(run).step == 2


def test_latest_is_obeyed(run, engine, save):
    for step in (1, 2):
        save(run, engine, step=step)
    (run / "checkpoints/latest").write_text("step_00000001\n")
    assert find_latest(run).step == 1


def test_state_says_what_made_it(run, engine, save):
    folder = save(run, engine, step=1)
    content = json.loads((folder / "state.json").read_text())
    assert content["world_size"] == 1
    assert set(content["packages"]) >= {"torch", "deepspeed"}
    files = {f"{kind}.safetensors" for kind in KINDS} | {"config.yaml"}
    assert set(content["files"]) == files
    assert set(open_checkpoint(folder).sums) == files | {"state.json"}
