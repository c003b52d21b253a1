"""The plan's bytes against those that live deepspeed engines hand to collectives, on two ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sat_udpdiff.config_io import load_config
from sat_udpdiff.plan.sizes import count_kinds, count_parameters, derive_sizes
from sat_udpdiff.plan.traffic import zero_exchanges

ROOT = Path(__file__).parents[2]
COUNT = ROOT / "tests" / "benchmarks" / "live_traffic.py"
FILES = [str(ROOT / "configs" / f"{name}.yaml") for name in ("tiny", "multitask")]
SMALL = ["model.num_layers=2", "train.micro_batch_size=1"]
BF16, TWICE = "train.precision=bf16", "train.accumulation_steps=2"
CASES = {
    "1, two micro-batches": ["train.zero_stage=1", BF16, TWICE],
    "2": ["train.zero_stage=2"],
    "2, sums in fp32": ["train.zero_stage=2", BF16, TWICE],
    "3": ["train.zero_stage=3", BF16],
    "3, keeping nothing": ["train.zero_stage=3", BF16, TWICE],
    "3, keeping a half": [
        "train.zero_stage=3", "model.num_layers=4", "model.activation_checkpointing=full",
    ],
}  # fmt: skip
# The network is so small that stage 3 would keep all of it from the forward to the backward pass.
DEEPSPEED = {
    "3, keeping nothing": {"stage3_max_reuse_distance": 0, "stage3_prefetch_bucket_size": 0},
    "3, keeping a half": {
        "stage3_max_live_parameters": 1_500_000,
        "stage3_max_reuse_distance": 1_500_000,
        "stage3_prefetch_bucket_size": 100_000,
    },
}
KEPT = {"3, keeping nothing": 0, "3, keeping a half": 1_500_000}
# deepspeed pads each of two groups of weights to a multiple of twice the ranks, or each weight.
PADDING = 2e-4
# It keeps a weight or does not: of one that would be kept in part, all is gathered again.
PARTS = 0.03


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """Counted bytes by name of the case; one pair of processes for all."""
    folder = tmp_path_factory.mktemp("live")
    cases = [
        {"settings": SMALL + case, "deepspeed": DEEPSPEED.get(name, {})}
        for name, case in CASES.items()
    ]
    (folder / "cases.json").write_text(json.dumps(cases))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc_per_node", "2", str(COUNT)),
            *(str(folder / "cases.json"), str(folder / "result.json")),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((folder / "result.json").read_text())
    return dict(zip(CASES, results, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_a_step_sends_what_is_planned(name, live):
    config = load_config(FILES, SMALL + CASES[name])
    arguments = {"kept": KEPT[name]} if name in KEPT else {}
    planned: dict[str, float] = {}
    for exchange in zero_exchanges(config, parameters=count_parameters(config), **arguments):
        planned[exchange.kind] = planned.get(exchange.kind, 0.0) + exchange.total
    counted = live[name]["step"]
    assert planned.keys() == counted.keys()
    for kind, size in planned.items():
        near = PARTS if kind == "all-gather" and KEPT.get(name) else PADDING
        assert size == pytest.approx(counted[kind], rel=near), kind
    # What the plan leaves out: flags and norms.
    assert 0 < sum(live[name]["words"].values()) < 100


@pytest.mark.parametrize("name", CASES)
def test_a_save_gathers_what_is_planned(name, live):
    config = load_config(FILES, SMALL + CASES[name])
    kind = "all-gather" if config.train.zero_stage == 3 else "all-reduce"
    whole = count_kinds(config) * derive_sizes(config).network_bytes
    assert live[name]["save"] == {kind: pytest.approx(whole, rel=PADDING)}
