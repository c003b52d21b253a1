"""What the frozen networks cost, against whole runs of the codec on the meta device."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

from sat_udpdiff.config_io import load_config
from sat_udpdiff.encoders.vae import VideoCodec
from sat_udpdiff.plan import frozen
from sat_udpdiff.plan.counting import TensorBytes
from sat_udpdiff.plan.sizes import derive_sizes

CONFIGS = Path(__file__).parents[2] / "configs"


def load(*names, overrides=()):
    return load_config([str(CONFIGS / f"{name}.yaml") for name in names], overrides)


def cost(config):
    return frozen.frozen_cost(config, sizes=derive_sizes(config))


def run_whole(config, run):
    """Peak and FLOPs of the released codec, with all its slices, tiles and chunks."""
    from diffusers import AutoencoderKLCogVideoX

    with torch.device("meta"):
        vae = AutoencoderKLCogVideoX.from_config(frozen._RELEASED_CODEC)
    codec = VideoCodec(vae, config=config.codec, device="meta")
    with TensorBytes("meta") as memory, FlopCounterMode(display=False) as flops:
        run(codec)
    return memory.peak, flops.get_total_flops()


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["codec.slicing=false"],
        ["codec.encode_chunks=diffusers"],
        ["codec.tiling=true", "data.num_frames=5", "data.width=400"],
        ["codec.dtype=fp32", "data.num_frames=25"],
        ["model.dense_groups=0", "model.task_signal=none", "train.micro_batch_size=2"],
    ],
)
def test_encoding_is_what_the_whole_codec_takes(overrides):
    config = load("5b", "multitask", overrides=overrides)
    data, views = config.data, 1 + config.model.dense_groups
    shape = (config.train.micro_batch_size, data.num_frames, 3, data.height, data.width)

    def encode(codec):
        clips = [torch.empty(shape, device="meta") for _ in range(views)]
        codec.encode(torch.cat(clips) if views > 1 else clips[0])

    peak, flops = run_whole(config, encode)
    found = cost(config)
    assert found.encoding_bytes == pytest.approx(peak, rel=0.01)
    caption = 2 * frozen._T5_XXL_PARAMETERS * 226
    per_sample = flops / config.train.micro_batch_size + caption
    assert found.flops_per_sample == pytest.approx(per_sample, rel=0.025)


@pytest.mark.parametrize("tiling", ["false", "true"])
def test_decoding_of_sample_videos(tiling):
    config = load(
        "5b",
        "multitask",
        overrides=[
            "data.source=latents", "validation.every_steps=100", "validation.prompts=[a cat]",
            f"codec.tiling={tiling}", "data.num_frames=5", "data.width=400",
        ],
    )  # fmt: skip
    peak, _ = run_whole(
        config, lambda codec: codec.decode(torch.empty(1, 2, 16, 60, 50, device="meta"))
    )
    found = cost(config)
    assert found.decoding_bytes == pytest.approx(peak, rel=0.05)
    assert found.encoding_bytes == found.flops_per_sample == 0
    assert found.text_bytes > 9e9


def test_figures_of_the_released_encoders():
    found = cost(load("5b", "multitask"))
    assert found.text_bytes == 2 * 4_762_310_656
    assert found.codec_bytes == 2 * 215_583_907
    # 149 TFLOP for each of the two clips, 2 for the caption.
    assert found.flops_per_sample == pytest.approx(2 * 149e12 + 2.1e12, rel=2e-3)
    assert found.encoding_bytes == pytest.approx(31.6e9, rel=5e-3)


def test_cached_latents_load_nothing():
    assert cost(load("5b", "multitask", overrides=["data.source=latents"])) == frozen.FrozenCost()


def test_encoders_of_a_pipeline_folder_are_counted_without_its_transformer(tmp_path):
    for name, numel in (("vae", 1000), ("text_encoder", 3000), ("transformer", 10**6)):
        (tmp_path / name).mkdir()
        save_file({"x": torch.zeros(numel)}, tmp_path / name / "model.safetensors")
    where = [f"codec.weights={tmp_path}", f"text.weights={tmp_path}"]
    found = cost(load("5b", "multitask", overrides=where))
    # fp32 in the files, bf16 in the run.
    assert (found.text_bytes, found.codec_bytes) == (2 * 3000, 2 * 1000)


def test_a_codec_that_does_not_fit_is_named(tmp_path):
    (tmp_path / "vae").mkdir()
    values = {**frozen._RELEASED_CODEC, "block_out_channels": [16, 16]}
    values |= {"down_block_types": ["CogVideoXDownBlock3D"] * 2, "norm_num_groups": 4}
    values |= {"up_block_types": ["CogVideoXUpBlock3D"] * 2}
    (tmp_path / "vae" / "config.json").write_text(json.dumps(values))
    config = load("5b", "multitask", overrides=[f"codec.weights={tmp_path}"])
    with pytest.raises(ValueError, match=r"codec\.spatial_compression: .* has 2, configured 8"):
        cost(config)


def test_the_tiny_codec_is_the_one_that_ships():
    config = load("tiny", "multitask")
    assert 0 < cost(config).codec_bytes < 10e6
    more = dataclasses.replace(config.train, micro_batch_size=8)
    # Not sliced: all clips of a micro-batch at once.
    doubled = cost(dataclasses.replace(config, train=more)).encoding_bytes
    assert doubled == pytest.approx(2 * cost(config).encoding_bytes, rel=0.01)


def test_losses_of_cached_latents_load_nothing_either():
    losses = ["validation.every_steps=100", "validation.latents=HELD_OUT", "data.source=latents"]
    assert cost(load("5b", "multitask", overrides=losses)) == frozen.FrozenCost()
