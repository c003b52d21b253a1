"""The sampling program from its command line: outputs, repeatability, and refusals."""

import json
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sat_udpdiff import generation, sample
from sat_udpdiff.config import Config, TextEncoderConfig, VideoCodecConfig
from sat_udpdiff.config_io import load_config, save_config
from sat_udpdiff.model.transformer import build_network, initialise
from sat_udpdiff.weights.fingerprint import fingerprint
from tests.small_codec import small_vae

PROMPT = "a red disc moves left"


def make_config(codec: Path, **model) -> Config:
    config = Config()
    return replace(
        config,
        model=replace(
            config.model,
            family="tiny",
            num_layers=1,
            hidden_size=32,
            num_heads=2,
            time_embed_dim=16,
            latent_channels=4,
            text_dim=128,
            text_length=12,
            activation_checkpointing="none",
            **model,
        ),
        codec=VideoCodecConfig(
            weights=str(codec), subfolder=None, spatial_compression=4, dtype="fp32"
        ),
        text=TextEncoderConfig(weights="tiny", dtype="fp32"),
        data=replace(config.data, num_frames=5, height=16, width=24),
        train=replace(config.train, precision="fp32"),
        sample=replace(config.sample, num_steps=2),
    )


def make_checkpoint(folder: Path, config: Config) -> Path:
    """A folder of weights with its configuration, as a checkpoint has them."""
    network = build_network(config.model, dtype=torch.float32, device="cpu")
    initialise(network, 0)
    with torch.no_grad():
        for parameter in network.parameters():
            generator = torch.Generator().manual_seed(parameter.numel())
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    folder.mkdir()
    save_file(network.state_dict(), folder / "network.safetensors")
    save_config(config, folder / "config.yaml")
    return folder


@pytest.fixture(scope="module")
def codec(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("codec")
    small_vae((4, 4, 4), norm_num_groups=2).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, codec) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("runs") / "multitask", make_config(codec))


@pytest.fixture(scope="module")
def baseline(tmp_path_factory, codec) -> Path:
    config = make_config(codec, dense_groups=0, task_signal="none")
    return make_checkpoint(tmp_path_factory.mktemp("runs") / "baseline", config)


def run(*words) -> int:
    """Exit status of the program."""
    try:
        return sample.main([str(word) for word in words])
    except SystemExit as stop:
        return int(stop.code or 0)


def test_one_sample_and_the_command_that_makes_it_again(checkpoint, tmp_path, capsys):
    words = ("--load", checkpoint, "--task", "depth", "--prompt", PROMPT, "--seed", 7)
    assert run(*words, "--output", tmp_path / "out", "--steps", 3) == 0
    folder = tmp_path / "out" / "000_a-red-disc-moves-left_depth_seed7"
    assert capsys.readouterr().out == f"{folder / 'contact_sheet.png'}\n"
    assert (folder / "side_by_side.mp4").stat().st_size > 0
    record = json.loads((folder / "sample.json").read_text())
    assert (record["prompt"], record["task"], record["seed"]) == (PROMPT, "depth", 7)
    assert record["config"]["sample"]["num_steps"] == 3
    assert len(record["weights"]["sha256"]) == len(record["codec"]["sha256"]) == 64
    assert record["versions"]["torch"] == metadata.version("torch")

    assert record["weights"]["file"] == str(checkpoint / "network.safetensors")

    again = shlex.split(record["command"])
    assert again[:2] == ["python", "sat_udpdiff/sample.py"]
    again[again.index("AGAIN")] = str(tmp_path / "again")
    assert run(*again[2:]) == 0
    repeated = tmp_path / "again" / folder.name
    # Not the videos: libx264 may choose other motion for equal frames.
    for name in ("contact_sheet.png", "depth/00004.png"):
        assert (folder / name).read_bytes() == (repeated / name).read_bytes(), name
    np.testing.assert_array_equal(
        np.load(folder / "depth.npz")["depth"], np.load(repeated / "depth.npz")["depth"]
    )


