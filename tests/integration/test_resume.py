"""A run that was killed, stopped and moved equals the unbroken one."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sat_udpdiff.config import ConfigError
from sat_udpdiff.config_io import load_config
from sat_udpdiff.distributed import Place
from sat_udpdiff.generation import Encoders, GeneratedSample, SampleRequest, generate
from sat_udpdiff.model.transformer import build_network
from sat_udpdiff.training.setup import find_resume_point
from sat_udpdiff.training.stopping import STOPPED
from sat_udpdiff.weights.load import load_network_weights

STEPS = 16
OVERRIDES = (
    f"train.steps={STEPS}",
    "checkpoint.every_steps=4",
    "log.every_steps=3",  # lies across the checkpoints
    f"validation.every_steps={STEPS}",
    "validation.prompts=[a red disc moves left]",
)
TIMES = ("step_seconds", "data_wait_seconds", "samples_per_second")
LAST = f"checkpoints/step_{STEPS:08d}"


def metrics(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in line if key not in TIMES} for line in lines]


def wait_for(path: Path, process: subprocess.Popen) -> None:
    """Until `path` is there; the program must be running still."""
    deadline = time.monotonic() + 500
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)


def interrupt(command: list[str], env: dict, *, when: Path, by: signal.Signals) -> tuple[int, str]:
    process = subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        wait_for(when, process)
        process.send_signal(by)
        _, errors = process.communicate(timeout=300)
    finally:
        process.kill()
    return process.returncode, errors


@pytest.fixture(scope="module")
def runs(small_world, launch, user_env, tmp_path_factory) -> tuple[Path, Path]:
    """An unbroken run, and one that SIGKILL, SIGTERM and Ctrl-C ended before its end."""
    unbroken, broken = (tmp_path_factory.mktemp(name) for name in ("unbroken", "broken"))
    done = launch([sys.executable, *small_world.train_command(unbroken, *OVERRIDES)])
    assert done.returncode == 0, done.stderr
    command = [sys.executable, *small_world.train_command(broken, *OVERRIDES)]
    first = broken / "checkpoints/step_00000004"
    status, _ = interrupt(command, user_env, when=first, by=signal.SIGKILL)
    assert status == -signal.SIGKILL
    second = broken / "checkpoints/step_00000008"
    status, errors = interrupt(command, user_env, when=second, by=signal.SIGTERM)
    assert status == STOPPED, errors
    assert "resuming after step 4" in errors
    assert "to resume, run the same command again" in errors
    third = broken / "checkpoints/step_00000012"
    status, errors = interrupt(command, user_env, when=third, by=signal.SIGINT)
    assert status == STOPPED, errors
    assert "stopped by a signal" in errors
    done = launch(command)
    assert done.returncode == 0, done.stderr
    assert "resuming after step" in done.stderr
    return unbroken, broken


def test_metrics_have_each_step_once_and_are_equal(runs):
    unbroken, broken = (metrics(run) for run in runs)
    assert [line["step"] for line in unbroken] == [3, 6, 9, 12, 15, 16]
    assert broken == unbroken


@pytest.mark.parametrize("kind", ["network", "exp_avg", "exp_avg_sq", "ema"])
def test_tensors_are_equal_bit_for_bit(kind, runs):
    unbroken, broken = (load_file(run / LAST / f"{kind}.safetensors") for run in runs)
    assert unbroken.keys() == broken.keys()
    assert [key for key in unbroken if not unbroken[key].equal(broken[key])] == []


def test_counters_are_equal(runs):
    unbroken, broken = (json.loads((run / LAST / "state.json").read_text()) for run in runs)
    for key in ("state", "counters", "ema_updates"):
        assert broken[key] == unbroken[key]
    assert unbroken["ema_updates"] == STEPS


def test_samples_are_equal(runs):
    made = [sample_of(run) for run in runs]
    for name in ("rgb", "dense"):
        first, second = (getattr(sample, name) for sample in made)
        assert first.std() > 1
        assert (first == second).all()
    names = [sorted(p.name for p in (run / f"samples/step_{STEPS:08d}").iterdir()) for run in runs]
    assert names == [["00_depth.mp4", "00_segmentation.mp4"]] * 2


def sample_of(run: Path) -> GeneratedSample:
    """One sample of a run's last checkpoint, as raw frames: x264 repeats itself to the eye only."""
    config = load_config([str(run / "config.yaml")], [])
    encoders = Encoders.load(config, device="cpu")
    network = build_network(config.model, dtype=torch.float32, device="cpu")
    load_network_weights(network, config, weights=str(run))
    request = SampleRequest(
        prompt="a red disc moves left",
        task="depth",
        seeds=(3,),
        num_frames=config.data.num_frames,
        height=config.data.height,
        width=config.data.width,
    )
    return generate(network, request, encoders=encoders, config=config)[0]


def test_two_ranks_go_on_from_one(runs, small_world, launch, tmp_path):
    unbroken, _ = runs
    command = small_world.train_command(
        tmp_path, *OVERRIDES, "train.micro_batch_size=1", "validation.every_steps=0"
    )
    done = launch([sys.executable, *command, "train.steps=3", "train.micro_batch_size=2"])
    assert done.returncode == 0, done.stderr
    ranks = ["torchrun", "--standalone", "--nproc_per_node", "2"]
    done = launch([*ranks, *command, "train.steps=6"])
    assert done.returncode == 0, done.stderr
    assert "saved by 1 ranks" in done.stderr
    assert "note: train.micro_batch_size was 2 so far, from here on it is 1" in done.stderr
    assert "note: run" not in done.stderr
    expected = next(line for line in metrics(unbroken) if line["step"] == 6)
    found = metrics(tmp_path)[-1]
    assert (found["step"], found["samples_seen"]) == (6, 12)
    # The order of sums differs between one rank and two.
    assert found["loss"] == pytest.approx(expected["loss"], rel=3e-5)
    assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=3e-5)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.num_layers=3", "model.num_layers: the run in .* was made with 2, got 3"),
        ("seed=5", "seed: the run in .* was made with 0, got 5"),
    ],
)
def test_another_network_or_seed_is_refused_by_name(
    override, expected, runs, small_world, monkeypatch
):
    _, broken = runs
    config = small_world.config(broken, *OVERRIDES, override)
    place = Place(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"), backend="gloo")
    with pytest.raises(ConfigError, match=expected):
        find_resume_point(config, place=place)


def test_another_network_ends_the_program_in_one_line(runs, small_world, launch):
    _, broken = runs
    command = small_world.train_command(broken, *OVERRIDES, "model.num_layers=3")
    done = launch([sys.executable, *command])
    assert done.returncode == 1
    message = done.stderr.strip().splitlines()[-1]
    assert "model.num_layers" in message
    assert "was made with 2, got 3" in message
    assert "Traceback" not in done.stderr
