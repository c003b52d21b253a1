"""The plan against live deepspeed engines: states to the byte, peaks of two real steps."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sat_udpdiff.config_io import load_config
from sat_udpdiff.plan import estimate_memory
from sat_udpdiff.plan.sizes import Parameters, derive_sizes
from sat_udpdiff.plan.zero import zero_bytes

ROOT = Path(__file__).parents[2]
MEASURE = ROOT / "tests" / "benchmarks" / "live_memory.py"
# Eight layers, so that activations count beside the gradients that come after them.
SIZE = [
    "model.hidden_size=128", "model.num_heads=2", "model.num_layers=8", "model.patch_size=2",
    "data.num_frames=9", "data.height=96", "data.width=128", "train.micro_batch_size=1",
    "train.reduce_bucket_elements=500_000",
]  # fmt: skip
CASES = {
    "1 fp32": ["train.zero_stage=1"],
    "2 fp32 ema": ["train.zero_stage=2", "ema.enabled=true"],
    "3 fp32": ["train.zero_stage=3", "model.activation_checkpointing=full"],
    "1 bf16 sums": [
        "train.zero_stage=1", "train.precision=bf16", "train.accumulation_steps=2",
        "model.activation_checkpointing=full",
    ],
    "2 bf16 ema": [
        "train.zero_stage=2", "train.precision=bf16", "ema.enabled=true",
        "model.activation_checkpointing=full",
    ],
    "2 bf16 sums": ["train.zero_stage=2", "train.precision=bf16", "train.accumulation_steps=2"],
    "3 bf16 ema": [
        "train.zero_stage=3", "train.precision=bf16", "ema.enabled=true",
        "model.activation_checkpointing=selective",
    ],
}  # fmt: skip


# Two ranks on the same samples.
SHARED = {
    "sequence": ["parallel.sequence_size=2"],
    "tensor": ["parallel.tensor_size=2", "model.activation_checkpointing=none"],
    "tensor bf16": [
        "parallel.tensor_size=2", "train.precision=bf16", "model.activation_checkpointing=full",
    ],
}  # fmt: skip
# On a CPU, what is there and what is on the host are one.
OFFLOADED = {
    "2 bf16 ema offload": ["train.offload=optimizer", "train.precision=bf16", "ema.enabled=true"],
    "1 bf16 sums offload": [
        "train.offload=optimizer", "train.precision=bf16", "train.accumulation_steps=2",
        "train.zero_stage=1",
    ],
    "3 bf16 offload": [
        "train.offload=weights", "train.precision=bf16", "train.zero_stage=3",
    ],
}  # fmt: skip


@pytest.fixture(scope="module", params=[1, 2])
def live(request, tmp_path_factory):
    """Measurements by name of the case, on one and two ranks."""
    folder = tmp_path_factory.mktemp("live")
    cases = CASES if request.param == 1 else {**CASES, **SHARED, **OFFLOADED}
    (folder / "cases.json").write_text(json.dumps([SIZE + case for case in cases.values()]))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc_per_node", str(request.param), str(MEASURE)),
            *(str(folder / "cases.json"), str(folder / "result.json")),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((folder / "result.json").read_text())
    return dict(zip(cases, results, strict=True))


@pytest.mark.slow
def test_states_are_planned_to_the_byte(live):
    for name, found in live.items():
        if name in OFFLOADED:
            continue
        for kind, counted in found["states"].items():
            # ZeRO pads shards to equal length.
            assert found["planned_states"][kind] == pytest.approx(counted, rel=1e-3), (name, kind)


@pytest.mark.slow
def test_peaks_are_planned_closely_and_not_below(live):
    for name, found in live.items():
        counted, planned = found["counted"], found["planned"]
        if name in OFFLOADED:
            total = planned["total"] + found["planned_host"]
            assert 0.97 < total / counted["total"] < 1.15, name
            continue
        assert planned["start"] == pytest.approx(counted["start"], rel=0.02), name
        # The micro-batch and norms of single tensors are beside the states in the step.
        assert 0.95 < planned["step"] / counted["step"] < 1.05, name
        # Gradients are planned in full where the first layers are still without.
        assert 0.97 < planned["passes"] / counted["passes"] < 1.3, name
        assert 0.95 < planned["total"] / counted["total"] < 1.3, name


def load(*overrides):
    files = [str(ROOT / "configs" / f"{name}.yaml") for name in ("5b", "multitask")]
    return load_config(files, overrides)


def of_5b(*overrides, gpus=8, device_type="cuda"):
    config = load(*overrides)
    parameters = Parameters(total=5_570_677_376, trained=5_570_677_376)
    return zero_bytes(config, parameters=parameters, world_size=gpus, device_type=device_type)


@pytest.mark.parametrize(
    ("stage", "sharded"),
    [
        (1, {"optimizer", "ema", "gradients"}),
        (2, {"optimizer", "ema", "gradients"}),
        (3, {"optimizer", "ema", "gradients", "weights"}),
    ],
)
def test_zero_stages_shard_what_they_say(stage, sharded):
    settings = ("ema.enabled=true", f"train.zero_stage={stage}")
    one, four = of_5b(*settings, gpus=1), of_5b(*settings, gpus=4)
    for name in ("weights", "gradients", "optimizer", "ema"):
        factor = 4 if name in sharded else 1
        assert getattr(one, name) == factor * getattr(four, name), name


def test_stage_one_keeps_whole_gradients_between_micro_batches():
    whole = 2 * 5_570_677_376
    found = of_5b("train.zero_stage=1", "train.accumulation_steps=2")
    assert found.staying == whole
    assert found.gradients == whole + whole / 8
    assert of_5b("train.zero_stage=1").staying == 0


def test_sums_in_fp32_cost_the_passes_and_spare_the_step():
    once, twice = of_5b(gpus=1), of_5b("train.accumulation_steps=2", gpus=1)
    count = 5_570_677_376
    assert (once.gradients, twice.gradients) == (2 * count, 4 * count)
    # 16-bit gradients, packed, and in fp32.
    assert (once.step, twice.step) == ((2 + 2 + 4) * count, 4 * count)


def test_buckets_are_made_in_full_size_twice_and_packed_once():
    size = 200_000_000 * 2
    assert of_5b().buckets == 3 * size
    assert of_5b(gpus=1).buckets == 2 * size
    assert of_5b(device_type="cpu").buckets == 2 * size
    assert of_5b("train.zero_stage=3").buckets == 2 * size


def test_frozen_weights_have_no_states():
    config = load("ema.enabled=true")
    few = zero_bytes(config, parameters=Parameters(total=1000, trained=10), world_size=1)
    assert (few.weights, few.optimizer, few.ema, few.gradients) == (2000, 120, 40, 20)


def test_what_is_offloaded_is_on_the_host_and_not_on_the_gpu():
    near, far = of_5b("ema.enabled=true"), of_5b("ema.enabled=true", "train.offload=optimizer")
    shard = 5_570_677_376 / 8
    assert (far.weights, far.optimizer, far.ema, far.step) == (near.weights, 0, 0, 0)
    # fp32 weights, moments, gradients and average, and the new bf16 weights.
    assert far.host == (4 + 8 + 4 + 4 + 2) * shard
    assert (near.host, far.gradients) == (0, 0)
    # A gradient of the MLP's first linear on its way.
    assert far.buckets == near.buckets + 4 * 3072**2 * 2


def test_offloaded_weights_are_gathered_from_the_host():
    stage = "train.zero_stage=3"
    near, far = of_5b(stage), of_5b(stage, "train.offload=weights")
    shard = 5_570_677_376 / 8
    assert (far.weights, far.gathered) == (0, near.gathered)
    assert far.host == (4 + 8 + 4 + 2 + 2) * shard
    once, twice = (
        of_5b("train.offload=optimizer", f"train.accumulation_steps={n}").host for n in (1, 2)
    )
    assert twice - once == 2 * shard


def test_ranks_that_share_weights_have_shards_of_their_own():
    config = load("parallel.tensor_size=4")
    half = Parameters(total=1000, trained=1000)
    found = zero_bytes(config, parameters=half, world_size=8)
    assert (found.weights, found.optimizer, found.gradients) == (2000, 12 * 500, 2 * 500)


def test_start_is_never_below_what_stays():
    config = load("train.zero_stage=3")
    memory = estimate_memory(config, sizes=derive_sizes(config), world_size=64)
    # The whole network on every GPU before stage 3 takes it apart.
    assert memory.held - memory.overhead + memory.start > 2 * 5_570_677_376
