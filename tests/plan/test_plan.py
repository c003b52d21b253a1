"""Sizes, memory and work of the released models, near what others computed and measured.

Figures of others: 5B on 8 x A100-80G, batch 1, all layers recomputed, take about 42 GB with cached
latents and 75 GB with both encoders in the loop (diffusers' and CogVideo's READMEs); FLOPs by hand
332.2 TFLOP a forward, 1329 a step.
"""

import dataclasses
import resource
from pathlib import Path

import pytest

from data_loaders.shards import write_shards
from data_loaders.synthetic import WorldConfig, make_clip
from sat_udpdiff.config import Config
from sat_udpdiff.config_io import load_config
from sat_udpdiff.plan import Memory, derive_sizes, dry_run_report, estimate_memory
from sat_udpdiff.plan.sizes import count_samples
from sat_udpdiff.plan.work import count_work, estimate_duration
from sat_udpdiff.training.throughput import flops_per_sample

CONFIGS = Path(__file__).parents[2] / "configs"
CACHED = "data.source=latents"


def load(*names, overrides=()):
    return load_config([str(CONFIGS / f"{name}.yaml") for name in names], overrides)


def memory_of(config, *, gpus):
    return estimate_memory(config, sizes=derive_sizes(config), world_size=gpus)


@pytest.mark.parametrize(
    ("files", "parameters"),
    [
        (("5b", "multitask"), 5_570_677_376),
        (("5b", "segmentation"), 5_570_676_352),
        (("5b", "baseline"), 5_570_283_072),
        (("2b", "multitask"), 1_694_030_720),
        (("2b", "depth"), 1_694_029_696),
        (("2b", "baseline"), 1_693_783_872),
    ],
)
def test_parameters_of_the_released_models(files, parameters):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sizes = derive_sizes(load(*files))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert sizes.parameters == sizes.trained_parameters == parameters
    # Kilobytes; the smallest of these networks would take 6.8 GB.
    assert grown < 1_000_000


def test_sizes_of_the_5b_model():
    sizes = derive_sizes(load("5b", "multitask"))
    assert sizes.latent == (13, 32, 60, 90)
    assert (sizes.text_tokens, sizes.video_tokens, sizes.tokens) == (226, 17_550, 17_776)
    assert sizes.forward_flops == pytest.approx(332.2e12, rel=1e-3)
    assert sizes.sample_flops == pytest.approx(1329e12, rel=1e-3)
    assert sizes.network_bytes == 4 * sizes.parameters
    assert sizes.checkpoint_bytes == 12 * sizes.parameters


def test_sizes_of_the_tiny_model():
    sizes = derive_sizes(load("tiny", "multitask"))
    assert sizes.latent == (3, 32, 8, 12)
    assert sizes.video_tokens == 288
    # No recomputation: forward and backward alone.
    assert sizes.sample_flops == 3 * sizes.forward_flops


def test_patches_over_time_take_fewer_tokens():
    sizes = derive_sizes(load("1.5-5b", "multitask"))
    # 81 frames are 21 latent frames, 22 with a copy of the first, 11 pairs.
    assert sizes.latent == (21, 32, 96, 170)
    assert sizes.tokens == 224 + 11 * 48 * 85 == 45_104
    assert sizes.forward_flops == pytest.approx(1479e12, rel=2e-3)


def test_average_of_the_weights_is_part_of_a_checkpoint():
    sizes = derive_sizes(load("tiny", overrides=["ema.enabled=true"]))
    assert sizes.checkpoint_bytes == 16 * sizes.parameters


