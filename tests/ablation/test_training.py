"""Trainings as commands, their state by what lies in their folder, and the caches they share."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sat_udpdiff.ablation.recipes import ARMS
from sat_udpdiff.ablation.settings import bound, load
from sat_udpdiff.ablation.training import (
    SHARED,
    State,
    cache_name,
    caches,
    judged_steps,
    make_training,
    recolourings,
)
from sat_udpdiff.config import ConfigError
from sat_udpdiff.config_io import save_config
from sat_udpdiff.weights.run_folder import CheckpointError

PRESET = Path(__file__).parents[2] / "configs" / "evaluation" / "ablation_tiny.yaml"


def training_of(folder, *words, arm="depth", seed=1):
    config = load([str(PRESET)], words)
    return make_training(config, ARMS[arm], seed=seed, output=folder, shards="SHARDS")


def write_checkpoint(training, step):
    """A complete checkpoint of one tensor."""
    folder = training.checkpoint(step)
    folder.mkdir(parents=True)
    save_file({"x": torch.zeros(1)}, folder / "network.safetensors")
    size = (folder / "network.safetensors").stat().st_size
    content = {"version": 1, "state": {"step": step}, "files": {"network.safetensors": size}}
    (folder / "state.json").write_text(json.dumps(content))


def test_a_training_is_a_command(tmp_path):
    words = training_of(tmp_path, arm="random_channels").command(port=None)
    assert words[:2] == ["python", "sat_udpdiff/train.py"]
    assert words[2:6] == [
        *("--base", "configs/tiny.yaml", "configs/multitask.yaml"),
        "configs/ablations/random_channels.yaml",
    ]
    settings = set(words[6:])
    # The settings of `make demo`, and nothing of the arm's own.
    assert {"train.micro_batch_size=4", "optimizer.lr=6e-3", "optimizer.schedule=linear"} < settings
    assert {"seed=1", "train.steps=320", f"data.latents={tmp_path}/latents/shared"} < settings
    assert f"run.output={tmp_path}/runs/random_channels_seed1" in settings


def test_several_ranks_share_the_batch_and_have_a_port(tmp_path):
    words = training_of(tmp_path, "training.ranks=2").command(port=1234)
    assert words[:5] == ["deepspeed", "--master_port", "1234", "--num_gpus", "2"]
    assert "train.micro_batch_size=2" in words
    with pytest.raises(ValueError, match="ranks: expected a number that divides 4, got 3"):
        training_of(tmp_path, "training.ranks=3")


def test_arms_differ_in_nothing_but_their_files(tmp_path):
    first, second = (training_of(tmp_path, arm=arm) for arm in ("multitask", "partition_03_07"))
    assert set(first.overrides) ^ set(second.overrides) == {
        f"run.output={tmp_path}/runs/multitask_seed1",
        f"run.output={tmp_path}/runs/partition_03_07_seed1",
    }


def test_the_state_is_that_of_complete_checkpoints(tmp_path):
    training = training_of(tmp_path)
    assert training.state() is State.NEW
    training.folder.mkdir(parents=True)
    save_config(training.config(), training.folder / "config.yaml")
    assert training.state() is State.BEGUN
    write_checkpoint(training, 80)
    assert training.state() is State.BEGUN
    write_checkpoint(training, 320)
    assert training.state() is State.DONE
    (training.checkpoint(320) / "network.safetensors").write_bytes(b"cut")
    assert training.state() is State.BEGUN
    (training.checkpoint(80) / "network.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="all 2 checkpoints are damaged"):
        training.state()


def test_a_training_of_other_settings_is_refused_by_name(tmp_path):
    training = training_of(tmp_path)
    training.folder.mkdir(parents=True)
    config = training.config()
    other = replace(config, optimizer=replace(config.optimizer, lr=0.5))
    save_config(other, training.folder / "config.yaml")
    with pytest.raises(ConfigError, match=r"other settings: optimizer.lr was 0.5, now 0.006"):
        training.state()
    # Where things are is no setting.
    moved = replace(config, data=replace(config.data, latents="elsewhere"))
    save_config(moved, training.folder / "config.yaml")
    assert training.state() is State.BEGUN


def test_only_the_arms_of_figure_8_are_judged_on_the_way():
    config = load([str(PRESET)])
    steps = {name: judged_steps(config, arm) for name, arm in ARMS.items()}
    curves = {"scratch_single", "scratch_multitask"}
    assert {name for name, found in steps.items() if found == [80, 160, 240, 320]} == curves
    assert all(found == [320] for name, found in steps.items() if name not in curves)
    without = load([str(PRESET)], ["curve.every_steps=0"])
    assert judged_steps(without, ARMS["scratch_single"]) == [320]


def test_arms_share_one_cache_unless_captions_or_colours_differ():
    config = load([str(PRESET)])
    names = {name: cache_name(config, arm) for name, arm in ARMS.items()}
    own = {name for name, cache in names.items() if cache != SHARED}
    assert own == {"text_prompt", "location_aware"}
    assert all(names[name] == name for name in own)
    needed = caches(config, tuple(ARMS.values()))
    assert set(needed) == {SHARED, *own}
    # One task alone, and yet the cache has the maps of both.
    assert caches(config, (ARMS["depth"],)) == {
        SHARED: ("configs/tiny.yaml", "configs/multitask.yaml")
    }
    assert recolourings(config, needed[SHARED]) == 4
    assert recolourings(config, needed["location_aware"]) == 1


def test_clips_may_be_encoded_while_training(tmp_path):
    training = training_of(tmp_path, "data.encode_once=false")
    assert "data.shards=SHARDS" in training.overrides
    assert not any(word.startswith("data.latents") for word in training.overrides)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("seeds=[]", "seeds: expected at least one, got none"),
        ("seeds=[1,1]", r"seeds: expected different integers >= 0, got \[1, 1\]"),
        ("seeds=[-1]", r"seeds: expected different integers >= 0, got \[-1\]"),
        ("arms=[dept]", r"arms: no such arm \(nearest: depth\), got 'dept'"),
        ("run.jobs=0", "run.jobs: expected at least 1, got 0"),
        ("curve.every_steps=100", "curve.every_steps: expected a divisor of training.steps=320"),
        ("training.stepps=3", r"no such setting \(nearest: training.steps\)"),
        ("evaluation.prompts.count=many", "evaluation.prompts.count: expected a whole number"),
        ("evaluation.measures=[edge]", "evaluation.measures: expected tiny with scores=tiny"),
        ("scores=paper", "expected subject_consistency or .* with scores=paper"),
        ("evaluation.sample.tasks=[depth]", "evaluation.sample.tasks: expected none"),
        ("evaluation.sample.tasks=[depth,depth]", "sample.tasks: expected each once"),
        ("evaluation.prompts.count=0", "prompts.count: expected at least 1, got 0"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(word, message):
    with pytest.raises(ConfigError, match=message):
        load([str(PRESET)], [word])


def test_a_wrong_setting_of_training_is_found_before_anything_runs(tmp_path):
    with pytest.raises(ConfigError, match=r"optimizer.rl: no such setting"):
        training_of(tmp_path, "training.settings=[optimizer.rl=1]")


def test_a_folder_is_bound_to_what_numbers_depend_on():
    config = load([str(PRESET)])
    for word in ("seeds=[3]", "arms=[depth]", "run.jobs=1", "evaluation.run.shown=3",
                 "evaluation.run.device=cpu", "evaluation.run.cache=elsewhere"):  # fmt: skip
        assert bound(load([str(PRESET)], [word])) == bound(config), word
    for word in ("training.steps=640", "evaluation.sample.num_steps=10"):
        assert bound(load([str(PRESET)], [word])) != bound(config), word
