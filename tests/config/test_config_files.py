"""The files under configs/: each opens with its promise, and changes only what it is for."""

import re
from pathlib import Path

import pytest
import yaml

from sat_udpdiff.config import Config
from sat_udpdiff.config_io import load_config, to_values

CONFIGS = Path(__file__).parents[2] / "configs"
FAMILIES = ("tiny", "2b", "5b")
TASKS = ("multitask", "segmentation", "depth", "baseline")
SINGLE_TASK = {"data.tasks", "data.task_weights", "model.task_signal"}
ABLATIONS = {
    "text_prompt": {"model.task_signal"},
    "location_aware": {"colormap.segmentation"} | SINGLE_TASK,
    "partition_03_07": {"data.task_weights"},
    "partition_07_03": {"data.task_weights"},
    "random_channels": {"init.dense_channels"},
    "scratch_multitask": {"init.weights"},
    "scratch_single": {"init.weights"} | SINGLE_TASK,
    "model_2b": SINGLE_TASK,
}


def load(*names):
    return load_config([str(CONFIGS / f"{name}.yaml") for name in names])


def flat(config):
    values = to_values(config)
    seed = values.pop("seed")
    return {"seed": seed} | {
        f"{section}.{key}": value
        for section, settings in values.items()
        for key, value in settings.items()
    }


def changed(first, second):
    first, second = flat(first), flat(second)
    return {key for key in first if first[key] != second[key]}


def test_no_file_is_forgotten():
    found = {
        path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("*.yaml")
    }
    assert found == {*FAMILIES, *TASKS, *(f"ablations/{name}" for name in ABLATIONS)}


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_a_file_opens_with_its_promise(path):
    text = path.read_text(encoding="utf-8")
    head = re.match(r"(#.*\n)+", text)[0]
    for promise in ("Hardware", "ime:", "Expect:", "Command:"):
        assert promise in head, promise
    command = " ".join(
        line.strip("#\\ \n") for line in head[head.index("deepspeed") :].splitlines()
    )
    files = re.findall(r"configs/\S+\.yaml", command)
    assert path.relative_to(CONFIGS.parent).as_posix() in files
    for file in files:
        assert (CONFIGS.parent / file).is_file()
    load_config([str(CONFIGS.parent / file) for file in files], ["data.shards=s", "run.output=r"])


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_family_and_task_compose_in_either_order(family, task):
    assert load(family, task) == load(task, family)
    keys = [set(flat_keys(name)) for name in (family, task)]
    assert not keys[0] & keys[1]


def flat_keys(name):
    values = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    return [f"{section}.{key}" for section, settings in values.items() for key in settings]


@pytest.mark.parametrize(("name", "keys"), ABLATIONS.items(), ids=ABLATIONS)
def test_an_ablation_changes_only_what_it_ablates(name, keys):
    for family in FAMILIES:
        plain = load(family, "multitask")
        assert changed(plain, load(family, "multitask", f"ablations/{name}")) == keys


@pytest.mark.parametrize("name", ["location_aware", "scratch_single", "model_2b"])
def test_single_task_ablations_are_the_single_task_files(name):
    task = "depth" if name == "scratch_single" else "segmentation"
    ablation = load("5b", "multitask", f"ablations/{name}")
    assert changed(load("5b", task), ablation) == ABLATIONS[name] - SINGLE_TASK


def test_the_paper_is_the_default():
    assert changed(load("5b", "multitask"), Config()) == {"init.weights"}


def test_numbers_of_the_2b_release():
    config = load("2b", "segmentation")
    assert (config.codec.scale_factor, config.diffusion.snr_shift) == (1.15258426, 3.0)
    assert (config.sample.sampler, config.sample.guidance) == ("ddim", "constant")
    assert (config.train.precision, config.model.positions) == ("fp16", "sincos")


def test_tiny_needs_nothing_from_outside():
    config = load("tiny", "multitask")
    assert {config.init.weights, config.codec.weights, config.text.weights} == {"tiny"}
    assert config.train.precision == config.codec.dtype == config.text.dtype == "fp32"
