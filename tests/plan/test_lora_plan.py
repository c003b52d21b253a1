"""A LoRA run is planned with what it trains."""

from pathlib import Path

import pytest

from sat_udpdiff.config_io import load_config
from sat_udpdiff.plan.advice import examine, ways_to_fit
from sat_udpdiff.plan.machine import Machine, Situation
from sat_udpdiff.plan.sizes import derive_sizes
from sat_udpdiff.plan.work import count_work

CONFIGS = Path(__file__).parents[2] / "configs"
# Rank 64 on to_q, to_k, to_v and to_out.0 of 42 layers; patch projection, last linear, task table.
ADAPTERS = 42 * 4 * 64 * (3072 + 3072)
NEW = (3072 * 32 * 4 + 3072) + (3072 + 1) * 32 * 4 + 2 * 512


def machine_of(*, gpus, memory):
    return Machine(gpus=gpus, gpu="a100", memory=memory, peak_flops=312e12, mfu=0.48)


def config_of(task, *overrides):
    return load_config([str(CONFIGS / "5b.yaml"), str(CONFIGS / f"{task}.yaml")], overrides)


@pytest.mark.parametrize(
    ("task", "trained"), [("multitask", ADAPTERS + NEW), ("baseline", ADAPTERS)]
)
def test_only_what_is_trained_has_states_and_files(task, trained):
    whole = derive_sizes(config_of(task))
    sizes = derive_sizes(config_of(task, "lora.rank=64", "ema.enabled=true"))
    assert whole.trained_parameters == whole.parameters
    assert sizes.trained_parameters == trained
    assert sizes.parameters == whole.parameters + ADAPTERS
    assert (sizes.network_bytes, sizes.checkpoint_bytes) == (4 * trained, 16 * trained)


def test_the_backward_pass_leaves_out_the_gradients_of_frozen_weights():
    whole, lora = (
        count_work(config_of("baseline")),
        count_work(config_of("baseline", "lora.rank=64")),
    )
    assert whole.backward == 2 * whole.forward
    # 24 d^2 against 4 N d: at 17,776 tokens half of the products have a weight.
    assert lora.backward / whole.backward == pytest.approx(0.75, abs=0.02)
    assert lora.forward / whole.forward == pytest.approx(1.01, abs=0.01)


def test_adapters_are_proposed_where_nothing_else_is_enough_without_host_memory():
    machine = machine_of(gpus=1, memory=24e9)
    current = examine(Situation(config=config_of("multitask"), machine=machine))
    assert not current.fits
    far, way = ways_to_fit(current)
    assert far.fits
    assert "train.offload" in far.text
    assert "lora" not in far.text
    assert way.fits
    assert "train.offload" not in way.text
    assert "lora.rank=64 optimizer.lr=0.0001" in way.text
    assert "data.source=latents" in way.text


def test_adapters_are_not_proposed_where_the_whole_network_fits():
    machine = machine_of(gpus=8, memory=48e9)
    current = examine(Situation(config=config_of("multitask"), machine=machine))
    assert not current.fits
    assert not any("lora" in way.text for way in ways_to_fit(current))
