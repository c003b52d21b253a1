"""The frozen networks beside the one that is trained: their bytes, peaks and FLOPs.

The codec's are counted by running it, in its real size, on the meta device: its memory is that of
a few very large maps, which chunks, tiles and slices change in ways that no formula follows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch.utils.flop_counter import FlopCounterMode

from sat_udpdiff.config import Config, VideoCodecConfig, makes_sample_videos
from sat_udpdiff.encoders.source import TINY, TINY_WEIGHTS
from sat_udpdiff.encoders.vae import VideoCodec
from sat_udpdiff.plan.counting import TensorBytes
from sat_udpdiff.plan.sizes import BYTES, Sizes

# Of the released encoders, which need not be on the machine where a run is planned.
_T5_XXL_PARAMETERS = 4_762_310_656
# vae/config.json of THUDM/CogVideoX-2b and -5b, as far as it decides shapes; 215,583,907 weights.
_RELEASED_CODEC: dict[str, Any] = {
    "down_block_types": ("CogVideoXDownBlock3D",) * 4,
    "up_block_types": ("CogVideoXUpBlock3D",) * 4,
    "block_out_channels": (128, 256, 256, 512),
    "latent_channels": 16,
    "layers_per_block": 3,
    "sample_height": 480,
    "sample_width": 720,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class CodecCost:
    """Of one call of the codec."""

    peak_bytes: int
    """Beyond its weights, the clip and its copies included; without cuDNN's workspace."""
    flops: int
    parameters: int


@dataclass(frozen=True, kw_only=True, slots=True)
class FrozenCost:
    """What the encoders add to training on one GPU; zeros where they are not loaded."""

    text_bytes: float = 0.0
    codec_bytes: float = 0.0
    encoding_bytes: float = 0.0
    """Peak of encoding a micro-batch."""
    decoding_bytes: float = 0.0
    """Peak of decoding a sample video, if training makes any."""
    flops_per_sample: float = 0.0
    """Of encoding clip, dense map and caption."""


def frozen_cost(config: Config, *, sizes: Sizes) -> FrozenCost:
    """Cost of the frozen networks that training with `config` loads.

    Args:
        config: With one clip size.
        sizes: Of it.

    Raises:
        ValueError: The codec that `codec.weights` names does not fit the configuration.
    """
    encodes, samples = config.data.source == "video", makes_sample_videos(config)
    if not (encodes or samples):
        return FrozenCost()
    text = _local_parameters(_text_folder(config)) or _T5_XXL_PARAMETERS
    views, batch, data = 1 + config.model.dense_groups, config.train.micro_batch_size, config.data
    shape = (batch, data.num_frames, 3, data.height, data.width)
    encoding = _encoding_cost(config.codec, shape, views) if encodes else None
    decoding = _decoding_cost(config.codec, _one_view(config, sizes)) if samples else None
    parameters = (encoding or decoding or _no_cost()).parameters
    parameters = _local_parameters(_codec_folder(config.codec)) or parameters
    return FrozenCost(
        text_bytes=float(text * BYTES[config.text.dtype]),
        codec_bytes=float(parameters * BYTES[config.codec.dtype]),
        encoding_bytes=float(encoding.peak_bytes) if encoding else 0.0,
        decoding_bytes=float(decoding.peak_bytes) if decoding else 0.0,
        flops_per_sample=(
            # Every token goes through every weight of the text encoder once.
            encoding.flops / batch + 2.0 * text * config.model.text_length if encoding else 0.0
        ),
    )


def _one_view(config: Config, sizes: Sizes) -> tuple[int, ...]:
    frames, _, height, width = sizes.latent
    return 1, frames, config.model.latent_channels, height, width


def _no_cost() -> CodecCost:
    return CodecCost(peak_bytes=0, flops=0, parameters=0)