def test_prompt_file_and_seeds_give_a_folder_each(checkpoint, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text(f"{PROMPT}\n\n  a blue square moves up  \n")
    words = ("--load", checkpoint, "--task", "segmentation", "--prompts", file, "--output")
    assert run(*words, tmp_path / "out", "--seeds", 1, 2, "--batch-size", 2) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "000_a-red-disc-moves-left_segmentation_seed1",
        "000_a-red-disc-moves-left_segmentation_seed2",
        "001_a-blue-square-moves-up_segmentation_seed1",
        "001_a-blue-square-moves-up_segmentation_seed2",
    ]


def test_existing_outputs_are_kept_unless_asked(checkpoint, tmp_path, capsys):
    words = ("--load", checkpoint, "--task", "depth", "--prompt", PROMPT, "--output", tmp_path)
    folder = tmp_path / "000_a-red-disc-moves-left_depth_seed0"
    folder.mkdir()
    assert run(*words) == 2
    assert f"{folder} exists already" in capsys.readouterr().err
    assert list(folder.iterdir()) == []
    assert run(*words, "--overwrite") == 0
    assert (folder / "sample.json").is_file()


def test_baseline_makes_videos_and_refuses_a_task(baseline, tmp_path, capsys):
    words = ("--load", baseline, "--prompt", PROMPT, "--output", tmp_path / "out")
    assert run(*words, "--task", "depth") == 2
    assert "makes no dense map" in capsys.readouterr().err
    assert run(*words) == 0
    folder = tmp_path / "out" / "000_a-red-disc-moves-left_rgb_seed0"
    assert (folder / "video.mp4").is_file()
    assert not (folder / "dense.mp4").exists()


def test_settings_of_the_user_win_over_those_of_the_run(checkpoint, tmp_path, capsys):
    base = tmp_path / "short.yaml"
    base.write_text("sample: {num_steps: 1, sampler: ddim}\n")
    words = ("--load", checkpoint, "--task", "depth", "--prompt", PROMPT, "--output", tmp_path)
    status = run(*words, "--base", base, "--guidance", "dynamic_step", "seed=5", "--dry-run")
    assert status == 0
    printed = capsys.readouterr().out
    assert "num_steps: 1\n" in printed
    assert "sampler: ddim\n" in printed
    assert "guidance: dynamic_step\n" in printed
    assert "hidden_size: 32\n" in printed
    assert "depth_seed5" in printed
    assert run(*words, "--dry-run", "--seeds", 3, 4, "data.fps=4") == 0
    printed = capsys.readouterr().out
    assert "fps: 4.0\n" in printed
    assert "depth_seed3" in printed
    assert "depth_seed4" in printed
    assert not list(tmp_path.glob("000_*"))


def test_words_that_the_encoder_lacks_are_named(checkpoint, tmp_path, capsys):
    words = ("--load", checkpoint, "--task", "depth", "--output", tmp_path / "out", "--steps", 1)
    assert run(*words, "--prompt", "a red cat moves left and a blue square moves up") == 0
    notes = capsys.readouterr().err
    assert "unknown to the text encoder: cat. It knows: " in notes
    assert "14 tokens; those after 12 are cut off" in notes


@pytest.fixture
def never_load(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("a bad request must be refused before anything is loaded")

    monkeypatch.setattr(generation.Encoders, "load", fail)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task", "dept"], "(nearest: depth), got dept"),
        (["--task", "depth", "--num-frames", "8"], "expected 4k + 1 frames (nearest: 5, 9), got 8"),
        (["--task", "depth", "--height", "20"], "data.height: expected a multiple of 8 pixels"),
        (["--task", "depth", "--sampler", "euler"], "sample.sampler: expected"),
        (["--task", "depth", "--steps", "0"], "sample.num_steps: expected at least 1, got 0"),
        (["--task", "depth", "--prompt", " "], "prompt: expected some text"),
        (["--task", "depth", "--seed", "-1"], "seeds: expected one or more integers >= 0"),
        (["--task", "depth", "--batch-size", "0"], "batch size: expected at least 1, got 0"),
        (["--task", "depth", "--load", "nowhere"], "nowhere"),
        (["--task", "depth", "--prompts", "nowhere.txt"], "--prompts: cannot read nowhere.txt"),
        (["--task", "depth", "--ema"], "ema"),
        ([], "task: expected one of segmentation, depth, got none"),
    ],
)
def test_bad_requests_are_refused_in_one_line(
    checkpoint, tmp_path, capsys, never_load, words, message
):
    start = ["--load", checkpoint, "--prompt", PROMPT, "--output", tmp_path / "out"]
    assert run(*start, *words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1, error
    assert not (tmp_path / "out").exists()


def test_a_seed_that_is_no_number_is_told_what_is_one(checkpoint, tmp_path, capsys):
    words = ("--load", checkpoint, "--task", "depth", "--prompt", PROMPT, "--seed", "abc")
    assert run(*words, "--output", tmp_path / "out") == 2
    assert "--seed: expected an integer >= 0, got 'abc'" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "\n  \n"])