def test_states_of_5b_on_eight_gpus():
    memory = memory_of(load("5b", "multitask", overrides=["ema.enabled=true"]), gpus=8)
    gigabytes = {name: value / 1e9 for name, value in dataclasses.asdict(memory).items()}
    assert gigabytes["weights"] == pytest.approx(11.14, abs=0.01)
    assert gigabytes["optimizer"] == pytest.approx(8.36, abs=0.01)
    assert gigabytes["ema"] == pytest.approx(2.79, abs=0.01)
    assert gigabytes["gradients"] == pytest.approx(1.39, abs=0.01)
    assert gigabytes["buckets"] == pytest.approx(1.20, abs=0.01)
    assert gigabytes["text_encoder"] == pytest.approx(9.52, abs=0.01)
    assert gigabytes["codec"] == pytest.approx(0.43, abs=0.01)
    # 8 to 9 by a layer that keeps 23.1 tensors of tokens; ours keeps 20.2.
    assert gigabytes["activations"] == pytest.approx(7.35, abs=0.05)


def test_totals_of_5b_on_eight_gpus():
    recipe = ["ema.enabled=true", "train.reduce_bucket_elements=1_000_000_000"]
    cached = memory_of(load("5b", "multitask", overrides=[*recipe, CACHED]), gpus=8)
    # 38 to 42 GB with an average and buckets of 10^9, deepspeed's and CogVideo's size.
    assert 38e9 < cached.total < 42e9
    online = memory_of(load("5b", "multitask"), gpus=8)
    # 65 to 75 GB with an average, which is 2.8 of them.
    assert 62e9 < online.total < 75e9
    assert online.phases["encoding"] == max(online.phases.values())
    # Without an average, and with buckets of 2 * 10^8.
    assert memory_of(load("5b", "multitask", overrides=[CACHED]), gpus=8).total < 36e9


def test_5b_without_recomputation_does_not_fit_80_gb():
    overrides = [CACHED, "model.activation_checkpointing=none"]
    memory = memory_of(load("5b", "multitask", overrides=overrides), gpus=8)
    # 106 GB by a layer that keeps 23.1 tensors of tokens.
    assert memory.activations == pytest.approx(106e9 * 20.2 / 23.1, rel=0.02)
    assert memory.total > 80e9


def test_5b_on_one_h200():
    memory = memory_of(load("5b", "multitask", overrides=[CACHED]), gpus=1)
    # 98 GB in the passes, 120 in the step by fp32 gradients alone; deepspeed packs the 16-bit ones
    # first, which is 11 more.
    in_passes = memory.held + memory.phases["passes"] - memory.overhead
    in_step = memory.held + memory.phases["step"] - memory.overhead
    assert in_passes == pytest.approx(98e9, rel=0.02)
    assert in_step == pytest.approx(111.4e9 + 11.14e9, rel=0.01)
    assert memory.total < 141e9
    averaged = load("5b", "multitask", overrides=[CACHED, "ema.enabled=true"])
    assert memory_of(averaged, gpus=1).total > 141e9


def test_2b_without_recomputation_fits_80_gb():
    overrides = [CACHED, "ema.enabled=true", "model.activation_checkpointing=none"]
    memory = memory_of(load("2b", "multitask", overrides=overrides), gpus=8)
    assert (memory.held - memory.overhead) + memory.gradients == pytest.approx(7.2e9, rel=0.02)
    assert memory.activations == pytest.approx(47e9 * 20.2 / 23.1, rel=0.03)
    assert memory.total < 80e9


def test_work_and_days_of_5b():
    online, cached = load("5b", "multitask"), load("5b", "multitask", overrides=[CACHED])
    work = count_work(online)
    assert work.forward + work.backward + work.recomputed == pytest.approx(1329e12, rel=1e-3)
    assert work.total - work.encoding == pytest.approx(1410e12, rel=1e-3)
    assert work.encoding == pytest.approx(300e12, rel=1e-3)
    assert count_work(cached).encoding == 0
    # 150 TFLOP/s, 48 % of an A100.
    rate = {"peak_flops": 312e12, "mfu": 150 / 312}
    slow = estimate_duration(online, work=work, **rate)
    fast = estimate_duration(cached, work=count_work(cached), **rate)
    assert slow.step_seconds == pytest.approx(11.4, abs=0.1)
    assert slow.days == pytest.approx(5.2, abs=0.1)
    assert fast.step_seconds == pytest.approx(9.4, abs=0.1)
    # As metrics.jsonl counts: forward and backward over the peak.
    assert fast.mfu == pytest.approx(flops_per_sample(cached) / (fast.step_seconds * 312e12))


