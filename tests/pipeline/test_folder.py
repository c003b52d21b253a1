"""The folder: complete, opened by diffusers with and without us, and honest about what it lacks."""

import inspect
import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXPipeline, CogVideoXTransformer3DModel
from safetensors.torch import load_file, save_file

from sat_udpdiff.config_io import load_config
from sat_udpdiff.encoders.source import TINY_WEIGHTS
from sat_udpdiff.pipeline import UDPDiffPipeline
from sat_udpdiff.pipeline.folder import (
    copy_frozen,
    model_index,
    notes,
    save_folder,
    scheduler_config,
    transformer_config,
)
from sat_udpdiff.weights.key_map import DIFFUSERS_TASK_TABLE

FILES = {
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
}


def config_of(*names, overrides=()):
    return load_config([f"configs/{name}.yaml" for name in names], list(overrides))


def sample(pipeline):
    return pipeline(
        "a red disc moves left",
        "depth",
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    )


def test_the_folder_holds_what_diffusers_looks_for(exported):
    found = {
        str(path.relative_to(exported.folder))
        for path in exported.folder.rglob("*")
        if path.is_file()
    }
    assert found == FILES
    vae = json.loads((exported.folder / "vae/config.json").read_text())
    assert vae["scaling_factor"] == exported.config.codec.scale_factor == 1.7


def test_the_saved_settings_come_back(exported):
    settings, config = exported.open().settings, exported.config
    assert settings.sample == config.sample
    assert settings.colormap == config.colormap
    assert settings.data.tasks == config.data.tasks
    for key in ("num_frames", "height", "width", "fps"):
        assert getattr(settings.data, key) == getattr(config.data, key)
    assert (
        replace(
            settings.model,
            family="tiny",
            activation_checkpointing="none",
        )
        == config.model
    )
    assert settings.codec.scale_factor == config.codec.scale_factor


def test_a_round_trip_through_save_pretrained(exported, tmp_path):
    first = exported.open()
    first.save_pretrained(tmp_path / "again")
    index = json.loads((tmp_path / "again/model_index.json").read_text())
    assert index["transformer"] == ["udpdiff", "UDPDiffTransformer3DModel"]
    again = UDPDiffPipeline.from_pretrained(tmp_path / "again")
    again.set_progress_bar_config(disable=True)
    assert again.settings == first.settings
    for key, value in first.transformer.state_dict().items():
        assert torch.equal(value, again.transformer.state_dict()[key]), key
    assert (sample(again).dense == sample(first).dense).all()


OPEN_IT = """
import sys
import diffusers
{imports}
pipeline = diffusers.DiffusionPipeline.from_pretrained(sys.argv[1])
print(type(pipeline).__name__, type(pipeline.transformer).__name__)
print(any(name.startswith("sat_udpdiff") for name in sys.modules))
"""


def open_elsewhere(folder, user_env, *, imports=""):
    command = [sys.executable, "-c", OPEN_IT.format(imports=imports), str(folder)]
    return subprocess.run(
        command, env=user_env, capture_output=True, text=True, timeout=300, check=False
    )


def test_diffusers_opens_it_where_our_package_is_imported(exported, user_env):
    done = open_elsewhere(
        exported.folder, user_env, imports="from sat_udpdiff.pipeline import UDPDiffPipeline"
    )
    assert done.stdout.split() == ["UDPDiffPipeline", "UDPDiffTransformer3DModel", "True"], done


def test_diffusers_alone_says_which_class_it_lacks(exported, user_env):
    done = open_elsewhere(exported.folder, user_env)
    assert done.returncode != 0
    assert "UDPDiffPipeline" in done.stderr.splitlines()[-1]


def test_diffusers_alone_opens_a_baseline(baseline, user_env):
    done = open_elsewhere(baseline.folder, user_env)
    assert done.stdout.split() == ["CogVideoXPipeline", "CogVideoXTransformer3DModel", "False"]
    theirs = CogVideoXPipeline.from_pretrained(baseline.folder)
    assert type(theirs.transformer) is CogVideoXTransformer3DModel
    assert theirs.vae.config["scaling_factor"] == 1.7


def test_weights_load_without_a_key_too_many_or_too_few(exported, baseline):
    table = load_file(exported.folder / "transformer/diffusion_pytorch_model.safetensors")
    assert table[DIFFUSERS_TASK_TABLE].shape == (2, 128)
    for folder, pipeline in ((exported.folder, exported.open()), (baseline.folder, None)):
        cls = CogVideoXTransformer3DModel if pipeline is None else type(pipeline.transformer)
        _, info = cls.from_pretrained(folder, subfolder="transformer", output_loading_info=True)
        assert not any(info.values()), info


