"""Sizes of a run that do not depend on the machine: tokens, parameters, samples, files."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch

from data_loaders.latent_cache import KIND
from data_loaders.order import sizes_of
from data_loaders.shard_files import is_address
from data_loaders.shard_format import CLIPS
from data_loaders.shards import ShardIndex
from sat_udpdiff.config import Config, LoraConfig, ModelConfig
from sat_udpdiff.encoders.latents import latent_size
from sat_udpdiff.model.accounting import backward_flops, forward_flops
from sat_udpdiff.model.dense_channels import total_channels
from sat_udpdiff.model.low_rank import add_adapters
from sat_udpdiff.model.patches import token_grid
from sat_udpdiff.model.transformer import build_network

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
"""Per number, by the names that the configuration gives to dtypes."""
# deepspeed's own default (stage3_param_persistence_threshold), which `to_deepspeed` leaves alone.
_SMALL_TENSOR = 100_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameters:
    """Numbers of weights."""

    total: int
    trained: int
    """Those that have a gradient, an optimizer state and a place in checkpoints."""
    small: int = 0
    """Those of tensors so small that ZeRO 3 leaves them on every GPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """What a configuration amounts to, at the largest of its clip sizes."""

    latent: tuple[int, int, int, int]
    """(frames, channels, height, width) of one sample, all groups of channels."""
    text_tokens: int
    video_tokens: int
    parameters: int
    trained_parameters: int
    forward_flops: float
    """Of the network for one sample, a multiply-add counted as two."""
    backward_flops: float
    """Twice as many; less where weights are frozen (LoRA)."""
    sample_flops: float
    """Forward, backward and recomputed layers for one sample."""
    network_bytes: int
    """Of `network.safetensors` in a checkpoint."""
    checkpoint_bytes: int
    """Of a whole checkpoint, over all processes."""

    @property
    def tokens(self) -> int:
        """Length of the network's sequence: text and video."""
        return self.text_tokens + self.video_tokens


def derive_sizes(config: Config) -> Sizes:
    """The sizes of `config`, of its largest bucket; the network is built on the meta device."""
    config = with_largest_clip(config)
    latent = _latent_shape(config)
    parameters = count_parameters(config)
    shape = (latent[0], latent[2], latent[3])
    forward = float(forward_flops(config.model, *shape, lora=config.lora))
    backward = float(backward_flops(config.model, *shape, lora=config.lora))
    # Each recomputed layer costs its own forward once more.
    recomputed = recomputed_layers(config.model) / config.model.num_layers
    return Sizes(
        latent=latent,
        text_tokens=config.model.text_length,
        video_tokens=_video_tokens(config.model, latent),
        parameters=parameters.total,
        trained_parameters=parameters.trained,
        forward_flops=forward,
        backward_flops=backward,
        sample_flops=forward + backward + recomputed * forward,
        network_bytes=4 * parameters.trained,
        checkpoint_bytes=4 * count_kinds(config) * parameters.trained,
    )


def count_parameters(config: Config) -> Parameters:
    """Weights of the network and how many of them are trained, without allocating any.

    The one place that decides what is trained: a network whose weights are frozen here has no
    gradients, optimizer states, averages and files of them anywhere in a plan.
    """
    return _count_parameters(config.model, config.lora)


@lru_cache(maxsize=64)
def _count_parameters(model: ModelConfig, lora: LoraConfig) -> Parameters:
    network = build_network(model, dtype=torch.float32, device=torch.device("meta"))
    if lora.rank:
        add_adapters(network, lora, seed=0)
    weights = list(network.parameters())
    return Parameters(
        total=sum(weight.numel() for weight in weights),
        trained=sum(weight.numel() for weight in weights if weight.requires_grad),
        small=sum(weight.numel() for weight in weights if weight.numel() <= _SMALL_TENSOR),
    )


def share_of_rank(config: Config) -> Parameters:
    """Weights that a rank holds before ZeRO shards them: its share of the layers, and the rest."""
    whole, tensor = count_parameters(config), config.parallel.tensor_size
    # Adapters are not cut, and a configuration with both is refused.
    away = cut_parameters(config.model) * (tensor - 1) // tensor
    return replace(whole, total=whole.total - away, trained=whole.trained - away)


def cut_parameters(model: ModelConfig) -> int:
    """Weights that tensor-parallel ranks share: those of attention and MLP (`parallel/tensor.py`).

    Of the linears that give more numbers than they take (queries, keys and values; the MLP's
    first) weights and biases are cut; of those back to the tokens, the weights.
    """
    d = model.hidden_size
    return model.num_layers * (12 * d**2 + 7 * d)


def count_kinds(config: Config) -> int:
    """Tensors per weight in a checkpoint, all fp32, each kind in a file and by a writer of its own.

    The weight, the two moments of AdamW, and the average where there is one.
    """
    return 3 + config.ema.enabled


def count_checkpoints(config: Config) -> int:
    """The most checkpoints of a run that lie on the disk at once: while the last one is written."""
    every, keep = config.checkpoint.every_steps, config.checkpoint.keep_last
    saves = max(1, -(-config.train.steps // every))
    if not keep or saves <= keep + 1:
        return saves
    # The oldest of the newest goes when the last one is complete; multiples before it stay.
    oldest = (saves - keep) * every
    for_ever = config.checkpoint.keep_every
    return keep + 1 + ((oldest - 1) // for_ever if for_ever else 0)


def count_samples(config: Config) -> int | None:
    """Samples in the shards or the cache that a run reads; None where none are named or there.

    Raises:
        DataError: The folder is there, and its manifest cannot be read.
    """
    is_cached = config.data.source == "latents"
    name = config.data.latents if is_cached else config.data.shards
    if not name or not (is_address(name) or Path(name).is_dir()):
        return None
    return len(ShardIndex.open(name, kind=KIND if is_cached else CLIPS))


def recomputed_layers(model: ModelConfig) -> int:
    """Layers whose activations are dropped in the forward pass and computed again."""
    # `selective` begins with the first layer, as `AdaLNLayers.is_recomputed` does.
    every_second = (model.num_layers + 1) // 2
    counts = {"none": 0, "selective": every_second, "full": model.num_layers}
    return counts[model.activation_checkpointing]


def with_largest_clip(config: Config) -> Config:
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


def _video_tokens(model: ModelConfig, latent: tuple[int, int, int, int]) -> int:
    frames, _, height, width = latent
    grid = token_grid(
        model,
        text=model.text_length,
        latent_frames=frames,
        latent_height=height,
        latent_width=width,
    )
    return grid.video
