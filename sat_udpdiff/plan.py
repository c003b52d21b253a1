"""What `--dry-run` prints: the resolved configuration, and the sizes that follow from it.

Nothing is allocated: the network is built on the meta device, and the memory is an estimate from
stated formulas, per process, in GB of 1e9 bytes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open

from data_loaders.latent_cache import KIND
from data_loaders.order import sizes_of
from data_loaders.shard_files import is_address
from data_loaders.shard_format import CLIPS
from data_loaders.shards import ShardIndex
from sat_udpdiff.config import Config
from sat_udpdiff.config_io import dump_config, notes
from sat_udpdiff.distributed import read_launch_facts
from sat_udpdiff.encoders.latents import latent_size
from sat_udpdiff.encoders.source import TINY, TINY_WEIGHTS
from sat_udpdiff.model.accounting import forward_flops
from sat_udpdiff.model.dense_channels import total_channels
from sat_udpdiff.model.transformer import build_network

_RECOMPUTED_LAYERS = {"none": "no layer", "selective": "every second layer", "full": "every layer"}
_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}

# Values kept for the backward pass of one block, per token and in units of hidden_size; counted
# with saved_tensors_hooks on the block of CogVideoX.
_SAVED_PER_BLOCK = 23.1
# Gradients of the block that is being recomputed, as a share of its activations.
_RECOMPUTED_BLOCK_GRADIENTS = 0.6
# A 16-bit whole-clip encode holds about five full-size maps of the first stage at its peak.
_CODEC_MAPS = 5
# CUDA context, cuBLAS and NCCL workspaces, fragmentation: 2 to 4 GB seen on 80 GB GPUs.
_CUDA_OVERHEAD = 3e9

# Of the released encoders, which are not on this machine when a run is planned.
_T5_XXL_PARAMETERS = 4_762_310_656
_CODEC_PARAMETERS = 215_583_907
_CODEC_CHANNELS = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """Sizes that do not depend on the number of processes."""

    latent: tuple[int, int, int, int]
    """(frames, channels, height, width) of one sample, all groups of channels."""
    text_tokens: int
    video_tokens: int
    parameters: int
    samples: int | None
    """Samples in `data.shards`; None where no shards are named or there."""
    forward_flops: float
    """Of the network for one sample, a multiply-add counted as two."""
    sample_flops: float
    """Forward, backward and recomputation for one sample."""
    network_bytes: int
    """Of `network.safetensors` in a checkpoint."""
    checkpoint_bytes: int
    """Of a whole checkpoint, over all processes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Estimated bytes on one device."""

    weights: float
    gradients: float
    optimizer: float
    ema: float
    buckets: float
    step: float
    """fp32 gradients of the own shard while the optimizer steps."""
    activations: float
    encoders: float
    encoding: float
    """Peak of the codec's whole-clip encode, before the network runs."""
    overhead: float

    @property
    def total(self) -> float:
        """The peak: encoding, the passes of the network and the step follow one another."""
        states = self.weights + self.gradients + self.optimizer + self.ema + self.buckets
        passing = max(self.activations, self.encoding, self.step)
        return states + self.encoders + self.overhead + passing


def derive_sizes(config: Config) -> Sizes:
    """The sizes of `config`, of its largest bucket; the network is built on the meta device.

    Raises:
        DataError: `data.shards` names a folder whose manifest cannot be read.
    """
    config = _with_largest_size(config)
    latent = _latent_shape(config)
    video_tokens = latent[0] * latent[2] * latent[3] // config.model.patch_size**2
    parameters = count_parameters(config)
    forward = float(forward_flops(config.model, latent[0], latent[2], latent[3]))
    # The backward pass costs two forwards, and each recomputed layer one more of its own.
    recomputed = {"none": 0.0, "selective": 0.5, "full": 1.0}
    passes = 3 + recomputed[config.model.activation_checkpointing]
    return Sizes(
        latent=latent,
        text_tokens=config.model.text_length,
        video_tokens=video_tokens,
        parameters=parameters,
        samples=_count_samples(config),
        forward_flops=forward,
        sample_flops=passes * forward,
        network_bytes=4 * parameters,
        # The fp32 weights, the two moments of AdamW, and the average where there is one.
        checkpoint_bytes=(12 + 4 * config.ema.enabled) * parameters,
    )


