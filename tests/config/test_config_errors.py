"""Every wrong setting costs one line: the key, what was expected, what came, and from where."""

import dataclasses
import subprocess
import sys

import pytest

from sat_udpdiff.config import Config, OptimizerConfig
from sat_udpdiff.config_io import ConfigError, check_device, load_config, require, validate


def message_of(tmp_path, *, text="", overrides=()):
    path = tmp_path / "given.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config([str(path)], list(overrides))
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        # unknown names
        ("train.stesp=3", "train.stesp: no such setting (nearest: train.steps)"),
        ("lr=3", "lr: no such setting (nearest: optimizer.lr)"),
        ("model.shards=x", "model.shards: no such setting (nearest: data.shards)"),
        ("trian.steps=3", "trian.steps: no such setting (nearest: train.steps)"),
        ("qqq=3", "qqq: no such setting (sections: model, init,"),
        ("train.steps.x=3", "train.steps.x: no such setting (nearest: train.steps)"),
        # wrong form
        ("seed", "seed: expected key=value on the command line (as in train.steps=100)"),
        ("more.yaml", "(files are given after --base)"),
        ("train=3", "train: expected a section with train."),
        # wrong type
        ("train.steps=many", "train.steps: expected a whole number, got many"),
        ("train.steps=1.5", "train.steps: expected a whole number, got 1.5"),
        ("train.steps=true", "train.steps: expected a whole number, got true"),
        ("train.steps=", "train.steps: expected a whole number, got ''"),
        ("train.steps='3'", "train.steps: expected a whole number, got '3'"),
        ("optimizer.lr=fast", "optimizer.lr: expected a number, got fast"),
        ("optimizer.lr=.nan", "optimizer.lr: expected a number, got .nan"),
        ("optimizer.lr=inf", "optimizer.lr: expected a number, got inf"),
        ("optimizer.lr=1e999", "optimizer.lr: expected a number, got 1e999"),
        ("optimizer.lr=[1]", "optimizer.lr: expected a number, got a list of 1"),
        ("optimizer.lr={a: 1}", "optimizer.lr: expected a number, got a mapping"),
        ("optimizer.lr=[1", "optimizer.lr line 1: not valid YAML"),
        ("ema.enabled=2", "ema.enabled: expected true or false, got 2"),
        ("run.output=null", "run.output: expected text, got null"),
        ("train.precision=fp61", "expected one of fp32, bf16, fp16 (nearest: fp16), got fp61"),
        ("train.zero_stage=4", "train.zero_stage: expected one of 1, 2, 3, got 4"),
        ("data.tasks=depth", "got depth; write [depth]"),
        ("data.tasks=[depht]", "data.tasks[0]: expected one of segmentation, depth (nearest: dep"),
        ("optimizer.betas=[1,2,3]", "expected a list of a number and a number, got a list of 3"),
        ("optimizer.betas=[0.9,x]", "optimizer.betas[1]: expected a number, got x"),
        # impossible values
        (
            "data.buckets=[9x32]",
            "data.buckets: expected sizes FRAMESxHEIGHTxWIDTH such as 49x480x7",
        ),
        ("data.buckets=[8x32x48]", "data.buckets: expected 4k + 1 frames (nearest: 5, 9), got 8"),
        ("data.bucket_weights=[1.0]", "data.bucket_weights: expected 0, one for each of data.buc"),
        ("data.decode_seconds=0", "data.decode_seconds: expected a value above 0, got 0.0"),
        ("data.shuffle_run=0", "data.shuffle_run: expected at least 1, got 0"),
        ("train.steps=0", "train.steps: expected at least 1, got 0"),
        ("seed=-1", "seed: expected at least 0, got -1"),
        ("seed=9223372036854775808", "seed: expected at most 9223372036854775807"),
        ("optimizer.lr=0", "optimizer.lr: expected a value above 0, got 0.0"),
        ("optimizer.betas=[0.9,1]", "expected two values from 0 to below 1, got [0.9, 1.0]"),
        ("ema.decay=1", "ema.decay: expected 0 to below 1, got 1.0"),
        ("train.caption_dropout=1.5", "expected a share from 0 to 1, got 1.5"),
        ("data.long_caption_probability=-0.1", "expected a share from 0 to 1, got -0.1"),
        ("colormap.min_distance=442", "expected 0 to 441, got 442"),
        ("codec.weights=", "codec.weights: expected some text, got ''"),
        ("init.weights=", "init.weights: expected a folder, a file, a hub id, `tiny` or null"),
        ("model.dense_groups=2", "expected 0 (RGB alone) or 1"),
        ("model.patch_size_t=0", "expected 1 (CogVideoX 1.0) or 2 (1.5), got 0"),
        ("model.patch_size_t=4", "expected 1 (CogVideoX 1.0) or 2 (1.5), got 4"),
        ("lora.rank=-1", "lora.rank: expected at least 0, got -1"),
        (
            "lora.rank=3073",
            "lora.rank: expected at most model.hidden_size=3072, the full rank, got",
        ),
        ("lora.alpha=0", "lora.alpha: expected a value above 0, or null, got 0.0"),
        ("lora.targets=[]", "lora.targets: expected one or more of to_q, to_k, to_v, to_out.0, ff"),
        ("lora.targets=[to_q, to_q]", "expected one or more of to_q, to_k, to_v, to_out.0, ff.net"),
        (
            "lora.targets=[to_out]",
            "lora.targets[0]: expected one of to_q, to_k, to_v, to_out.0, ff",
        ),
        ("lora.weights=", "lora.weights: expected a LoRA file, its folder, or null, got ''"),
        # settings that do not go together
        ("lora.weights=FILE", "lora.weights: expected null with lora.rank=0; set lora.rank to the"),
        ("data.num_frames=48", "data.num_frames: expected 4k + 1 frames (nearest: 45, 49), got 48"),
        ("data.height=470", "expected a multiple of 16 pixels (nearest: 464, 480), got 470"),
        ("data.width=9", "expected a multiple of 16 pixels (nearest: 16), got 9"),
        ("model.num_heads=47", "model.hidden_size: expected a multiple of num_heads=47, got 3072"),
        ("model.num_heads=128", "expected heads of a multiple of 16 for rotary positions"),
        ("colormap.location_grid=12", "colormap.location_grid: expected 1 to 11"),
        ("data.tasks=[depth]", "data.task_weights: expected 1, one for each of data.tasks=depth"),
        ("data.tasks=[]", "data.tasks: expected one or more of segmentation, depth, each once"),
        ("data.tasks=[depth, depth]", "data.tasks: expected one or more of segmentation, depth"),
        ("data.task_weights=[1, 0]", "expected shares above 0 that add up to 1, got [1.0, 0.0]"),
        ("data.task_weights=[0.5, 0.05]", "expected shares above 0 that add up to 1"),
        ("model.task_signal=none", "expected embedding or prompt, since there are 2 tasks, got no"),
        ("model.dense_groups=0", "expected none, since dense_groups=0 makes no dense map"),
        ("sample.num_steps=1001", "expected at most diffusion.num_train_timesteps=1000, got 1001"),
        (
            "validation.every_steps=5",
            "expected at least one prompt, or else validation.shards or validation.latents, since",
        ),
        ("validation.clips=0", "validation.clips: expected at least 1, got 0"),
        ("validation.measures=[fvd]", "expected at least one prompt, since validation.measures"),
        ("validation.seeds=[1, 1]", "validation.seeds: expected each once, got [1, 1]"),
        ("validation.seeds=[-1]", "validation.seeds: expected 0 to 9223372036854775807, got [-1]"),
        ("validation.evaluation=e.yaml", "expected null without validation.measures, got e.yaml"),
        ("validation.prompts=[' ']", "validation.prompts: expected prompts with text, got [' ']"),
    ],
)
def test_override_message(override, expected, tmp_path):
    message = message_of(tmp_path, overrides=[override])
    assert expected in message
    key = override.partition("=")[0]
    assert key in message
    if "=" in override:
        assert "the command line" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train:\n  stesp: 3\n", "given.yaml line 2)"),
        ("train:\n  stesp: 3\n", "train.stesp: no such setting (nearest: train.steps) (from "),
        ("train:\n  steps: 3\n  steps: 4\n", "train.steps: written twice (from "),
        ("train:\n  steps: 3\ntrain:\n  seed: 1\n", "train: written twice (from "),
        ("- 3\n", "given.yaml: expected sections such as `train:`, got a list of 1"),
        ("train: [\n", "given.yaml line 2: not valid YAML: "),
        ("seed: 1\n---\nseed: 2\n", "not valid YAML: "),
        ("<<: {seed: 3}\n", "<<: no such setting"),
        ("run:\n  output: !!python/name:os.system ''\n", "run.output: expected text, got"),
        ("run:\n  output: !secret x\n", "run.output: expected text, got x"),
        ("data:\n  num_frames: 48\n", "data.num_frames from "),
        ("data:\n  num_frames: 48\n", "codec.temporal_compression is the default"),
        ("train:\n  precision:\n", "train.precision: expected one of fp32, bf16, fp16, got null"),
        ("a: &a [*a]\n", "a: no such setting"),
        ("data: &d\n  prompts: *d\n", "data.prompts: no such setting"),
    ],
)
def test_file_message(text, expected, tmp_path):
    assert expected in message_of(tmp_path, text=text)


