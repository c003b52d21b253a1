"""Every layout of processes is the plain run: losses, gradient norms, moments and weights.

All weights are random, so that none of the zeros that a new network has can hide a fault, and the
87 tokens of a sample are no multiple of the processes.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from data_loaders import latents
from sat_udpdiff.config_io import load_config
from sat_udpdiff.model.transformer import build_network

PROGRAM = Path(__file__).with_name("forked_runs.py")
NETWORK = ("model.num_heads=4", "model.text_length=15")
STEPS, MORE_STEPS = 3, 5
SEQUENCE, TENSOR = "parallel.sequence_size=2", "parallel.tensor_size=2"
# Name -> processes, and settings; four samples make a step in all of them.
LAYOUTS = {
    "plain": (1, ["train.micro_batch_size=4"]),
    "sequence": (4, ["train.micro_batch_size=2", SEQUENCE]),
    "tensor": (4, ["train.micro_batch_size=2", TENSOR]),
    "zero 3": (
        2,
        ["train.micro_batch_size=4", "train.zero_stage=3", "train.offload=weights", SEQUENCE],
    ),
    "both": (
        4,
        [
            "train.micro_batch_size=2",
            "train.accumulation_steps=2",
            "model.activation_checkpointing=full",
            "train.offload=optimizer",
            SEQUENCE,
            TENSOR,
        ],
    ),
}
OTHERS = [name for name in LAYOUTS if name != "plain"]
# Goes on from a checkpoint of another layout: name -> where from, processes, settings.
MOVES = {
    "plain": ("plain", *LAYOUTS["plain"]),
    "sequence to tensor": ("sequence", 2, ["train.micro_batch_size=4", TENSOR]),
    "tensor to sequence": ("tensor", 2, ["train.micro_batch_size=4", SEQUENCE]),
    "both to plain": ("both", 1, ["train.micro_batch_size=4"]),
}
ELASTIC = ((4, 1), (2, 2), (1, 3), (4, MORE_STEPS))
"""Processes, and the step to which they train, one after another in one folder."""


@pytest.fixture(scope="module")
def world(small_world, tmp_path_factory) -> list[str]:
    """What all runs have in common, as arguments: a cache of latents, and random weights."""
    folder = tmp_path_factory.mktemp("world")
    base = ["--base", str(small_world.base), *NETWORK]
    cache = folder / "latents"
    made = latents.main(
        [*base, "--shards", str(small_world.folder / "shards"), "--output", str(cache)]
    )
    assert made == 0
    config = load_config([str(small_world.base)], NETWORK)
    network = build_network(config.model, dtype=torch.float32, device="cpu")
    generator = torch.Generator().manual_seed(0)
    state = {
        name: 0.2 * torch.randn(value.shape, generator=generator) + 0.1 * (value.ndim == 1)
        for name, value in network.state_dict().items()
    }
    save_file(state, folder / "random.safetensors")
    return [
        *base,
        f"init.weights={folder / 'random.safetensors'}",
        "data.source=latents",
        f"data.latents={cache}",
        "data.num_workers=0",
        f"validation.latents={cache}",
        "validation.clips=2",
        f"validation.every_steps={STEPS}",
        "checkpoint.keep_last=0",
    ]


@pytest.fixture(scope="module")
def runs(world, user_env, tmp_path_factory) -> Path:
    """Folder with a run for every layout, move and the elastic one."""
    folder = tmp_path_factory.mktemp("runs")
    first = [
        one_run(world, folder / name, ranks=ranks, settings=settings, steps=STEPS)
        for name, (ranks, settings) in LAYOUTS.items()
    ]
    elastic = [
        one_run(
            world,
            folder / "elastic",
            ranks=ranks,
            settings=[f"train.micro_batch_size={4 // ranks}", "checkpoint.every_steps=1"],
            steps=steps,
        )
        for ranks, steps in ELASTIC
    ]
    make(first + elastic, folder=folder, env=user_env)
    for name, (source, *_) in MOVES.items():
        shutil.copytree(folder / source, folder / "moved" / name)
    moves = [
        one_run(world, folder / "moved" / name, ranks=ranks, settings=settings, steps=MORE_STEPS)
        for name, (_, ranks, settings) in MOVES.items()
    ]
    make(moves, folder=folder, env=user_env)
    return folder


def one_run(world: list[str], output: Path, *, ranks: int, settings: list[str], steps: int) -> dict:
    arguments = [*world, f"run.output={output}", *settings, f"train.steps={steps}"]
    return {"ranks": ranks, "arguments": arguments}


def make(some_runs: list[dict], *, folder: Path, env: dict[str, str]) -> None:
    plan = folder / "runs.json"
    plan.write_text(json.dumps(some_runs))
    done = subprocess.run(
        [sys.executable, str(PROGRAM), "train", str(plan)],
        env=env | {"DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def lines(run: Path) -> list[dict]:
    """What a run logged; all of it but times."""
    read = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in line if "second" not in key} for line in read]


def tensors(run: Path, *, kind: str, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / f"checkpoints/step_{step:08d}/{kind}.safetensors")


def assert_same_lines(found: list[dict], expected: list[dict]) -> None:
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    for line, other in zip(found, expected, strict=True):
        assert line == pytest.approx(other, rel=2e-5, abs=1e-9)


@pytest.mark.parametrize("name", OTHERS)
def test_losses_and_gradient_norms_are_those_of_the_plain_run(name, runs):
    plain = lines(runs / "plain")
    assert [line["step"] for line in plain] == [1, 2, 3, 3]
    assert plain[-1]["kind"] == "validation"
    assert min(line["grad_norm"] for line in plain[:-1]) > 1  # it is clipped
    assert_same_lines(lines(runs / name), plain)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("kind", ["exp_avg", "exp_avg_sq", "network", "ema"])
def test_every_tensor_is_that_of_the_plain_run(name, kind, runs):
    plain = tensors(runs / "plain", kind=kind, step=STEPS)
    found = tensors(runs / name, kind=kind, step=STEPS)
    assert found.keys() == plain.keys()
    for key, value in plain.items():
        difference = (found[key] - value).norm() / value.norm()
        assert difference < 1e-4, key


@pytest.mark.parametrize("name", ["sequence to tensor", "tensor to sequence", "both to plain"])
def test_a_checkpoint_of_one_layout_opens_in_another(name, runs):
    plain, moved = lines(runs / "moved/plain"), lines(runs / "moved" / name)
    assert [line["step"] for line in plain] == [1, 2, 3, 3, 4, 5]
    assert_same_lines(moved, plain)


def test_four_two_one_and_four_processes_make_one_run(runs):
    expected = [line for line in lines(runs / "moved/plain") if "kind" not in line]
    found = [line for line in lines(runs / "elastic") if "kind" not in line]
    assert_same_lines(found, expected)
    assert [line["samples_seen"] for line in found] == [4, 8, 12, 16, 20]