def count_parameters(config: Config) -> int:
    """Trained parameters of the network, without allocating one."""
    network = build_network(config.model, dtype=torch.float32, device=torch.device("meta"))
    return sum(parameter.numel() for parameter in network.parameters())


def estimate_memory(config: Config, *, sizes: Sizes, world_size: int) -> Memory:
    """Bytes on each of `world_size` devices during training, in batches of the largest bucket.

    ZeRO stage 1 shards the optimizer over the processes, 2 the gradients too, 3 the weights too.
    """
    config = _with_largest_size(config)
    count, width = sizes.parameters, _BYTES[config.train.precision]
    stage = config.train.zero_stage
    shard = {at: world_size if stage >= at else 1 for at in (1, 2, 3)}
    bucket = min(config.train.reduce_bucket_elements, count) * width
    return Memory(
        weights=count * width / shard[3],
        gradients=count * width / shard[2],
        # fp32 master weights and the two moments of AdamW.
        optimizer=12 * count / shard[1],
        ema=4 * count / shard[1] if config.ema.enabled else 0.0,
        # Reduction is overlapped with the backward pass, which takes two buckets; gathering one.
        buckets=3.0 * bucket,
        step=4 * count / shard[1] if width < 4 else 0.0,
        activations=_activation_bytes(config, sizes=sizes) * config.train.micro_batch_size,
        encoders=_encoder_bytes(config),
        encoding=_encoding_bytes(config),
        overhead=0.0 if config.model.family == "tiny" else _CUDA_OVERHEAD,
    )


def dry_run_report(config: Config, *, world_sizes: Sequence[int] | None = None) -> str:
    """The text of `--dry-run`.

    Args:
        config: A checked configuration.
        world_sizes: Columns of the memory table; None: 1, 8 and what the launcher says.
    """
    launched = read_launch_facts(os.environ).world_size
    sizes = derive_sizes(config)
    columns = sorted(set(world_sizes or {1, 8, launched}))
    parts = [
        "# resolved configuration",
        dump_config(config),
        "# derived sizes",
        _format_sizes(config, sizes=sizes, world_size=launched),
        "",
        "# estimated memory per device, GB",
        _format_memory(config, sizes=sizes, world_sizes=columns),
    ]
    parts += [f"note: {note}" for note in notes(config)]
    return "\n".join(parts) + "\n"


def _with_largest_size(config: Config) -> Config:
    """The configuration with its largest bucket as the one size."""
    sizes = [size for size, _ in sizes_of(config.data)]
    size = max(sizes, key=lambda size: size.num_frames * size.height * size.width)
    return replace(config, data=replace(config.data, buckets=(), **asdict(size)))


def _latent_shape(config: Config) -> tuple[int, int, int, int]:
    data = config.data
    size = latent_size(
        config.codec, num_frames=data.num_frames, height=data.height, width=data.width
    )
    return size.frames, total_channels(config.model), size.height, size.width


def _activation_bytes(config: Config, *, sizes: Sizes) -> float:
    """Kept for the backward pass of one sample."""
    tokens = sizes.text_tokens + sizes.video_tokens
    layer_input = tokens * config.model.hidden_size * _BYTES[config.train.precision]
    block = _SAVED_PER_BLOCK * layer_input
    recomputed = {
        "none": 0,
        "selective": config.model.num_layers // 2,
        "full": config.model.num_layers,
    }[config.model.activation_checkpointing]
    kept = (config.model.num_layers - recomputed) * block + recomputed * layer_input
    return kept + (block * (1 + _RECOMPUTED_BLOCK_GRADIENTS) if recomputed else 0)


def _needs_encoders(config: Config) -> bool:
    return config.data.source == "video" or config.validation.every_steps > 0


def _encoder_bytes(config: Config) -> float:
    if not _needs_encoders(config):
        return 0.0
    text, codec = _local_parameters(_text_folder(config)), _local_parameters(_codec_folder(config))
    return float(
        (text or _T5_XXL_PARAMETERS) * _BYTES[config.text.dtype]
        + (codec or _CODEC_PARAMETERS) * _BYTES[config.codec.dtype]
    )


