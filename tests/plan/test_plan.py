"""The dry run: counts equal to the released models, and memory near what others measured."""

import dataclasses
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from data_loaders.shards import write_shards
from data_loaders.synthetic import WorldConfig, make_clip
from sat_udpdiff.config import Config
from sat_udpdiff.config_io import load_config
from sat_udpdiff.plan import Memory, derive_sizes, dry_run_report, estimate_memory
from sat_udpdiff.training.throughput import flops_per_sample

CONFIGS = Path(__file__).parents[2] / "configs"


def load(*names, overrides=()):
    return load_config([str(CONFIGS / f"{name}.yaml") for name in names], overrides)


def with_section(config, section, **values):
    changed = dataclasses.replace(getattr(config, section), **values)
    return dataclasses.replace(config, **{section: changed})


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
    assert sizes.parameters == parameters
    # Kilobytes; the smallest of these networks would take 6.8 GB.
    assert grown < 1_000_000


def test_sizes_of_the_5b_model():
    sizes = derive_sizes(load("5b", "multitask"))
    assert sizes.latent == (13, 32, 60, 90)
    assert (sizes.text_tokens, sizes.video_tokens) == (226, 17_550)
    assert sizes.forward_flops == pytest.approx(332.2e12, rel=1e-3)
    assert sizes.sample_flops == pytest.approx(1329e12, rel=1e-3)
    assert sizes.samples is None
    assert sizes.network_bytes == 4 * sizes.parameters
    assert sizes.checkpoint_bytes == 12 * sizes.parameters


def test_sizes_of_the_tiny_model():
    sizes = derive_sizes(load("tiny", "multitask"))
    assert sizes.latent == (3, 32, 8, 12)
    assert sizes.video_tokens == 288
    # No recomputation: forward and backward alone.
    assert sizes.sample_flops == 3 * sizes.forward_flops


def test_average_of_the_weights_is_part_of_a_checkpoint():
    config = load("tiny", overrides=["ema.enabled=true"])
    sizes = derive_sizes(config)
    assert sizes.checkpoint_bytes == 16 * sizes.parameters


def test_memory_of_the_5b_model_on_eight_devices():
    config = load("5b", "multitask", overrides=["ema.enabled=true"])
    memory = estimate_memory(config, sizes=derive_sizes(config), world_size=8)
    gigabytes = {name: value / 1e9 for name, value in dataclasses.asdict(memory).items()}
    assert gigabytes["weights"] == pytest.approx(11.14, abs=0.01)
    assert gigabytes["optimizer"] == pytest.approx(8.36, abs=0.01)
    assert gigabytes["ema"] == pytest.approx(2.79, abs=0.01)
    assert gigabytes["gradients"] == pytest.approx(1.39, abs=0.01)
    assert gigabytes["step"] == pytest.approx(2.79, abs=0.01)
    assert gigabytes["buckets"] < 1.5
    assert 8 < gigabytes["activations"] < 9
    assert gigabytes["encoders"] == pytest.approx(9.96, abs=0.01)
    assert 15 < gigabytes["encoding"] < 25
    # CogVideo reports 75 GB for this recipe, with larger buckets.
    assert 50 < memory.total / 1e9 < 75


def test_encoders_of_a_pipeline_folder_are_counted_without_its_transformer(tmp_path):
    for name, numel in (("vae", 1000), ("text_encoder", 3000), ("transformer", 10**6)):
        (tmp_path / name).mkdir()
        save_file({"x": torch.zeros(numel)}, tmp_path / name / "model.safetensors")
    where = [f"codec.weights={tmp_path}", f"text.weights={tmp_path}"]
    config = load("5b", "multitask", overrides=where)
    memory = estimate_memory(config, sizes=derive_sizes(config), world_size=1)
    # fp32 in the files, bf16 in the run.
    assert memory.encoders == 2 * (1000 + 3000)


@pytest.mark.parametrize(
    ("family", "gigabytes"),
    [("5b", 106), ("2b", 47)],
)
def test_activations_without_recomputation(family, gigabytes):
    config = with_section(load(family, "multitask"), "model", activation_checkpointing="none")
    memory = estimate_memory(config, sizes=derive_sizes(config), world_size=1)
    assert memory.activations / 1e9 == pytest.approx(gigabytes, rel=0.01)


def test_activations_grow_from_full_to_none():
    base = load("5b", "multitask")
    sizes = derive_sizes(base)
    kept = [
        estimate_memory(
            with_section(base, "model", activation_checkpointing=mode), sizes=sizes, world_size=1
        ).activations
        for mode in ("full", "selective", "none")
    ]
    assert kept == sorted(kept)
    assert kept[1] / kept[2] == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    ("stage", "sharded"),
    [
        (1, {"optimizer", "ema", "step"}),
        (2, {"optimizer", "ema", "step", "gradients"}),
        (3, {"optimizer", "ema", "step", "gradients", "weights"}),
    ],
)
def test_zero_stages_shard_what_they_say(stage, sharded):
    config = load("5b", "multitask", overrides=["ema.enabled=true", f"train.zero_stage={stage}"])
    sizes = derive_sizes(config)
    one, four = (estimate_memory(config, sizes=sizes, world_size=count) for count in (1, 4))
    for name in ("weights", "gradients", "optimizer", "ema", "step"):
        factor = 4 if name in sharded else 1
        assert getattr(one, name) == factor * getattr(four, name)


def test_peak_is_the_largest_of_the_passing_rows():
    zero = dict.fromkeys((field.name for field in dataclasses.fields(Memory)), 0.0)
    for name in ("activations", "encoding", "step"):
        assert Memory(**(zero | {"weights": 1.0, "activations": 2.0, name: 5.0})).total == 6.0


@pytest.mark.parametrize("family", ["tiny", "2b", "5b"])
def test_report(family, monkeypatch, tmp_path):
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
    assert tail.count("\n| ") == 3
    assert [int(word) for word in find_line(tail, "devices").split()[1:]] == [1, 4, 8]
    assert "note: the run ends within the warm-up" in tail


def find_line(text, start):
    (line,) = (line for line in text.splitlines() if line.startswith(start))
    return line


def test_samples_are_counted_where_shards_are(tmp_path):
    config = load("tiny", "multitask", overrides=[f"data.shards={tmp_path / 'none'}"])
    assert derive_sizes(config).samples is None
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
    base = ["configs/tiny.yaml"]
    alone = [load_config(base, [f"data.num_frames={n}"]) for n in (9, 5)]
    both = load_config(base, ["data.buckets=[9x32x48,5x32x48]", "data.bucket_weights=[0.25,0.75]"])
    assert derive_sizes(both).latent == derive_sizes(alone[0]).latent
    memory = [estimate_memory(c, sizes=derive_sizes(c), world_size=1) for c in (both, alone[0])]
    assert memory[0] == memory[1]
    flops = [flops_per_sample(config) for config in alone]
    assert flops_per_sample(both) == pytest.approx(0.25 * flops[0] + 0.75 * flops[1])


def test_cached_latents_need_no_encoders():
    video = load_config(["configs/tiny.yaml"], [])
    cached = load_config(["configs/tiny.yaml"], ["data.source=latents"])
    with_videos = load_config(
        ["configs/tiny.yaml"],
        ["data.source=latents", "validation.every_steps=5", "validation.prompts=[a]"],
    )
    memory = [
        estimate_memory(c, sizes=derive_sizes(c), world_size=1)
        for c in (video, cached, with_videos)
    ]
    assert memory[0].encoders == memory[2].encoders > memory[1].encoders == 0
    assert memory[0].encoding > memory[1].encoding == 0
