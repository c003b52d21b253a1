"""Low-rank adapters (LoRA, Hu et al. 2021) on SAT's linears: y = W x + b + alpha / rank B (A x).

SAT's fused query_key_value gets an A and a B each for queries, keys and values, so that adapters
are those of diffusers and peft, one to one. They are child modules `lora_A.{part}` and
`lora_B.{part}` of the linear that they adapt, whose own names stay those of CogVideoX.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sat_udpdiff.config import LoraConfig, LoraTarget, ModelConfig
from sat_udpdiff.model.dense_channels import INPUT_KEY, OUTPUT_BIAS_KEY, OUTPUT_KEY
from sat_udpdiff.model.task_embedding import TASK_TABLE_KEY
from sat_udpdiff.model.transformer import UDPDiffTransformer

DENSE_KEYS = (INPUT_KEY, "mixins.patch_embed.proj.bias", OUTPUT_KEY, OUTPUT_BIAS_KEY)
"""Weights that dense channels widen; with `TASK_TABLE_KEY` they are trained as a whole."""

_SEED_STREAM = 0x6C6F7261
"""Keeps the adapters' numbers apart from those that `initialise` draws from the same seed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a target of diffusers lies in SAT's network."""

    linear: str
    """Module below a layer."""
    part: int = 0
    """Which of the linear's equal blocks of output rows."""
    parts: int = 1


_FUSED = "attention.query_key_value"
PLACES: Mapping[LoraTarget, Place] = {
    "to_q": Place(linear=_FUSED, part=0, parts=3),
    "to_k": Place(linear=_FUSED, part=1, parts=3),
    "to_v": Place(linear=_FUSED, part=2, parts=3),
    "to_out.0": Place(linear="attention.dense"),
    "ff.net.0.proj": Place(linear="mlp.dense_h_to_4h"),
    "ff.net.2": Place(linear="mlp.dense_4h_to_h"),
}


def scale_of(lora: LoraConfig) -> float:
    """Factor on what the adapters add: alpha / rank, 1 where alpha is not set."""
    return 1.0 if lora.alpha is None else lora.alpha / lora.rank


def adapter_key(layer: int, target: LoraTarget, matrix: str) -> str:
    """Name of the weight of one adapter; `matrix` is A or B."""
    place = PLACES[target]
    return f"transformer.layers.{layer}.{place.linear}.lora_{matrix}.{place.part}.weight"


def is_adapter(name: str) -> bool:
    """Whether a weight of this name belongs to an adapter."""
    return ".lora_A." in name or ".lora_B." in name


def is_trained(name: str, config: ModelConfig) -> bool:
    """Whether LoRA training moves the weight: adapters, and what dense channels made new."""
    is_new = config.dense_groups > 0 and name in (*DENSE_KEYS, TASK_TABLE_KEY)
    return is_adapter(name) or is_new


def add_adapters(network: UDPDiffTransformer, lora: LoraConfig, *, seed: int) -> None:
    """Attach adapters to the linears of every layer, and freeze what LoRA does not train.

    The network computes what it did before, to the bit: A is uniform within 1 / sqrt(inputs) (as
    peft draws it), B is zero.

    Args:
        network: Without adapters; on the meta device they get no values.
        lora: rank >= 1.
        seed: Equal seeds give equal adapters on every device.
    """
    words = np.random.SeedSequence(seed, spawn_key=(_SEED_STREAM,)).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(words[0] >> np.uint64(1)))
    for layer in range(network.config.num_layers):
        adapted: list[str] = []
        for target in PLACES:
            if target not in lora.targets:
                continue
            place = PLACES[target]
            linear: Any = network.get_submodule(f"transformer.layers.{layer}.{place.linear}")
            if place.linear not in adapted:
                linear.lora_A, linear.lora_B = nn.ModuleDict(), nn.ModuleDict()
                update = partial(_add_updates, scale=scale_of(lora), parts=place.parts)
                linear.register_forward_hook(update)
                adapted.append(place.linear)
            rows, columns = linear.weight.shape
            part = str(place.part)
            linear.lora_A[part] = _matrix(linear, columns, lora.rank, generator=generator)
            linear.lora_B[part] = _matrix(linear, lora.rank, rows // place.parts)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(is_trained(name, network.config))


@torch.no_grad()
def _matrix(
    linear: Any, inputs: int, outputs: int, *, generator: torch.Generator | None = None
) -> nn.Linear:
    """A or B beside `linear`: uniform numbers from `generator`, zeros without one."""
    like = linear.weight
    made = nn.Linear(inputs, outputs, bias=False, dtype=like.dtype, device="meta")
    if like.device.type == "meta":
        return made
    made.to_empty(device=like.device)
    drawn = torch.zeros(outputs, inputs)
    if generator is not None:
        bound = 1 / math.sqrt(inputs)
        drawn.uniform_(-bound, bound, generator=generator)
    made.weight.copy_(drawn)
    return made


def _add_updates(
    linear: Any, inputs: tuple[Tensor, ...], output: Tensor, *, scale: float, parts: int
) -> Tensor:
    """Forward hook: add scale * B (A x) to the blocks of features that have adapters."""
    blocks = list(output.chunk(parts, dim=-1))
    for part, down in linear.lora_A.items():
        # The narrow product is scaled: the wide one would cost another pass over the features.
        update = linear.lora_B[part](down(inputs[0]) * scale)
        blocks[int(part)] = blocks[int(part)] + update
    return blocks[0] if parts == 1 else torch.cat(blocks, dim=-1)


def merged_weight(name: str, state: Mapping[str, Tensor], lora: LoraConfig) -> Tensor:
    """The weight `name` with the adapters beside it folded in: W + alpha / rank B A.

    The product is taken in float32 (float64 for float64 weights) and the sum is rounded once.
    Reads this weight and its adapters and nothing else of `state`, which may be lazy.

    Args:
        name: Of a weight or bias of the network without adapters.
        state: Weights and adapters by name.
        lora: The configuration that the adapters were trained with.

    Returns:
        The tensor of `state` itself where no adapter changes it.
    """
    weight, found = state[name], _parts_of(name, state)
    if not found:
        return weight
    dtype = torch.promote_types(weight.dtype, torch.float32)
    merged = weight.to(dtype, copy=True)
    for part, parts in found.items():
        down, up = (state[key].to(dtype) for key in _keys(name, part))
        merged.chunk(parts)[part].addmm_(up, down, alpha=scale_of(lora))
    return merged.to(weight.dtype)


def adapters_of(name: str, names: Container[str]) -> list[str]:
    """The names among `names` of the adapters that change the weight `name`."""
    return [key for part in _parts_of(name, names) for key in _keys(name, part)]


def _parts_of(name: str, names: Container[str]) -> dict[int, int]:
    """Blocks of the weight's rows that have adapters, each with the number of blocks."""
    places = [p for p in PLACES.values() if name.endswith(f".{p.linear}.weight")]
    return {p.part: p.parts for p in places if _keys(name, p.part)[0] in names}


def _keys(name: str, part: int) -> tuple[str, str]:
    stem = name.removesuffix("weight")
    return f"{stem}lora_A.{part}.weight", f"{stem}lora_B.{part}.weight"


def merge_adapters(state: Mapping[str, Tensor], lora: LoraConfig) -> dict[str, Tensor]:
    """Weights of the network without adapters that computes the same, within rounding."""
    return {name: merged_weight(name, state, lora) for name in state if not is_adapter(name)}
