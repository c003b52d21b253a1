"""A LoRA run from its start to samples: resumed bit for bit, and bound to its base."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sat_udpdiff import sample
from sat_udpdiff.config import ConfigError
from sat_udpdiff.distributed import Place
from sat_udpdiff.model.low_rank import is_trained
from sat_udpdiff.model.transformer import build_network, initialise
from sat_udpdiff.training.setup import find_resume_point

OVERRIDES = (
    "lora.rank=4",
    "lora.alpha=8",
    "train.steps=4",
    "checkpoint.every_steps=2",
    "checkpoint.keep_last=0",
)
HALF, LAST = "checkpoints/step_00000002", "checkpoints/step_00000004"
KINDS = ("network", "exp_avg", "exp_avg_sq", "ema")
# Ranks, precision and ZeRO stage; tests/training has one rank with each of the others.
SETUPS = [(1, "fp32", 2), (2, "bf16", 2), (2, "bf16", 3)]


@pytest.fixture(scope="module")
def base(small_world, tmp_path_factory) -> Path:
    """A network without dense channels, every weight random."""
    folder = tmp_path_factory.mktemp("base")
    model = replace(small_world.config(folder).model, dense_groups=0, task_signal="none")
    network = build_network(model, dtype=torch.float32, device="cpu")
    initialise(network, 1)
    save_file(network.state_dict(), folder / "base.safetensors")
    return folder / "base.safetensors"


@pytest.fixture(scope="module", params=SETUPS, ids=lambda setup: "-".join(map(str, setup)))
def runs(request, small_world, base, launch, tmp_path_factory) -> tuple[Path, Path]:
    """An unbroken run, and one that began at its middle with nothing but the checkpoint."""
    ranks, precision, stage = request.param
    start = ["torchrun", "--standalone", "--nproc_per_node", str(ranks)]
    overrides = (f"train.precision={precision}", f"train.zero_stage={stage}", *OVERRIDES)
    unbroken, resumed = (tmp_path_factory.mktemp(name) for name in ("unbroken", "resumed"))
    for run in (unbroken, resumed):
        if run is resumed:
            shutil.copytree(unbroken / HALF, resumed / HALF)
        command = small_world.train_command(run, f"init.weights={base}", *overrides)
        done = launch([*(start if ranks > 1 else [sys.executable]), *command])
        assert done.returncode == 0, done.stderr
    assert "resuming after step 2" in done.stderr
    return unbroken, resumed


@pytest.mark.slow
def test_a_resumed_run_is_the_unbroken_one(runs):
    for kind in KINDS:
        unbroken, resumed = (load_file(run / LAST / f"{kind}.safetensors") for run in runs)
        assert unbroken.keys() == resumed.keys()
        assert [name for name in unbroken if not unbroken[name].equal(resumed[name])] == []
    lines = [(run / "metrics.jsonl").read_text().splitlines() for run in runs]
    losses = [[json.loads(line)["loss"] for line in of_run] for of_run in lines]
    assert losses[1] == losses[0][2:]


@pytest.mark.slow
def test_a_checkpoint_holds_what_is_trained(runs, small_world, base):
    unbroken, _ = runs
    model = small_world.config(unbroken).model
    for kind in KINDS:
        found = load_file(unbroken / LAST / f"{kind}.safetensors")
        assert found
        assert all(is_trained(name, model) for name in found)
        assert all(value.any() for value in found.values()), kind
    size = (unbroken / LAST / "network.safetensors").stat().st_size
    assert size < base.stat().st_size / 4


@pytest.fixture(scope="module")
def run(small_world, base, launch, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("run")
    command = small_world.train_command(run, f"init.weights={base}", *OVERRIDES)
    done = launch([sys.executable, *command])
    assert done.returncode == 0, done.stderr
    return run


def make_sample(run: Path, output: Path, *words: str) -> int:
    """Exit status of the sampling program."""
    request = ["--load", str(run), "--task", "depth", "--prompt", "a red disc moves left"]
    return sample.main([*request, "--output", str(output), *words])


def test_it_is_sampled_by_its_folder(run, tmp_path):
    hashes = []
    for number, words in enumerate([(), ("--ema",), ("lora.alpha=4",)]):
        assert make_sample(run, tmp_path / str(number), *words) == 0
        (record,) = (tmp_path / str(number)).glob("*/sample.json")
        weights = json.loads(record.read_text())["weights"]
        assert Path(weights["file"]).parent == run / LAST
        hashes.append(weights["sha256"])
    # The averaged weights are others; another alpha scales the same ones.
    assert hashes[0] == hashes[2] != hashes[1]
    pictures = [path.read_bytes() for path in sorted(tmp_path.glob("*/*/contact_sheet.png"))]
    assert len(set(pictures)) == 3


def test_another_base_ends_sampling_in_one_line(run, base, tmp_path, capsys):
    state = load_file(base)
    state["transformer.layers.0.mlp.dense_h_to_4h.bias"] += 1
    save_file(state, tmp_path / "other.safetensors")
    for weights, expected in (
        (tmp_path / "other.safetensors", "trained on other base weights than init.weights="),
        (tmp_path / "gone.safetensors", "needs the base weights of its run"),
    ):
        assert make_sample(run, tmp_path / "out", f"init.weights={weights}") == 2
        (message,) = capsys.readouterr().err.splitlines()
        assert message.startswith(f"sample.py: {run}")
        assert expected in message


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("lora.rank=8", "lora.rank: the run in .* was made with 4, got 8"),
        ("lora.rank=0", "lora.rank: the run in .* was made with 4, got 0"),
        ("lora.targets=[to_q]", "lora.targets: the run in .* got "),
    ],
)
def test_other_adapters_do_not_go_on_with_it(override, expected, run, base, small_world):
    config = small_world.config(run, f"init.weights={base}", *OVERRIDES, override)
    place = Place(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"), backend="gloo")
    with pytest.raises(ConfigError, match=expected):
        find_resume_point(config, place=place)