def test_missing_file_names_the_nearest(tmp_path):
    (tmp_path / "multitask.yaml").touch()
    with pytest.raises(ConfigError, match=r"mutlitask.yaml: cannot read .*multitask.yaml\)$"):
        load_config([str(tmp_path / "mutlitask.yaml")])


def test_folder_and_binary_file_are_refused(tmp_path):
    binary = tmp_path / "weights.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path, binary):
        with pytest.raises(ConfigError, match=r"cannot read the file"):
            load_config([str(path)])


def test_message_shortens_long_values(tmp_path):
    assert len(message_of(tmp_path, overrides=["train.steps=" + "x" * 10_000])) < 200


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ("model.positions=sincos", "model.patch_size_t: expected 1 with model.positions=sincos"),
        ("model.patch_size=1", "model.patch_size: expected 2 with model.patch_size_t=2"),
    ],
)
def test_patches_over_time_are_those_of_cogvideox_1_5(other, expected, tmp_path):
    assert expected in message_of(tmp_path, overrides=[other, "model.patch_size_t=2"])


def test_sincos_width():
    config = dataclasses.replace(
        Config(), model=dataclasses.replace(Config().model, positions="sincos", hidden_size=3096)
    )
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, num_heads=43))
    with pytest.raises(ConfigError, match="multiple of 16 for sincos"):
        validate(config)