def test_empty_prompt_file_is_refused(checkpoint, tmp_path, capsys, never_load, text):
    file = tmp_path / "prompts.txt"
    file.write_text(text)
    words = ("--load", checkpoint, "--task", "depth", "--output", tmp_path / "out")
    assert run(*words, "--prompts", file) == 2
    assert (
        capsys.readouterr().err == f"sample.py: --prompts: {file} holds no prompt; one per line\n"
    )


@pytest.mark.parametrize("missing", ["--load", "--output", "--prompt"])
def test_what_is_required_is_named(checkpoint, tmp_path, capsys, never_load, missing):
    options = {"--load": checkpoint, "--output": tmp_path / "out", "--prompt": PROMPT}
    del options[missing]
    base = ["--base", checkpoint / "config.yaml"]
    words = [word for pair in options.items() for word in pair]
    assert run(*base, *words, "--task", "depth") == 2
    assert f"sample.py: {missing}: expected" in capsys.readouterr().err


def test_damaged_checkpoint_is_named(checkpoint, tmp_path, capsys):
    damaged = shutil.copytree(checkpoint, tmp_path / "damaged")
    weights = damaged / "network.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    words = ("--task", "depth", "--prompt", PROMPT, "--output", tmp_path / "out")
    assert run("--load", damaged, *words) == 2
    error = capsys.readouterr().err
    assert f"{weights}: not a readable safetensors file" in error
    assert error.count("\n") == 1


def test_checkpoint_without_dense_channels_is_not_expanded(checkpoint, baseline, tmp_path, capsys):
    words = ("--task", "depth", "--prompt", PROMPT, "--output", tmp_path / "out")
    base = ("--base", checkpoint / "config.yaml")
    assert run("--load", baseline / "network.safetensors", *base, *words) == 2
    error = capsys.readouterr().err
    assert "these weights have 4 channels and make no dense map, expected 8: expand them" in error
    assert error.count("\n") == 1


def test_weights_that_are_not_there_are_named(tmp_path, capsys):
    words = ("--task", "depth", "--prompt", PROMPT, "--output", tmp_path / "out")
    assert run("--load", tmp_path / "nothing", *words) == 2
    assert f"--load: nothing lies at {tmp_path / 'nothing'}" in capsys.readouterr().err


def test_weights_without_a_configuration_ask_for_one(checkpoint, tmp_path, capsys):
    lone = tmp_path / "network.safetensors"
    shutil.copy(checkpoint / "network.safetensors", lone)
    words = ("--load", lone, "--task", "depth", "--prompt", PROMPT, "--output", tmp_path / "out")
    assert run(*words) == 2
    assert "--base: expected configuration files" in capsys.readouterr().err
    assert run(*words, "--base", checkpoint / "config.yaml", "--dry-run") == 0


def test_starts_as_a_script(tmp_path):
    script = Path(sample.__file__)
    words = [sys.executable, str(script), "--load", str(tmp_path / "none"), "--base"]
    words += [str(script.parent.parent / "configs" / "tiny.yaml")]
    words += ["--task", "depth", "--prompt", PROMPT, "--output", str(tmp_path / "out")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("sample.py: ")
    assert done.stderr.count("\n") == 1


def test_fingerprint_tells_weights_apart(checkpoint):
    config = load_config([str(checkpoint / "config.yaml")])
    network = build_network(config.model, dtype=torch.bfloat16, device="cpu")
    initialise(network, 0)
    before = fingerprint(network)
    assert before == fingerprint(network)
    with torch.no_grad():
        next(network.parameters()).view(-1)[-1] += 1
    assert fingerprint(network) != before
