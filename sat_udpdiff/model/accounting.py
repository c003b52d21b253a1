"""What the network costs and which of its weights decay: numbers that training needs."""

from __future__ import annotations

from typing import Any

from torch import nn

from sat_udpdiff.config import ModelConfig
from sat_udpdiff.model.dense_channels import total_channels
from sat_udpdiff.model.patches import token_grid


def forward_flops(
    config: ModelConfig, latent_frames: int, latent_height: int, latent_width: int
) -> int:
    """Floating point operations of one forward pass of one sample, 2 per multiply-add.

    Matrix products only. The blocks' share is L (24 d^2 N + 4 N^2 d); a training step costs three
    forwards, four with full checkpointing. `latent_frames` need not fill the last patch.
    """
    d, e = config.hidden_size, config.time_embed_dim
    grid = token_grid(
        config,
        text=config.text_length,
        latent_frames=latent_frames,
        latent_height=latent_height,
        latent_width=latent_width,
    )
    tokens, values = grid.total, config.patch_size_t * config.patch_size**2
    blocks = config.num_layers * (24 * d**2 * tokens + 4 * tokens**2 * d + 24 * e * d)
    ends = 2 * grid.video * 2 * total_channels(config) * values * d
    conditions = 2 * (config.text_length * config.text_dim * d + d * e + e * e + 2 * e * d)
    return blocks + ends + conditions


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
