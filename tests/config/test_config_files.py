"""The files under configs/: each opens with its promise, and changes only what it is for."""

import re
from pathlib import Path

import pytest
import yaml

from sat_udpdiff.config import Config
from sat_udpdiff.config_io import load_config, to_values
from sat_udpdiff.encoders.latents import latent_size
from sat_udpdiff.model.accounting import forward_flops
from sat_udpdiff.plan import dry_run_report

CONFIGS = Path(__file__).parents[2] / "configs"
FAMILIES = ("tiny", "2b", "5b", "1.5-5b")
TASKS = ("multitask", "segmentation", "depth", "baseline")
ABLATIONS = (
    "text_prompt", "location_aware", "partition_03_07", "partition_07_03", "depth_anything_v2",
    "point_grid_8x8", "point_grid_12x12", "random_channels", "scratch_multitask", "scratch_single",
)  # fmt: skip
# These belong to other programs; their tests look at them.
OTHERS = ("panda_dense", "evaluation")
FILES = sorted(
    path.relative_to(CONFIGS).as_posix()
    for path in CONFIGS.rglob("*.yaml")
    if path.parent.name not in OTHERS
)
# Per encoding of 49 frames of 480 x 720, and per caption: cogvideox.md, sections 3 and 6.
ENCODE_FLOPS, CAPTION_FLOPS = 149e12, 2.1e12


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


def head_of(file):
    return re.match(r"(#.*\n)+", (CONFIGS / file).read_text(encoding="utf-8"))[0]


def line_of(name, keyword):
    """What stands behind `# Keyword:` in the header, e.g. the parent or the changed keys."""
    return re.search(rf"^# {keyword}: +(.*)$", head_of(f"{name}.yaml"), re.MULTILINE)[1]


def files_of_command(file):
    """Value files of the header's command, without .yaml, and whether it names shards."""
    head = head_of(file)
    words = " ".join(line.strip("#\\ \n") for line in head[head.index("deepspeed") :].splitlines())
    return re.findall(r"configs/(\S+)\.yaml", words), "data.shards=" in words


def flat_keys(name):
    values = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    return {f"{section}.{key}" for section, settings in values.items() for key in settings}


def test_no_file_is_forgotten():
    named = (*FAMILIES, *TASKS, *(f"ablations/{name}" for name in ABLATIONS))
    assert set(FILES) == {f"{name}.yaml" for name in named}


@pytest.mark.parametrize("file", FILES)
def test_a_file_opens_with_its_promise(file):
    head = head_of(file)
    first = "Ablation" if "/" in file else "Task" if Path(file).stem in TASKS else "Family"
    assert head.startswith(f"# {first}: ")
    for promise in ("Hardware", "Hours", "Expect", "Command"):
        assert f"\n# {promise}: " in head, promise
    assert max(map(len, (CONFIGS / file).read_text().splitlines())) <= 100


@pytest.mark.parametrize("file", FILES)
def test_the_command_of_a_file_loads_and_dry_runs(file):
    names, has_shards = files_of_command(file)
    assert file.removesuffix(".yaml") in names
    overrides = ["data.shards=s"] if has_shards else []
    config = load_config([str(CONFIGS / f"{name}.yaml") for name in names], overrides)
    assert config.data.shards, "the command names no shards, nor does its file"
    report = dry_run_report(config)
    assert "resolved configuration" in report


@pytest.mark.parametrize("file", [file for file in FILES if file != "tiny.yaml"])
def test_hours_are_those_of_the_flops(file):
    """40,000 steps of 8 clips: 4 forwards each, with the encoders besides or from a cache."""
    config = load(*files_of_command(file)[0])
    clip, gpus, rate = config.data, 8, 150e12
    assert config.model.activation_checkpointing == "full"
    size = latent_size(
        config.codec, num_frames=clip.num_frames, height=clip.height, width=clip.width
    )
    network = 4 * forward_flops(config.model, size.frames, size.height, size.width)
    pixels = clip.num_frames * clip.height * clip.width / (49 * 480 * 720)
    encoders = (1 + config.model.dense_groups) * pixels * ENCODE_FLOPS + CAPTION_FLOPS
    samples = config.train.steps * config.train.micro_batch_size * gpus
    head = head_of(file)
    said = float(re.search(r"# Hours: +([\d.]+) for 40,000 steps", head)[1])
    said_cached = float(re.search(r" ([\d.]+) from cached latents", head)[1])
    assert config.train.steps == 40_000
    hours = samples / (gpus * rate) / 3600
    assert said == pytest.approx(hours * (network + encoders), rel=0.01)
    assert said_cached == pytest.approx(hours * network, rel=0.015)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_family_and_task_compose_in_either_order(family, task):
    assert load(family, task) == load(task, family)
    assert not flat_keys(family) & flat_keys(task)