@lru_cache(maxsize=64)
def _encoding_cost(config: VideoCodecConfig, shape: tuple[int, ...], views: int) -> CodecCost:
    """Of encoding `views` batches of `shape` (b, t, 3, h, w), joined as training joins them.

    Slices, tiles and chunks are done one after another, so one of the first two and two chunks
    are run, and the rest is added up: all of them would take minutes.
    """
    codec = _meta_codec(config)
    batch, frames, _, height, width = shape
    together = 1 if config.slicing else views * batch
    part, factor = (frames, height, width), views * batch / together
    if config.encode_chunks == "diffusers":
        chunk = codec.vae.num_sample_frames_batch_size
        part = (min(frames, 2 * chunk + frames % chunk), height, width)
    if config.tiling:
        vae = codec.vae
        tile = (vae.tile_sample_min_height, vae.tile_sample_min_width)
        overlaps = (vae.tile_overlap_factor_height, vae.tile_overlap_factor_width)
        part = (part[0], min(height, tile[0]), min(width, tile[1]))
        if part[1:] != (height, width):
            for side, length, overlap in zip((height, width), tile, overlaps, strict=True):
                factor *= _covered(side, tile=length, step=int(length * (1 - overlap))) / side
    count = math.prod((frames, height, width)) / math.prod(part)
    clip = torch.empty(together, part[0], 3, *part[1:], device="meta")
    with TensorBytes("meta") as memory, FlopCounterMode(display=False) as flops:
        codec.encode(clip)
    # The clips as they come, joined where there are two views, and cast.
    copies = 4 * (2 if views > 1 else 1) + BYTES[config.dtype]
    clips = views * math.prod(shape) * copies - clip.numel() * BYTES[config.dtype]
    return CodecCost(
        peak_bytes=memory.peak + clips,
        flops=int(flops.get_total_flops() * count * factor),
        parameters=_count(codec.vae),
    )


def _covered(side: int, *, tile: int, step: int) -> int:
    """Pixels of a side that tiles cover, those of overlaps as often as they are covered."""
    return sum(min(tile, side - start) for start in range(0, side, step))


@lru_cache(maxsize=64)
def _decoding_cost(config: VideoCodecConfig, shape: tuple[int, ...]) -> CodecCost:
    """Of decoding latents of `shape` (b, t, c, h, w); of tiles, one is run."""
    codec = _meta_codec(config)
    batch, frames, channels, height, width = shape
    part = (height, width)
    if config.tiling:
        vae = codec.vae
        part = (min(height, vae.tile_latent_min_height), min(width, vae.tile_latent_min_width))
    with TensorBytes("meta") as memory, FlopCounterMode(display=False) as flops:
        video = codec.decode(torch.empty(batch, frames, channels, *part, device="meta"))
    share = math.prod(part) / (height * width)
    # The other tiles' frames, in the codec's dtype, and all of them joined and in fp32.
    rest = video.numel() * (1 / share - 1) * (2 * BYTES[config.dtype] + 4)
    return CodecCost(
        peak_bytes=int(memory.peak + rest),
        flops=int(flops.get_total_flops() / share),
        parameters=_count(codec.vae),
    )


def _count(module: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def _meta_codec(config: VideoCodecConfig) -> VideoCodec:
    """The codec of `config` without weights, and without the loops that a plan adds up itself."""
    # Takes seconds to import, and a run from cached latents needs none of it.
    from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX

    folder = _codec_folder(config)
    has_config = (folder / "config.json").is_file()
    kind: Any = AutoencoderKLCogVideoX
    values = kind.load_config(str(folder)) if has_config else _RELEASED_CODEC
    with torch.device("meta"):
        vae = kind.from_config(values)
    codec = VideoCodec(vae, config=config, device="meta")
    vae.disable_slicing()
    # Tiles keep their size.
    vae.use_tiling = False
    return codec


def _text_folder(config: Config) -> Path:
    return _folder(config.text.weights, subfolder="text_encoder", tiny="text")


def _codec_folder(config: VideoCodecConfig) -> Path:
    return _folder(config.weights, subfolder=config.subfolder, tiny="codec")


def _folder(weights: str, *, subfolder: str | None, tiny: str) -> Path:
    """Where the files of a frozen network would lie; a hub id gives a folder that is not there."""
    if weights == TINY:
        return TINY_WEIGHTS / tiny
    inner = Path(weights).expanduser() / (subfolder or "")
    return inner if inner.is_dir() else inner.parent if subfolder else inner


def _local_parameters(folder: Path) -> int:
    """Parameters of the safetensors files in a folder, by their headers; 0 without files."""
    count = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as content:
            names = content.keys()
            count += sum(math.prod(content.get_slice(name).get_shape()) for name in names)
    return count
