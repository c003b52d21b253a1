"""LoRA files of diffusers and peft: `pytorch_lora_weights.safetensors`, both ways.

A file holds `transformer.transformer_blocks.0.attn1.to_q.lora_A.weight` and so on, and as JSON in
its metadata what peft's LoraConfig needs, so that `load_lora_weights` knows rank and alpha. What a
run trained as a whole besides (patch projection, last linear, task table) has no place there; it
goes into a second file, under the names of the network's diffusers form.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from sat_udpdiff.config import LoraConfig, ModelConfig
from sat_udpdiff.model.dense_channels import INPUT_KEY, OUTPUT_BIAS_KEY, OUTPUT_KEY
from sat_udpdiff.model.low_rank import PLACES, adapter_key, is_trained, scale_of
from sat_udpdiff.model.task_embedding import TASK_TABLE_KEY
from sat_udpdiff.weights.key_map import DIFFUSERS_TASK_TABLE
from sat_udpdiff.weights.names import listed
from sat_udpdiff.weights.stored import store_all
from sat_udpdiff.weights.write import write_safetensors

LORA_FILE = "pytorch_lora_weights.safetensors"
"""Name that diffusers looks for in a folder."""
DENSE_FILE = "dense_weights.safetensors"
"""Beside it: what else was trained, for `load_state_dict(..., strict=False)`."""

_METADATA = "lora_adapter_metadata"
_PREFIX = "transformer."
_KEY = re.compile(r"transformer_blocks\.(\d+)\.(?:attn1\.)?(.+)\.lora_([AB])\.weight")
# Settings of peft that change what an adapter computes, with the values that LoRA alone has.
_PLAIN = {
    "use_rslora": False, "use_dora": False, "lora_bias": False, "fan_in_fan_out": False,
    "rank_pattern": {}, "alpha_pattern": {},
}  # fmt: skip
_DENSE_NAMES = {
    INPUT_KEY: "patch_embed.proj.weight",
    "mixins.patch_embed.proj.bias": "patch_embed.proj.bias",
    OUTPUT_KEY: "proj_out.weight",
    OUTPUT_BIAS_KEY: "proj_out.bias",
    TASK_TABLE_KEY: DIFFUSERS_TASK_TABLE,
}


def adapter_names(lora: LoraConfig, *, num_layers: int) -> dict[str, str]:
    """Our name -> diffusers' name, of every adapter's weights."""
    names: dict[str, str] = {}
    for layer in range(num_layers):
        for target in PLACES:
            if target in lora.targets:
                inside = f"attn1.{target}" if target.startswith("to_") else target
                for matrix in "AB":
                    name = f"{_PREFIX}transformer_blocks.{layer}.{inside}.lora_{matrix}.weight"
                    names[adapter_key(layer, target, matrix)] = name
    return names


def lora_metadata(lora: LoraConfig) -> dict[str, Any]:
    """Arguments of peft's LoraConfig for these adapters."""
    return {
        "r": lora.rank,
        "lora_alpha": scale_of(lora) * lora.rank,
        "target_modules": sorted(lora.targets),
        "lora_dropout": 0.0,
        "bias": "none",
        **_PLAIN,
    }


def write_lora(
    folder: Path, state: Mapping[str, Tensor], *, lora: LoraConfig, model: ModelConfig
) -> list[Path]:
    """Write adapters for diffusers' `load_lora_weights(folder)`.

    Args:
        folder: Made if missing; files of these names are replaced.
        state: Weights under our names, of which those that LoRA trains are read.
        lora: The configuration that they were trained with.
        model: Of their network.

    Returns:
        LORA_FILE, and DENSE_FILE where the network has dense channels.

    Raises:
        ValueError: Weights are missing; names them.
    """
    names = adapter_names(lora, num_layers=model.num_layers)
    dense = {ours: theirs for ours, theirs in _DENSE_NAMES.items() if is_trained(ours, model)}
    if model.task_signal != "embedding":
        dense.pop(TASK_TABLE_KEY, None)
    if missing := listed("missing", [name for name in (*names, *dense) if name not in state]):
        raise ValueError(f"adapters: {missing[0]}")
    folder.mkdir(parents=True, exist_ok=True)
    settings = {f"{_PREFIX}{key}": value for key, value in lora_metadata(lora).items()}
    facts = {"format": "pt", _METADATA: json.dumps(settings, indent=2, sort_keys=True)}
    written: list[Path] = []
    for file, wanted, metadata in (
        (LORA_FILE, names, facts),
        (DENSE_FILE, dense, {"format": "pt"}),
    ):
        if wanted:
            tensors = {theirs: state[ours].contiguous() for ours, theirs in wanted.items()}
            write_safetensors(folder / file, store_all(tensors), metadata=metadata)
            written.append(folder / file)
    return written


