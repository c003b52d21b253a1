"""What the network costs and which of its weights decay: numbers that training needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from sat_udpdiff.config import LoraConfig, ModelConfig
from sat_udpdiff.model.dense_channels import total_channels
from sat_udpdiff.model.patches import token_grid

WITHOUT_LORA = LoraConfig()
"""All weights are trained."""


def forward_flops(
    config: ModelConfig,
    latent_frames: int,
    latent_height: int,
    latent_width: int,
    *,
    lora: LoraConfig = WITHOUT_LORA,
) -> int:
    """Floating point operations of one forward pass of one sample, 2 per multiply-add.

    Matrix products only. The blocks' share is L (24 d^2 N + 4 N^2 d); a training step costs three
    forwards, four with full checkpointing. `latent_frames` need not fill the last patch.
    """
    parts = _products(config, latent_frames, latent_height, latent_width, lora=lora)
    return parts.linears + parts.attention + parts.ends + parts.adapters


def backward_flops(
    config: ModelConfig,
    latent_frames: int,
    latent_height: int,
    latent_width: int,
    *,
    lora: LoraConfig = WITHOUT_LORA,
) -> int:
    """The same of the backward pass, without recomputation: two products for each of the forward.

    One of the two is the gradient of a weight, which frozen weights (LoRA) do without.
    """
    parts = _products(config, latent_frames, latent_height, latent_width, lora=lora)
    frozen = parts.linears + (0 if config.dense_groups else parts.ends) if lora.rank else 0
    return 2 * (parts.linears + parts.attention + parts.ends + parts.adapters) - frozen


@dataclass(frozen=True, kw_only=True, slots=True)
class _Products:
    """FLOPs of a forward pass by kind of product."""

    linears: int
    """Of the blocks, the conditions and the text."""
    attention: int
    ends: int
    """Patch projection and last linear."""
    adapters: int


def _products(
    config: ModelConfig, frames: int, height: int, width: int, *, lora: LoraConfig
) -> _Products:
    d, e, layers = config.hidden_size, config.time_embed_dim, config.num_layers
    grid = token_grid(
        config,
        text=config.text_length,
        latent_frames=frames,
        latent_height=height,
        latent_width=width,
    )
    tokens, values = grid.total, config.patch_size_t * config.patch_size**2
    conditions = 2 * (config.text_length * config.text_dim * d + d * e + e * e + 2 * e * d)
    # Inputs and outputs of the linears that have adapters: d each, and 4 d inside the MLP.
    sides = sum(5 * d if target.startswith("ff.") else 2 * d for target in lora.targets)
    return _Products(
        linears=layers * (24 * d**2 * tokens + 24 * e * d) + conditions,
        attention=layers * 4 * tokens**2 * d,
        ends=2 * grid.video * 2 * total_channels(config) * values * d,
        adapters=layers * 2 * tokens * lora.rank * sides,
    )


def weight_decay_groups(network: nn.Module) -> list[dict[str, Any]]:
    """Split the parameters for an optimizer: those that decay, then those that must not.

    Norms, biases and embeddings (the task table) get `weight_decay` 0; the first group takes the
    optimizer's own. Frozen parameters are left out.
    """
    tables = {
        id(parameter)
        for module in network.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters(recurse=False)
    }
    decay, keep = [], []
    for parameter in network.parameters():
        if parameter.requires_grad:
            matrix = parameter.ndim > 1 and id(parameter) not in tables
            (decay if matrix else keep).append(parameter)
    return [{"params": decay}, {"params": keep, "weight_decay": 0.0}]
