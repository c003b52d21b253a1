"""Suggestions: each one tried, only those that help, cheapest first, and together where needed."""

from pathlib import Path

import pytest

from sat_udpdiff.config_io import load_config
from sat_udpdiff.plan.advice import examine, uses_of_room, ways_to_fit
from sat_udpdiff.plan.machine import Machine, Situation

CONFIGS = Path(__file__).parents[2] / "configs"


def outcome_of(*overrides, family="5b", gpus=8, memory=80.0):
    config = load_config(
        [str(CONFIGS / f"{name}.yaml") for name in (family, "multitask")], overrides
    )
    machine = Machine(gpus=gpus, gpu="a100", memory=memory * 1e9, peak_flops=312e12, mfu=0.48)
    return examine(Situation(config=config, machine=machine))


def texts(found):
    return [outcome.text for outcome in found]


def test_every_way_fits_and_needs_less_than_before():
    current = outcome_of(memory=60.0)
    assert not current.fits
    found = ways_to_fit(current)
    assert found
    for outcome in found:
        assert outcome.fits
        assert outcome.memory.total < current.memory.total
    assert [outcome.cost for outcome in found] == sorted(outcome.cost for outcome in found)
    # Latents save time, the others do not.
    assert texts(found)[0] == "data.source=latents"
    assert {"codec.tiling=true", "codec.encode_chunks=diffusers"} < set(texts(found))
    # Full recomputation is on, and there is no average: these cannot help.
    assert not any("checkpointing" in text or "ema" in text for text in texts(found))


def test_a_suggestion_gives_what_it_says_when_it_is_followed():
    current = outcome_of("ema.enabled=true", memory=60.0)
    for suggested in ways_to_fit(current):
        if "--gpus" in suggested.text:
            count = int(suggested.text.removeprefix("--gpus "))
            followed = outcome_of("ema.enabled=true", memory=60.0, gpus=count)
        else:
            followed = outcome_of("ema.enabled=true", *suggested.text.split(), memory=60.0)
        assert followed.memory == suggested.memory
        assert followed.duration == suggested.duration


def test_only_the_weakest_change_of_a_setting_is_named():
    # 2, 4, 8, .. GPUs fit.
    found = ways_to_fit(outcome_of("data.source=latents", gpus=1, memory=80.0))
    assert [text for text in texts(found) if text.startswith("--gpus")] == ["--gpus 2"]


def test_the_cheapest_recomputation_is_named():
    overrides = ("data.source=latents", "model.activation_checkpointing=none")
    found = ways_to_fit(outcome_of(*overrides))
    (first,) = [outcome for outcome in found if "checkpointing" in outcome.text]
    assert first.text == "model.activation_checkpointing=selective"
    assert first.work > outcome_of(*overrides).work
    # Half of the tokens: no more work, and a little waiting.
    assert texts(found)[0] == "parallel.sequence_size=2"
    assert found[0].price == "2 GPUs on each sample: a global batch of 4"
    assert found[0].duration.step_seconds > outcome_of(*overrides).duration.step_seconds / 2


def test_shared_weights_and_host_memory_are_offered_where_states_are_too_many():
    found = ways_to_fit(outcome_of("data.source=latents", memory=30.0))
    offered = {outcome.text: outcome for outcome in found}
    assert offered["parallel.tensor_size=2"].price == "2 GPUs on each sample: a global batch of 4"
    current = outcome_of("data.source=latents", gpus=1, memory=80.0)
    offered = {outcome.text: outcome for outcome in ways_to_fit(current)}
    far = offered["train.offload=optimizer"]
    assert far.memory.host > far.memory.total
    assert far.cost > current.cost
    assert "parallel.sequence_size=2" not in offered  # one GPU
    weights = offered["train.zero_stage=3 train.offload=weights"]
    assert weights.memory.total < far.memory.total
    assert weights.cost > far.cost


def test_a_kept_global_batch_stays_when_gpus_share_samples():
    overrides = ("data.source=latents", "model.activation_checkpointing=none")
    current = outcome_of(*overrides, "train.global_batch=8")
    (shared,) = [x for x in ways_to_fit(current) if x.text == "parallel.sequence_size=2"]
    assert shared.situation.config.train.accumulation_steps == 2
    assert shared.price == "2 GPUs on each sample"


def test_room_brings_shared_samples_and_host_memory_back():
    shared = outcome_of("data.source=latents", "parallel.sequence_size=2")
    assert "parallel.sequence_size=1" in texts(uses_of_room(shared))
    assert not any("tensor_size" in text for text in texts(uses_of_room(shared)))
    far = outcome_of("data.source=latents", "train.offload=optimizer")
    assert "train.offload=none" in texts(uses_of_room(far))


def test_changes_are_combined_where_none_is_enough():
    current = outcome_of("ema.enabled=true", gpus=4, memory=25.0)
    (together,) = ways_to_fit(current)
    assert together.fits
    assert len(together.change) > 1
    assert "data.source=latents" in together.text
    # None of them can be left out.
    for change in together.change:
        situation = current.situation
        for other in together.change:
            situation = other.apply(situation) if other is not change else situation
        assert not examine(situation).fits, change.text


def test_sums_in_fp32_are_offered_where_the_step_is_the_peak():
    current = outcome_of("data.source=latents", gpus=1, memory=115.0)
    assert "train.accumulation_steps=2" in texts(ways_to_fit(current))


def test_nothing_is_offered_where_nothing_helps():
    assert ways_to_fit(outcome_of(memory=3.0)) == []


def test_settings_that_do_not_go_together_are_not_offered():
    # Cached latents have one size.
    buckets = "data.buckets=[49x480x720,25x480x720]"
    assert "data.source=latents" not in texts(ways_to_fit(outcome_of(buckets, memory=60.0)))


def test_room_buys_less_recomputation_larger_batches_and_fewer_gpus():
    current = outcome_of("data.source=latents", family="2b", memory=80.0)
    found = uses_of_room(current)
    offered = dict(text.split("=") if "=" in text else text.split() for text in texts(found))
    assert offered["model.activation_checkpointing"] == "none"
    assert int(offered["train.micro_batch_size"]) > 1
    assert offered["ema.enabled"] == "true"
    assert offered["--gpus"] == "1"
    assert all(outcome.fits for outcome in found)
    assert found[0].text.startswith("model.activation_checkpointing")
    assert found[0].duration.days < current.duration.days


def test_the_largest_micro_batch_that_fits_is_named():
    current = outcome_of("data.source=latents", memory=80.0)
    (largest,) = [text for text in texts(uses_of_room(current)) if "micro_batch" in text]
    count = int(largest.split("=")[1])
    assert outcome_of("data.source=latents", largest).fits
    following = {1: 2, 2: 3, 3: 4, 4: 6, 6: 8, 8: 12, 12: 16}[count]
    assert not outcome_of("data.source=latents", f"train.micro_batch_size={following}").fits


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_time_is_known_at_16_bits_alone(precision):
    outcome = outcome_of("data.source=latents", f"train.precision={precision}", memory=300.0)
    assert (outcome.duration is None) == (precision == "fp32")
    assert outcome.work > 0