def read_lora(place: str, *, lora: LoraConfig, num_layers: int) -> tuple[Path, dict[str, Tensor]]:
    """Read a LoRA file of diffusers; the inverse of `write_lora` for the adapters.

    Args:
        place: The file, or its folder.
        lora: What the adapters must be.
        num_layers: Of the network.

    Returns:
        The file, and its adapters under our names, on the CPU.

    Raises:
        ValueError: No such file, a damaged one, or adapters of another kind, rank, alpha or other
            targets; names the file and the setting.
    """
    file = Path(place).expanduser()
    file = file / LORA_FILE if file.is_dir() else file
    if not file.is_file():
        raise ValueError(f"lora.weights: expected a LoRA file or a folder of one, no file {file}")
    try:
        with safe_open(file, framework="pt") as content:
            metadata = json.loads((content.metadata() or {}).get(_METADATA, "{}"))
        tensors = {name.removeprefix(_PREFIX): value for name, value in load_file(file).items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"lora.weights: {file} is no readable LoRA file ({error})") from None
    settings = {key.removeprefix(_PREFIX): value for key, value in metadata.items()}
    _check(tensors, settings=settings, lora=lora, num_layers=num_layers, file=file)
    names = adapter_names(lora, num_layers=num_layers)
    return file, {ours: tensors[theirs.removeprefix(_PREFIX)] for ours, theirs in names.items()}


def _check(
    tensors: Mapping[str, Tensor],
    *,
    settings: Mapping[str, Any],
    lora: LoraConfig,
    num_layers: int,
    file: Path,
) -> None:
    matches = {name: _KEY.fullmatch(name) for name in tensors}
    strange = [name for name, match in matches.items() if match is None or match[2] not in PLACES]
    if strange:
        found = listed("unexpected", strange)[0]
        raise ValueError(
            f"lora.weights: {file}: expected adapters of {', '.join(PLACES)}, got {found}"
        )
    for key, plain in _PLAIN.items():
        if settings.get(key, plain) not in (plain, None):
            raise ValueError(f"lora.weights: {file}: {key}={settings[key]} is not supported")
    targets = {match[2] for match in matches.values() if match}
    if targets != set(lora.targets):
        _fail(file, "lora.targets", found=f"[{','.join(sorted(targets))}]", set_to=lora.targets)
    ranks = {min(tensor.shape) for tensor in tensors.values()}
    if ranks != {lora.rank}:
        _fail(file, "lora.rank", found=", ".join(map(str, sorted(ranks))), set_to=lora.rank)
    # Without metadata diffusers takes alpha = rank.
    alpha = float(settings.get("lora_alpha", lora.rank))
    if alpha != scale_of(lora) * lora.rank:
        _fail(file, "lora.alpha", found=f"{alpha:g}", set_to=f"{scale_of(lora) * lora.rank:g}")
    layers = {int(match[1]) for match in matches.values() if match}
    if layers != set(range(num_layers)) or len(tensors) != 2 * num_layers * len(targets):
        raise ValueError(
            f"lora.weights: {file}: expected A and B of {', '.join(sorted(targets))} in each of "
            f"{num_layers} layers, got {len(tensors)} tensors of {len(layers)} layers"
        )


def _fail(file: Path, key: str, *, found: str, set_to: object) -> None:
    raise ValueError(f"lora.weights: {file} was made with {key}={found}, got {set_to}; set it so")