class TestConfigs:
    def test_5b_with_a_dense_map(self):
        config = config_of("5b", "multitask")
        network = transformer_config(config)
        assert network["_class_name"] == "UDPDiffTransformer3DModel"
        assert (network["in_channels"], network["out_channels"]) == (32, 32)
        assert (network["num_attention_heads"], network["attention_head_dim"]) == (48, 64)
        assert network["patch_size_t"] is None
        assert network["tasks"] == ["segmentation", "depth"]
        assert (network["sample_frames"], network["sample_height"], network["sample_width"]) == (
            49, 60, 90,
        )  # fmt: skip
        assert scheduler_config(config)["_class_name"] == "CogVideoXDPMScheduler"
        assert model_index(config)["tokenizer"] == ["transformers", "T5Tokenizer"]

    def test_2b_baseline_is_diffusers_default(self):
        """The defaults of diffusers' class are the released 2B."""
        network = transformer_config(config_of("2b", "baseline"))
        signature = inspect.signature(CogVideoXTransformer3DModel.__init__).parameters
        defaults = {name: value.default for name, value in signature.items() if name != "self"}
        values = {key: value for key, value in network.items() if not key.startswith("_")}
        assert values == defaults
        assert network["_class_name"] == "CogVideoXTransformer3DModel"

    def test_2b_schedule(self):
        schedule = scheduler_config(config_of("2b", "baseline"))
        assert schedule["_class_name"] == "CogVideoXDDIMScheduler"
        assert schedule["snr_shift_scale"] == 3.0

    def test_patches_over_time(self):
        config = config_of("5b", "multitask", overrides=["model.patch_size_t=2"])
        assert transformer_config(config)["patch_size_t"] == 2

    def test_what_diffusers_does_otherwise_is_noted(self):
        assert notes(config_of("5b", "multitask")) == []
        sat = config_of("5b", overrides=["sample.schedule=sat", "sample.num_steps=30"])
        first, second = notes(sat)
        assert "sample.schedule=sat" in first
        assert "sample.num_steps=30 does not divide 1000" in second


class TestFrozen:
    def test_what_is_not_on_this_machine_is_named(self, tmp_path):
        config = config_of("5b", "multitask")
        vae, text = save_folder(tmp_path, config=config)
        assert vae.startswith("vae/ missing: THUDM/CogVideoX-5b is not on this machine")
        assert text.startswith("text_encoder/ and tokenizer/ missing: google/t5-v1_1-xxl")
        assert not (tmp_path / "vae").exists()
        assert (tmp_path / "transformer/config.json").is_file()

    def test_a_pipeline_folder_is_copied_with_its_shards(self, exported, tmp_path):
        origin = tmp_path / "origin"
        shutil.copytree(exported.folder, origin)
        state = load_file(origin / "text_encoder/model.safetensors")
        keys = sorted(state)
        parts = {f"model-0000{k + 1}-of-00002.safetensors": keys[k::2] for k in range(2)}
        for name, held in parts.items():
            save_file({key: state[key] for key in held}, origin / "text_encoder" / name)
        (origin / "text_encoder/model.safetensors").unlink()
        weight_map = {key: name for name, held in parts.items() for key in held}
        index = {"metadata": {}, "weight_map": weight_map}
        (origin / "text_encoder/model.safetensors.index.json").write_text(json.dumps(index))
        config = replace(
            exported.config,
            codec=replace(exported.config.codec, weights=str(origin), subfolder="vae"),
            text=replace(exported.config.text, weights=str(origin)),
        )
        assert copy_frozen(config, tmp_path / "copy") == []
        assert sorted(path.name for path in (tmp_path / "copy/text_encoder").iterdir()) == [
            "config.json", *parts, "model.safetensors.index.json",
        ]  # fmt: skip
        (origin / "text_encoder" / list(parts)[1]).unlink()
        with pytest.raises(ValueError, match="names 1 files that are not there: model-00002"):
            copy_frozen(config, tmp_path / "torn")

    def test_pickles_are_written_again_as_safetensors(self, exported, tmp_path):
        """Codec and encoder in torch's format, the encoder with a decoder beside it."""
        config = exported.config
        shutil.copytree(TINY_WEIGHTS / "codec", tmp_path / "codec")
        weights = load_file(tmp_path / "codec/diffusion_pytorch_model.safetensors")
        (tmp_path / "codec/diffusion_pytorch_model.safetensors").unlink()
        torch.save(weights, tmp_path / "codec/diffusion_pytorch_model.bin")
        shutil.copytree(TINY_WEIGHTS / "text", tmp_path / "text")
        values = json.loads((tmp_path / "text/config.json").read_text())
        values["architectures"] = ["T5ForConditionalGeneration"]
        (tmp_path / "text/config.json").write_text(json.dumps(values))
        config = replace(
            config,
            codec=replace(config.codec, weights=str(tmp_path / "codec")),
            text=replace(config.text, weights=str(tmp_path / "text")),
        )
        copy = tmp_path / "copy"
        assert copy_frozen(config, copy) == []
        vae = AutoencoderKLCogVideoX.from_pretrained(copy / "vae")
        assert vae.config["scaling_factor"] == 1.7
        for key, value in vae.state_dict().items():
            assert torch.equal(value, weights[key]), key
        written = json.loads((copy / "text_encoder/config.json").read_text())
        assert written["architectures"] == ["T5EncoderModel"]
        assert (copy / "text_encoder/model.safetensors").is_file()


@pytest.mark.parametrize(
    ("file", "key", "value", "message"),
    [
        (
            "model_index.json",
            "guidance",
            "dynamc_step",
            r"sample.guidance: .*\(nearest: dynamic_step\)",
        ),
        (
            "model_index.json",
            "segmentation",
            "rainbow",
            "colormap.segmentation: expected one of pixelplanes",
        ),
        (
            "transformer/config.json",
            "tasks",
            ["normals"],
            r"data.tasks\[0\]: expected one of segmentation, depth",
        ),
    ],
)
def test_a_folder_with_impossible_settings_is_refused(
    exported, tmp_path, file, key, value, message
):
    folder = tmp_path / "folder"
    shutil.copytree(exported.folder, folder)
    values = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(values | {key: value}))
    with pytest.raises(ValueError, match=message):
        UDPDiffPipeline.from_pretrained(folder)
