"""What is logged: means over ranks and steps, each step once, no folders sent away."""

import json
import time

import pytest
import torch

from sat_udpdiff.config_io import load_config
from sat_udpdiff.diffusion.loss import LossTerms
from sat_udpdiff.distributed import Place
from sat_udpdiff.training.metrics import (
    Meter,
    RunLog,
    cut_metrics,
    data_advice,
    measure,
    redact,
    split_meters,
)

TIMES = ("step_seconds", "data_wait_seconds", "samples_per_second")
ONE = Place(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"), backend="gloo")


def measured(total: list[float], *, t: list[int], task: list[int]) -> torch.Tensor:
    values = torch.tensor(total)
    terms = LossTerms(total=values, video=values - 1, dense=values + 1)
    return measure(terms, t=torch.tensor(t), task=torch.tensor(task), num_timesteps=1000)


def test_means_are_over_samples_of_all_steps_by_task_and_timestep():
    meter = Meter(torch.device("cpu"))
    meter.add(measured([2.0, 4.0], t=[0, 999], task=[0, 1]), grad_norm=torch.tensor(1.0))
    meter.add(measured([6.0, 8.0], t=[249, 250], task=[1, 1]), grad_norm=torch.tensor(3.0))
    means = meter.means()
    assert means["loss"] == 5.0
    assert (means["loss_video"], means["loss_dense"]) == (4.0, 6.0)
    assert (means["loss_segmentation"], means["loss_depth"]) == (2.0, 6.0)
    assert [means[f"loss_t_quartile_{q}"] for q in (1, 2, 3, 4)] == [4.0, 8.0, None, 4.0]
    assert means["grad_norm"] == 2.0
    assert meter.means()["loss"] is None


def test_a_meter_goes_on_from_a_checkpoint_bit_for_bit():
    steps = [measured([x, x / 3], t=[1, 2], task=[0, 1]) for x in (0.1, 0.7, 1.3)]
    unbroken, before = Meter(torch.device("cpu")), Meter(torch.device("cpu"))
    for step in steps:
        unbroken.add(step, grad_norm=torch.tensor(0.3))
    before.add(steps[0], grad_norm=torch.tensor(0.3))
    rows = json.loads(json.dumps([before.row()]))
    after = Meter(torch.device("cpu"), row=split_meters(rows, place=ONE))
    for step in steps[1:]:
        after.add(step, grad_norm=torch.tensor(0.3))
    assert after.means() == unbroken.means()


def test_meters_of_other_ranks_are_not_lost_when_the_number_of_ranks_changes():
    assert split_meters([[1.0, 2.0], [10.0, 20.0]], place=ONE) == [11.0, 22.0]
    assert split_meters([], place=ONE) == ()


def test_later_and_half_written_lines_are_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in (1, 2, 3, 4)]
    path.write_text("\n".join([*lines, '{"step": 5, "lo']))
    cut_metrics(path, step=2)
    assert path.read_text() == "\n".join(lines[:2]) + "\n"


def test_a_missing_file_is_left_missing(tmp_path):
    cut_metrics(tmp_path / "metrics.jsonl", step=2)
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


def test_a_run_without_a_dense_map_logs_nothing_for_one():
    terms = LossTerms(total=torch.ones(2), video=torch.ones(2), dense=torch.zeros(2))
    meter = Meter(torch.device("cpu"))
    row = measure(terms, t=torch.tensor([0, 900]), task=None, num_timesteps=1000)
    meter.add(row, grad_norm=torch.tensor(1.0))
    means = meter.means()
    assert (means["loss"], means["loss_video"]) == (1.0, 1.0)
    assert {means["loss_dense"], means["loss_segmentation"], means["loss_depth"]} == {None}


def test_a_long_wait_for_data_is_told_once_with_what_to_change(tmp_path, capsys):
    config = load_config([], [f"run.output={tmp_path}", "data.num_workers=1"])
    log = RunLog(config, place=ONE, step=0)
    line = {"loss": 0.5, "lr": 1e-5, "mfu": None, "samples_per_second": 1.0, "step_seconds": 2.0}
    for step, wait in enumerate([1.0, 0.2, 0.3, 0.0, 0.12], start=1):
        log.write({"step": step, "data_wait_seconds": wait, **line})
    log.close()
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


def test_wandb_runs_offline_and_takes_no_folder_along(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed (extra: wandb)")
    monkeypatch.setenv("WANDB_SILENT", "true")
    secret = tmp_path / "secret_customer" / "shards"
    settings = [f"run.output={tmp_path}", f"data.shards={secret}", "log.wandb=offline"]
    config = load_config([], settings)
    log = RunLog(config, place=ONE, step=0)
    log.write({"step": 1, "loss": 0.5, "lr": 1e-5, "mfu": None, **dict.fromkeys(TIMES, 1.0)})
    log.close()
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    (record,) = run.glob("*.wandb")
    # Its process writes on for a moment after it said that it had finished.
    deadline = time.monotonic() + 60
    while b"loss" not in record.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert b"loss" in record.read_bytes()
    assert b"secret_customer" not in record.read_bytes()
    assert not list(run.rglob("requirements.txt"))
