"""What a run writes: each step once, events with their samples, no folders sent away."""

import json
import logging
import os
import time
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sat_udpdiff.config_io import load_config
from sat_udpdiff.distributed import Place
from sat_udpdiff.training import run_log
from sat_udpdiff.training.run_log import RunLog, cut_lines, data_advice, log_by_rank, redact
from sat_udpdiff.training.watch import Lag

TIMES = ("step_seconds", "data_wait_seconds", "samples_per_second")
LINE = {"loss": 0.5, "lr": 1e-5, "mfu": None, **dict.fromkeys(TIMES, 1.0)}
ONE = Place(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"), backend="gloo")


def test_later_and_half_written_lines_are_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in (1, 2, 3, 4)]
    path.write_text("\n".join([*lines, '{"step": 5, "lo']))
    cut_lines(path, step=2)
    assert path.read_text() == "\n".join(lines[:2]) + "\n"


def test_a_missing_file_is_left_missing(tmp_path):
    cut_lines(tmp_path / "metrics.jsonl", step=2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        ("/home/someone/secret/shards/", "shards"),
        ("~/models/base", "base"),
        ("../private/shards", "shards"),
        ("THUDM/CogVideoX-5b", "THUDM/CogVideoX-5b"),
        (["/a/b", 1], ["b", 1]),
        (None, None),
    ],
)
def test_folders_do_not_leave_the_machine(value, sent):
    assert redact({"x": value}) == {"x": sent}


def test_a_long_wait_for_data_is_told_once_with_what_to_change(tmp_path, capsys):
    config = load_config([], [f"run.output={tmp_path}", "data.num_workers=1"])
    log = RunLog(config, place=ONE, step=0)
    line = {"loss": 0.5, "lr": 1e-5, "mfu": None, "samples_per_second": 1.0, "step_seconds": 2.0}
    for step, wait in enumerate([1.0, 0.2, 0.3, 0.0, 0.12], start=1):
        log.write({"step": step, "data_wait_seconds": wait, **line})
    log.close("finished")
    told = [text for text in capsys.readouterr().err.splitlines() if "waiting for data" in text]
    assert [text.split(":")[0] for text in told] == ["step 2", "step 5"]
    assert "10% of the time went by waiting for data: raise data.num_workers (now 1; " in told[0]


def test_the_advice_fits_the_data():
    def advice(*overrides):
        return data_advice(load_config([], list(overrides)).data, cores=4)

    assert advice("data.num_workers=2").startswith(
        "raise data.num_workers (now 2; 4 cores here); or "
    )
    assert "python -m data_loaders.latents" in advice("data.num_workers=8")
    assert "raise data.num_workers" not in advice("data.num_workers=8")
    assert "faster disk" in advice("data.source=latents", "data.latents=x")


