"""Counts what the real network takes in its real size, on the meta device.

    python tests/plan/count_network.py CASES.json

CASES.json: a list of [[value files], [settings], what], `what` being step, sample or saved. Prints
one number of bytes for each as JSON. A program of its own, because the checks of shapes that run
under pytest keep arguments of functions alive.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sat_udpdiff.config import Config
from sat_udpdiff.config_io import load_config
from sat_udpdiff.diffusion.loss import diffusion_loss
from sat_udpdiff.diffusion.schedule import make_schedule
from sat_udpdiff.encoders.source import DTYPES
from sat_udpdiff.model import mixins
from sat_udpdiff.model.positions import rotary_table, sincos_table
from sat_udpdiff.model.transformer import build_network
from sat_udpdiff.plan.counting import TensorBytes, storage_id
from sat_udpdiff.plan.sizes import derive_sizes


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Flash attention; on the meta device torch would choose the one that keeps n x n scores."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)[0]


def inputs(config: Config, *, latent: tuple[int, ...], batch: int) -> tuple[Tensor, dict[str, Any]]:
    """Latents and what the network takes beside them."""
    model, dtype = config.model, DTYPES[config.train.precision]
    latents = torch.empty(batch, *latent, device="meta")
    task = torch.zeros(batch, dtype=torch.int64, device="meta")
    text = torch.empty(batch, model.text_length, model.text_dim, dtype=dtype, device="meta")
    timesteps = torch.full((batch,), 500, device="meta")
    return latents, {"timesteps": timesteps, "text": text, "task": task}


def count_step(config: Config) -> int:
    """Peak of the loss, forward and backward, beyond weights and their gradients."""
    network = build_network(config.model, dtype=DTYPES[config.train.precision], device="meta")
    for weight in network.parameters():
        weight.grad = torch.empty_like(weight)
    schedule = make_schedule(config.diffusion).to("meta")
    # Builds a network of its own, and so comes before anything is counted.
    latent = derive_sizes(config).latent
    with TensorBytes("meta") as memory:
        x0, rest = inputs(config, latent=latent, batch=config.train.micro_batch_size)
        loss = diffusion_loss(
            lambda x, t: network(x, **{**rest, "timesteps": t}),
            x0,
            noise=torch.empty_like(x0),
            t=rest["timesteps"],
            schedule=schedule,
        )
        loss.total.mean().backward()
    return memory.peak


def count_sample(config: Config) -> int:
    """Peak of a guided sampling step: two branches, without gradients."""
    network = build_network(config.model, dtype=DTYPES[config.train.precision], device="meta")
    latent = derive_sizes(config).latent
    with torch.no_grad(), TensorBytes("meta") as memory:
        latents, rest = inputs(config, latent=latent, batch=2)
        network(latents, **rest)
    return memory.peak


def count_saved(config: Config) -> int:
    """What autograd keeps for the backward pass, each storage once, weights not."""
    network = build_network(config.model, dtype=DTYPES[config.train.precision], device="meta")
    weights = {storage_id(weight) for weight in network.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(x: Tensor) -> Tensor:
        if storage_id(x) not in weights:
            kept[storage_id(x)] = x
        return x

    latent, batch = derive_sizes(config).latent, config.train.micro_batch_size
    latents, rest = inputs(config, latent=latent, batch=batch)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = network(latents, **rest)
    assert out.requires_grad
    return sum(x.untyped_storage().nbytes() for x in kept.values())


def main() -> None:
    """Count every case."""
    mixins.F.scaled_dot_product_attention = attend
    count = {"step": count_step, "sample": count_sample, "saved": count_saved}
    cases = json.loads(Path(sys.argv[1]).read_text())
    found = []
    for files, settings, what in cases:
        # A table that an earlier case left would not be counted.
        sincos_table.cache_clear()
        rotary_table.cache_clear()
        found.append(count[what](load_config(files, settings)))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