def _encoding_bytes(config: Config) -> float:
    """Clips and their maps are encoded one after another, or together without slicing."""
    data = config.data
    if data.source == "latents":
        return 0.0
    views = 2 if config.model.dense_groups else 1
    together = 1 if config.codec.slicing else views * config.train.micro_batch_size
    description = _codec_folder(config) / "config.json"
    channels = _CODEC_CHANNELS
    if description.is_file():
        channels = json.loads(description.read_text(encoding="utf-8"))["block_out_channels"][0]
    values = together * data.num_frames * data.height * data.width * channels
    return float(values * _BYTES[config.codec.dtype] * _CODEC_MAPS)


def _text_folder(config: Config) -> Path:
    return _folder(config.text.weights, subfolder="text_encoder", tiny="text")


def _codec_folder(config: Config) -> Path:
    return _folder(config.codec.weights, subfolder=config.codec.subfolder, tiny="codec")


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


def _count_samples(config: Config) -> int | None:
    is_cached = config.data.source == "latents"
    name = config.data.latents if is_cached else config.data.shards
    if not name or not (is_address(name) or Path(name).is_dir()):
        return None
    return len(ShardIndex.open(name, kind=KIND if is_cached else CLIPS))


def _format_sizes(config: Config, *, sizes: Sizes, world_size: int) -> str:
    train = config.train
    batch = train.micro_batch_size * train.accumulation_steps * world_size
    frames, channels, height, width = sizes.latent
    rows = [
        ("latent", f"{frames} x {channels} x {height} x {width} (frames, channels, height, width)"),
        ("tokens", f"{sizes.text_tokens} text + {sizes.video_tokens:,} video = "
                   f"{sizes.text_tokens + sizes.video_tokens:,}"),
        ("parameters", f"{sizes.parameters:,}"),
        ("processes", f"{world_size}"),
        ("global batch", f"{batch} = {train.micro_batch_size} x {train.accumulation_steps} "
                         f"accumulated x {world_size} processes"),
        ("samples drawn", f"{batch * train.steps:,} in {train.steps:,} steps"),
        ("samples per epoch", _format_samples(config, sizes=sizes, batch=batch)),
        ("forward", f"{_flops(sizes.forward_flops)} per sample, the network alone"),
        ("step", f"{_flops(sizes.sample_flops * batch)} recomputing "
                 f"{_RECOMPUTED_LAYERS[config.model.activation_checkpointing]}"),
        ("run", f"{_flops(sizes.sample_flops * batch * train.steps)}"),
        ("checkpoint", f"{sizes.checkpoint_bytes / 1e9:.2f} GB, of which the network "
                       f"{sizes.network_bytes / 1e9:.2f} GB"),
    ]  # fmt: skip
    return "\n".join(f"{name + ':':<19}{text}" for name, text in rows)


def _format_samples(config: Config, *, sizes: Sizes, batch: int) -> str:
    if sizes.samples is None:
        is_cached = config.data.source == "latents"
        name = config.data.latents if is_cached else config.data.shards
        what = "latents" if is_cached else "shards"
        return f"unknown, no {what} at {name}" if name else "unknown"
    epochs = batch * config.train.steps / max(sizes.samples, 1)
    return f"{sizes.samples:,}; the run takes {epochs:.2f} epochs"


def _format_memory(config: Config, *, sizes: Sizes, world_sizes: Sequence[int]) -> str:
    memories = [estimate_memory(config, sizes=sizes, world_size=count) for count in world_sizes]
    rows = [
        ("weights", "weights"),
        ("gradients", "gradients"),
        ("optimizer", "fp32 master and moments"),
        ("ema", "average of the weights"),
        ("buckets", "communication buckets"),
        ("encoders", "text encoder and codec"),
        ("overhead", "CUDA context and workspaces"),
        ("activations", "| activations"),
        ("encoding", "| encoding a clip"),
        ("step", "| fp32 gradients in the step"),
        ("total", "peak (of the | rows, the largest)"),
    ]
    head = f"{'devices':<36}" + "".join(f"{count:>10}" for count in world_sizes)
    body = [
        f"{label:<36}" + "".join(f"{getattr(memory, name) / 1e9:>10.2f}" for memory in memories)
        for name, label in rows
    ]
    return "\n".join([head, *body])


def _flops(count: float) -> str:
    for unit, size in (("EFLOP", 1e18), ("PFLOP", 1e15), ("TFLOP", 1e12)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e9:.1f} GFLOP"