def test_wandb_goes_on_with_its_run_and_takes_no_folder_along(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed (extra: wandb)")
    monkeypatch.setenv("WANDB_SILENT", "true")
    secret = tmp_path / "secret_customer" / "shards"
    settings = [f"run.output={tmp_path}", f"data.shards={secret}", "log.wandb=offline"]
    config = load_config([], settings)
    for step in (0, 1):  # a run, and its resume
        log = RunLog(config, place=ONE, step=step)
        log.write({**LINE, "step": step + 1})
        log.close("stopped")
    runs = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert {run.name.split("-")[-1] for run in runs} == {
        (tmp_path / "wandb_id").read_text().strip()
    }
    run = runs[0]
    (record,) = run.glob("*.wandb")
    # Its process writes on for a moment after it said that it had finished.
    deadline = time.monotonic() + 60
    while b"loss" not in record.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert b"loss" in record.read_bytes()
    assert b"secret_customer" not in record.read_bytes()
    assert not list(run.rglob("requirements.txt"))


def test_wandb_is_sent_each_step_once_though_a_resume_repeats_some(tmp_path, monkeypatch):
    sent = []

    def send(values, *, step):
        known.step = step
        sent.append((step, sorted(values)[0]))

    # As wandb has it for a run that was killed after its fourth step.
    known = SimpleNamespace(step=5, log=send, finish=lambda: None)
    monkeypatch.setattr(run_log, "_start_wandb", lambda *arguments, **options: known)
    config = load_config([], [f"run.output={tmp_path}", "log.wandb=online"])
    log = RunLog(config, place=ONE, step=2)
    for step in (3, 4, 5):
        log.write({**LINE, "step": step})
    log.write_validation({"loss": 1.0}, step=5, seconds=1.0)
    log.close("finished")
    assert sent == [(5, "data_wait_seconds"), (5, "validation/loss")]


def test_a_wandb_that_died_changes_nothing_about_the_end(tmp_path, monkeypatch, capsys):
    def finish():
        raise BrokenPipeError("its process is gone")

    dead = SimpleNamespace(step=0, log=lambda *_, **__: None, finish=finish)
    monkeypatch.setattr(run_log, "_start_wandb", lambda *arguments, **options: dead)
    config = load_config([], [f"run.output={tmp_path}", "log.wandb=online"])
    log = RunLog(config, place=ONE, step=0)
    log.write({**LINE, "step": 1})
    log.close("finished")
    assert "wandb did not end (its process is gone)" in capsys.readouterr().err
    assert json.loads((tmp_path / "heartbeat.json").read_text())["status"] == "finished"


def test_what_was_written_is_flushed_to_the_disk(tmp_path, monkeypatch):
    flushed = {}

    def note(file):
        path = Path(os.readlink(f"/proc/self/fd/{file}"))
        flushed[path.name] = path.read_text() if path.is_file() else None

    log = RunLog(load_config([], [f"run.output={tmp_path}"]), place=ONE, step=0)
    log.write({**LINE, "step": 1})
    monkeypatch.setattr(os, "fsync", note)
    log.flush()
    assert flushed.keys() == {"metrics.jsonl", tmp_path.name}
    log.write_event("x", step=1, kind="x")
    log.flush()
    log.close("stopped")
    assert json.loads(flushed["metrics.jsonl"])["step"] == 1
    assert json.loads(flushed["events.jsonl"])["kind"] == "x"
    # What a resume keeps of them is there before it takes their names.
    flushed.clear()
    cut_lines(tmp_path / "metrics.jsonl", step=1)
    assert json.loads(flushed["metrics.jsonl.partial"])["step"] == 1
    assert tmp_path.name in flushed


def test_only_the_first_rank_warns_and_others_say_who_they_are(monkeypatch, capsys):
    root, level = logging.getLogger(), logging.getLogger().level
    monkeypatch.setenv("SLURMD_NODENAME", "n7")
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    said = []
    try:
        for rank in (0, 3):
            monkeypatch.setattr(root, "handlers", [])
            log_by_rank(replace(ONE, rank=rank, world_size=4))
            logging.getLogger("part").warning("few clips")
            logging.getLogger("part").error("no clips")
            said.append(capsys.readouterr().err)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("of a package", stacklevel=1)
    finally:
        logging.captureWarnings(False)
        root.setLevel(level)
    assert said[0] == "WARNING part: few clips\nERROR part: no clips\n"
    assert said[1] == "[rank 3 of 4 on n7] ERROR part: no clips\n"
    assert capsys.readouterr().err == ""


def test_a_slow_rank_is_told_when_it_stays_slow(tmp_path, capsys):
    log = RunLog(load_config([], [f"run.output={tmp_path}"]), place=ONE, step=0)
    slow = [Lag(rank=1, ratio=2.0, seconds=0.5)]
    other, usual = Lag(rank=0, ratio=1.3, seconds=0.2), [Lag(rank=1, ratio=1.2, seconds=0.1)]
    # Twice rank 1, once another, four times rank 1 again: told once, the third time in a row.
    lags = [*slow * 2, other, *slow * 4, None, *usual * 3]
    for step, lag in enumerate(lags, start=1):
        log.tell_about_lag(lag, hosts=["a", "b"], step=step)
    log.close("finished")
    told = "rank 1 on b takes 2.00 times as long as the others for its forward passes"
    assert capsys.readouterr().err.count(told) == 1
    (event,) = map(json.loads, (tmp_path / "events.jsonl").read_text().splitlines())
    assert (event["step"], event["kind"], event["rank"]) == (6, "slow_rank", 1)


@pytest.mark.parametrize("name", ["metrics.jsonl", "events.jsonl"])
def test_a_full_disk_is_told_with_the_file_and_the_next_start_cuts_what_is_half(name, tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full, which is always full")
    config = load_config([], [f"run.output={tmp_path}"])
    log = RunLog(config, place=ONE, step=0)
    (tmp_path / name).symlink_to("/dev/full")
    line = {"step": 1, "loss": 0.5, "lr": 1e-5, "mfu": None, **dict.fromkeys(TIMES, 1.0)}
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path / name}'"):
        log.write(line) if name == "metrics.jsonl" else log.write_event("x", step=1, kind="x")
    log.close("failed")
    (tmp_path / name).unlink()
    (tmp_path / name).write_text(json.dumps(line) + '\n{"step": 2, "lo')
    log = RunLog(config, place=ONE, step=1)
    log.write_event("x", step=2, kind="x")
    log.write(line | {"step": 2})
    log.close("finished")
    steps = [json.loads(text)["step"] for text in (tmp_path / name).read_text().splitlines()]
    assert steps == [1, 2]


def test_a_start_that_fails_in_its_first_step_stands_where_it_began(tmp_path):
    log = RunLog(load_config([], [f"run.output={tmp_path}"]), place=ONE, step=8)
    log.close("failed")
    beat = json.loads((tmp_path / "heartbeat.json").read_text())
    assert (beat["status"], beat["step"]) == ("failed", 8)


def test_a_heartbeat_that_cannot_be_written_costs_a_line_and_no_training(tmp_path, capsys):
    config = load_config([], [f"run.output={tmp_path}", "log.heartbeat_seconds=0"])
    log = RunLog(config, place=ONE, step=0)
    (tmp_path / "heartbeat.json").mkdir()
    for step in (1, 2):
        log.advance(step, loss=0.5)
    log.close("finished")
    assert capsys.readouterr().err.count("heartbeat.json cannot be written") == 1
