"""The optimizer, and the learning rate as a function of the step."""

import torch
from torch import nn

from sat_udpdiff.config import OptimizerConfig
from sat_udpdiff.model.accounting import weight_decay_groups


def make_optimizer(network: nn.Module, *, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW of torch: deepspeed's own compile for minutes, and on a GPU `fused` is as fast."""
    on_gpu = next(network.parameters()).device.type == "cuda"
    return torch.optim.AdamW(
        [group for group in weight_decay_groups(network) if group["params"]],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=on_gpu,
    )


def learning_rate(step: int, *, config: OptimizerConfig, total_steps: int) -> float:
    """Learning rate of step 0, 1, .. `total_steps` - 1.

    Warm-up: linear from lr / warmup_steps to lr. Then constant, or linear to 0 at `total_steps`.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    return config.lr * (total_steps - step) / max(1, total_steps - config.warmup_steps)
