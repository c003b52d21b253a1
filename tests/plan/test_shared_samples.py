"""Plans count a sample that several processes share once."""

from pathlib import Path

import pytest

from sat_udpdiff.config import global_batch
from sat_udpdiff.config_io import load_config
from sat_udpdiff.plan import derive_sizes, dry_run_report, estimate_memory
from sat_udpdiff.plan.work import count_work, estimate_duration

TINY = str(Path(__file__).parents[2] / "configs" / "tiny.yaml")


def load(*overrides):
    return load_config([TINY], ["data.source=latents", *overrides])


def test_the_global_batch_counts_groups_of_processes():
    shared = load("parallel.sequence_size=3", "train.micro_batch_size=2")
    assert global_batch(load("train.micro_batch_size=2"), processes=12) == 24
    assert global_batch(shared, processes=12) == 8
    report = dry_run_report(shared, world_sizes=[12])
    assert "global batch:      2 = 2 x 1 accumulated x 1 groups of 3 processes" in report


def test_shared_tokens_divide_activations_and_time():
    alone, shared = load(), load("parallel.sequence_size=3")
    memories = [
        estimate_memory(config, sizes=derive_sizes(config), world_size=6)
        for config in (alone, shared)
    ]
    assert memories[1].activations < 0.5 * memories[0].activations
    assert memories[1].optimizer == memories[0].optimizer
    whole, third = (
        estimate_duration(config, work=count_work(config), peak_flops=1e12, mfu=0.5)
        for config in (alone, shared)
    )
    assert third.step_seconds == pytest.approx(whole.step_seconds / 3)
    assert third.mfu == pytest.approx(whole.mfu)