@pytest.mark.parametrize("name", TASKS[1:])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_task_differs_from_its_parent_as_its_header_says(family, name):
    parent = load(family, line_of(name, "Parent"))
    keys = line_of(name, "Changes").split(", ")
    assert changed(parent, load(family, name)) == set(keys)
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("name", ABLATIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_ablation_differs_from_its_parent_as_its_header_says(family, name):
    file = f"ablations/{name}"
    parent, keys = line_of(file, "Parent"), line_of(file, "Changes").split(", ")
    assert parent in TASKS
    assert changed(load(family, parent), load(family, parent, file)) == set(keys)
    # And it says nothing that its parent says already.
    assert flat_keys(file) == set(keys)
    assert files_of_command(f"{file}.yaml")[0] == ["5b", parent, file]


def test_parents_are_the_rows_that_the_paper_compares_with():
    """method.md, section 5: Tab. 6, 8, 9 and Scratch of Tab. 11 are single-task models."""
    parents = {name: line_of(f"ablations/{name}", "Parent") for name in ABLATIONS}
    single = {name: parent for name, parent in parents.items() if parent != "multitask"}
    assert single == {
        "location_aware": "segmentation",
        "point_grid_8x8": "segmentation",
        "point_grid_12x12": "segmentation",
        "depth_anything_v2": "depth",
        "scratch_single": "depth",
    }


def test_the_readme_names_every_file_with_the_numbers_of_its_header():
    text = (CONFIGS / "README.md").read_text(encoding="utf-8")
    for file in FILES:
        assert f"`{file}`" in text, file
    for name in ABLATIONS:
        row = next(line for line in text.splitlines() if f"ablations/{name}.yaml" in line)
        assert f"`{line_of(f'ablations/{name}', 'Parent')}.yaml`" in row
        cells = [cell.strip() for cell in row.split("|")[4:7]]
        expected = re.match(
            r"SC (\S+) BC (\S+) MS (\d+\.\d+)", line_of(f"ablations/{name}", "Expect")
        )
        assert cells == list(expected.groups())


def test_the_paper_is_the_default():
    assert changed(load("5b", "multitask"), Config()) == {"init.weights"}


def test_numbers_of_the_2b_release():
    config = load("2b", "segmentation")
    assert (config.codec.scale_factor, config.diffusion.snr_shift) == (1.15258426, 3.0)
    assert (config.sample.sampler, config.sample.guidance) == ("ddim", "constant")
    assert (config.train.precision, config.model.positions) == ("fp16", "sincos")


def test_numbers_of_the_1_5_release():
    """CogVideo's configs/cogvideox1.5_5b.yaml and inference.yaml; all else is as in the 5B."""
    difference = changed(load("5b", "multitask"), load("1.5-5b", "multitask"))
    assert difference == {
        "model.family", "model.patch_size_t", "model.text_length", "init.weights",
        "codec.weights", "codec.encode_chunks", "codec.tiling",
        "data.num_frames", "data.height", "data.width", "data.fps",
    }  # fmt: skip
    config = load("1.5-5b", "multitask")
    assert (config.model.patch_size_t, config.model.text_length) == (2, 224)
    data = config.data
    assert (data.num_frames, data.height, data.width, data.fps) == (81, 768, 1360, 16.0)


def test_tiny_needs_nothing_from_outside():
    config = load("tiny", "multitask")
    assert {config.init.weights, config.codec.weights, config.text.weights} == {"tiny"}
    assert config.train.precision == config.codec.dtype == config.text.dtype == "fp32"