def test_stage_3_makes_no_videos_while_it_trains(tmp_path):
    overrides = ["validation.every_steps=5", "validation.prompts=[a disc]"]
    load_config([], overrides)
    message = message_of(tmp_path, overrides=[*overrides, "train.zero_stage=3"])
    assert "validation.prompts: expected none with train.zero_stage=3" in message
    assert "got ['a disc']" in message
    losses = ["validation.every_steps=5", "validation.shards=held_out", "train.zero_stage=3"]
    load_config([], losses)


def test_held_out_clips_come_from_one_place(tmp_path):
    overrides = ["validation.every_steps=5", "validation.shards=a", "validation.latents=b"]
    message = message_of(tmp_path, overrides=overrides)
    assert "validation.latents: expected nothing, since validation.shards is set, got b" in message


def test_required_settings():
    with pytest.raises(ConfigError, match=r"data.shards: expected the folder of shards to read"):
        require(Config(), "data.shards", "run.output")
    config = load_config([], ["data.shards=here", "run.output=there"])
    require(config, "data.shards", "run.output")


def test_fp16_needs_a_gpu():
    config = load_config([], ["train.precision=fp16"])
    check_device(config, device="cuda")
    with pytest.raises(ConfigError, match=r"train.precision: expected fp32 or bf16 on a CPU"):
        check_device(config, device="cpu")


def test_validate_knows_no_origin_of_a_configuration_made_by_hand():
    config = dataclasses.replace(Config(), optimizer=OptimizerConfig(lr=-1.0))
    with pytest.raises(ConfigError, match=r"^optimizer.lr: expected a value above 0, got -1.0$"):
        validate(config)


def test_reading_a_configuration_does_not_import_torch():
    code = "import sys, sat_udpdiff.config_io; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
