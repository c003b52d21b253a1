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
LORA = ("lora.rank=4", "lora.alpha=4")
# Name -> processes, and settings; four samples make a step in all of them. ZeRO is of stage 2 where
# nothing else is said.
LAYOUTS = {
    "plain": (1, ["train.micro_batch_size=4"]),
    "zero 1": (2, ["train.micro_batch_size=2", "train.zero_stage=1"]),
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
    "plain lora": (1, ["train.micro_batch_size=4", *LORA]),
    "sequence lora": (2, ["train.micro_batch_size=4", *LORA, SEQUENCE]),
}
PLAIN = {name: "plain lora" if "lora" in name else "plain" for name in LAYOUTS}
OTHERS = [name for name in LAYOUTS if name not in PLAIN.values()]
# Goes on from a checkpoint of another layout: name -> where from, processes, settings.
MOVES = {
    "sequence to tensor": ("sequence", 2, ["train.micro_batch_size=4", TENSOR]),
    "tensor to sequence": ("tensor", 2, ["train.micro_batch_size=4", SEQUENCE]),
    "both to plain": ("both", 1, ["train.micro_batch_size=4"]),
    "zero 3 to zero 1": ("zero 3", 2, ["train.micro_batch_size=2", "train.zero_stage=1"]),
    "zero 1 to zero 3": ("zero 1", 2, ["train.micro_batch_size=2", "train.zero_stage=3"]),
}
ELASTIC = ((4, 1), (2, 2), (1, 3), (4, MORE_STEPS))
"""Processes, and the step to which they train, one after another, by the same command."""


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
        f"checkpoint.every_steps={STEPS}",
        "checkpoint.keep_last=0",
        "run.preflight=false",
    ]


@pytest.fixture(scope="module")
def runs(world, user_env, tmp_path_factory) -> Path:
    """Folder with a run for every layout, move and the elastic one."""
    folder = tmp_path_factory.mktemp("runs")
    first = [
        one_run(
            world,
            folder / name,
            ranks=ranks,
            settings=settings,
            steps=MORE_STEPS if name == "plain" else STEPS,
        )
        for name, (ranks, settings) in LAYOUTS.items()
    ]
    elastic = [
        one_run(
            world,
            folder / "elastic",
            ranks=ranks,
            settings=["train.global_batch=4", "train.micro_batch_size=1"],
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
    """A run, and beside its folder another with the keys of its samples."""
    keys = str(output.with_name(f"{output.name}_keys_{steps}"))
    arguments = [keys, *world, f"run.output={output}", *settings, f"train.steps={steps}"]
    return {"program": "recorded_train", "ranks": ranks, "arguments": arguments}


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


def keys_of(run: Path, *, steps: int) -> list[str]:
    """Of the samples in global order, given a run of data ranks alone that ended at `steps`."""
    ranks = sorted(run.with_name(f"{run.name}_keys_{steps}").iterdir())
    by_rank = [map(json.loads, path.read_text().splitlines()) for path in ranks]
    return [key for batches in zip(*by_rank, strict=True) for batch in batches for key in batch]


def tensors(run: Path, *, kind: str, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / f"checkpoints/step_{step:08d}/{kind}.safetensors")


def assert_same_lines(found: list[dict], expected: list[dict]) -> None:
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    for line, other in zip(found, expected, strict=True):
        assert line.keys() == other.keys()
        for key, value in other.items():
            is_number = isinstance(value, float)
            assert line[key] == (pytest.approx(value, rel=2e-6) if is_number else value), key


def assert_same_tensors(found: Path, expected: Path, *, step: int) -> None:
    for kind in ("exp_avg", "exp_avg_sq", "network", "ema"):
        plain, values = (
            tensors(expected, kind=kind, step=step),
            tensors(found, kind=kind, step=step),
        )
        assert values.keys() == plain.keys()
        for key, value in plain.items():
            difference = (values[key] - value).norm() / value.norm()
            assert difference < 2e-5, f"{kind} of {key}"


@pytest.mark.parametrize("name", OTHERS)
def test_losses_and_gradient_norms_are_those_of_the_plain_run(name, runs):
    plain = [line for line in lines(runs / PLAIN[name]) if line["step"] <= STEPS]
    assert [line["step"] for line in plain] == [1, 2, 3, 3]
    assert plain[-1]["kind"] == "validation"
    assert min(line["grad_norm"] for line in plain[:-1]) > 1  # it is clipped
    assert_same_lines(lines(runs / name), plain)


@pytest.mark.parametrize("name", OTHERS)
def test_every_tensor_is_that_of_the_plain_run(name, runs):
    assert_same_tensors(runs / name, runs / PLAIN[name], step=STEPS)


@pytest.mark.parametrize("name", MOVES)
def test_a_checkpoint_of_one_layout_opens_in_another(name, runs):
    plain = lines(runs / "plain")
    assert [line["step"] for line in plain] == [1, 2, 3, 3, 4, 5]
    assert_same_lines(lines(runs / "moved" / name), plain)
    assert_same_tensors(runs / "moved" / name, runs / "plain", step=MORE_STEPS)


def test_four_two_one_and_four_processes_make_one_run(runs):
    plain, elastic = runs / "plain", runs / "elastic"
    expected = [line for line in lines(plain) if "kind" not in line]
    found = [line for line in lines(elastic) if "kind" not in line]
    assert_same_lines(found, expected)
    assert [line["samples_seen"] for line in found] == [4, 8, 12, 16, 20]
    assert_same_tensors(elastic, plain, step=MORE_STEPS)


def test_another_number_of_processes_takes_the_same_samples_in_the_same_order(runs):
    expected = keys_of(runs / "plain", steps=MORE_STEPS)
    assert len(expected) == 4 * MORE_STEPS
    found = [key for _, steps in ELASTIC for key in keys_of(runs / "elastic", steps=steps)]
    assert found == expected