def test_work_of_2b():
    work = count_work(load("2b", "multitask", overrides=[CACHED]))
    assert work.forward + work.backward + work.recomputed == pytest.approx(480e12, rel=2e-3)
    assert work.total == pytest.approx(516e12, rel=2e-3)


def test_peak_is_the_largest_phase_above_what_is_held():
    zero = dict.fromkeys((field.name for field in dataclasses.fields(Memory)), 0.0)
    held = {"weights": 1.0, "optimizer": 1.0, "codec": 1.0}
    for name in ("activations", "encoding", "step", "start", "sampling"):
        memory = Memory(**(zero | held | {"gradients": 2.0, name: 5.0}))
        passes = 7.0 if name == "activations" else 5.0
        assert memory.total == 3.0 + passes


@pytest.mark.parametrize("family", ["tiny", "2b", "5b"])
def test_dry_run(family, monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "1")
    config = load(family, "multitask", overrides=["train.steps=10", "train.accumulation_steps=2"])
    report = dry_run_report(config)
    head, _, tail = report.partition("# derived sizes")
    (tmp_path / "printed.yaml").write_text(head, encoding="utf-8")
    assert load_config([str(tmp_path / "printed.yaml")]) == config
    assert f"{derive_sizes(config).parameters:,}" in tail
    batch = 8 * config.train.micro_batch_size
    assert f"global batch:      {batch} = " in tail
    assert f"{10 * batch:,} in 10 steps" in tail
    assert [int(word) for word in find_line(tail, "devices").split()[1:]] == [1, 4, 8]
    peaks = [float(word) for word in find_line(tail, "peak").split()[-3:]]
    assert peaks == [round(memory_of(config, gpus=n).total / 1e9, 2) for n in (1, 4, 8)]
    assert "note: the run ends within the warm-up" in tail


def find_line(text, start):
    (line,) = (line for line in text.splitlines() if line.startswith(start))
    return line


def test_samples_are_counted_where_shards_are(tmp_path):
    config = load("tiny", "multitask", overrides=[f"data.shards={tmp_path / 'none'}"])
    assert count_samples(config) is None
    assert f"unknown, no shards at {tmp_path / 'none'}" in dry_run_report(config, world_sizes=[1])


def test_samples_of_shards_give_the_epochs(tmp_path):
    world = WorldConfig(max_entities=2)
    shards = tmp_path / "shards"
    write_shards((make_clip(i, seed=0, config=world) for i in range(3)), shards)
    overrides = [f"data.shards={shards}", "train.steps=6", "train.micro_batch_size=2"]
    config = load("tiny", "multitask", overrides=overrides)
    report = dry_run_report(config, world_sizes=[1])
    assert find_line(report, "samples per epoch").endswith(" 3; the run takes 4.00 epochs")


def test_defaults_are_the_5b_model():
    assert derive_sizes(Config()).parameters == 5_570_677_376


def test_buckets_are_planned_for_their_largest_and_timed_for_their_mean():
    alone = [load("tiny", overrides=[f"data.num_frames={n}"]) for n in (9, 5)]
    both = load(
        "tiny", overrides=["data.buckets=[9x32x48,5x32x48]", "data.bucket_weights=[0.25,0.75]"]
    )
    assert derive_sizes(both).latent == derive_sizes(alone[0]).latent
    assert memory_of(both, gpus=1) == memory_of(alone[0], gpus=1)
    flops = [flops_per_sample(config) for config in alone]
    assert flops_per_sample(both) == pytest.approx(0.25 * flops[0] + 0.75 * flops[1])
    work = [count_work(config).total for config in alone]
    assert count_work(both).total == pytest.approx(0.25 * work[0] + 0.75 * work[1])
