"""Checkpoints of the network as states of SAT's names, whatever form they have on the disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sat_udpdiff.weights.codec_map import holds_codec
from sat_udpdiff.weights.find import DIFFUSERS_STEM
from sat_udpdiff.weights.key_map import is_diffusers, strip_sat_prefix, to_sat
from sat_udpdiff.weights.pickles import load_pickle
from sat_udpdiff.weights.recognise import NetworkFacts, check_tensors, recognise
from sat_udpdiff.weights.stored import State, StoredTensor, store_all
from sat_udpdiff.weights.zero_shards import is_zero_folder, read_zero_folder

Form = Literal["sat", "diffusers", "udpdiff", "zero"]

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StoredNetwork:
    """A network on the disk: what it is, and its weights when they are asked for."""

    source: Path
    form: Form
    facts: NetworkFacts
    state: State
    """Under SAT's names, without prefix."""
    holds_codec: bool = False
    """Whether the codec lies in the same file, as SAT users save it."""


def open_network(source: Path, *, trust: bool = False) -> StoredNetwork:
    """Open what `find_weights` found; shapes and dtypes are checked, no numbers are read.

    Args:
        source: A weights file, a diffusers transformer folder, or a folder of ZeRO shards.
        trust: Open pickles that ask for code; see `pickles.load_pickle`.

    Raises:
        ValueError: Damaged, incomplete, or no CogVideoX; names the file, and the keys.
    """
    form, everything = _read(source, trust=trust)
    state = everything if form == "diffusers" else strip_sat_prefix(everything)
    try:
        check_tensors(state)
        facts = recognise(state)
        # An image-to-video network has keys of its own; it is refused for what it is.
        if form == "diffusers" and not facts.reads_an_image:
            state = to_sat(state)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    return StoredNetwork(
        source=source,
        form=form,
        facts=_with_positions(facts, source),
        state=state,
        holds_codec=form == "sat" and holds_codec(everything),
    )


def _read(source: Path, *, trust: bool) -> tuple[Form, State]:
    if source.is_dir() and is_zero_folder(source):
        return "zero", read_zero_folder(source, trust=trust)
    if source.is_dir():
        return "diffusers", read_sharded(source, stem=DIFFUSERS_STEM)
    if source.suffix == ".safetensors":
        state = read_safetensors(source)
        return ("diffusers" if is_diffusers(state) else "udpdiff"), state
    return "sat", read_pickle(source, trust=trust)


def read_pickle(path: Path, *, trust: bool = False) -> dict[str, StoredTensor]:
    """The state dict in a `.pt` file, at the top or under `module` or `state_dict`.

    Raises:
        ValueError: Damaged, asks for code, or holds no tensors; names the file.
    """
    content = load_pickle(path, trust=trust)
    for key in ("module", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: expected a state dict, got {type(content).__name__}")
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"{path}: expected a state dict, got no tensors")
    return store_all(tensors)


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file.

    Raises:
        ValueError: Damaged or cut short; names the file.
    """
    try:
        file: Any = safe_open(path, framework="pt")
        slices = {name: file.get_slice(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path}: not a readable safetensors file, cut short or of another kind ({error})"
        ) from None
    if unknown := sorted({part.get_dtype() for part in slices.values()} - _DTYPES.keys()):
        raise ValueError(f"{path}: expected {', '.join(_DTYPES)}, got tensors of {unknown[0]}")
    return {
        name: StoredTensor(
            shape=tuple(part.get_shape()),
            dtype=_DTYPES[part.get_dtype()],
            read=lambda name=name: file.get_tensor(name),
        )
        for name, part in slices.items()
    }


def read_sharded(folder: Path, *, stem: str) -> dict[str, StoredTensor]:
    """The tensors of `STEM.safetensors`, or of the shards that `STEM.safetensors.index.json` names.

    Raises:
        ValueError: A shard is missing or damaged, or the index and the shards disagree.
    """
    index = folder / f"{stem}.safetensors.index.json"
    if not index.is_file():
        return read_safetensors(folder / f"{stem}.safetensors")
    try:
        places = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{index}: not a readable index ({error})") from None
    found: dict[str, StoredTensor] = {}
    # Only file names: an index may not point out of its folder.
    for name in sorted({Path(str(place)).name for place in places.values()}):
        if not (folder / name).is_file():
            count = sum(Path(str(place)).name == name for place in places.values())
            raise ValueError(f"{folder}: the shard {name} is missing, with {count} tensors in it")
        found |= read_safetensors(folder / name)
    if absent := sorted(set(places) - set(found)):
        raise ValueError(f"{folder}: {absent[0]} is in {index.name} and in no shard")
    return found


def _with_positions(facts: NetworkFacts, source: Path) -> NetworkFacts:
    """Fill in from the config.json of diffusers what tensors do not tell."""
    config = source / "config.json" if source.is_dir() else source.with_name("config.json")
    if facts.positions is not None or not config.is_file():
        return facts
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return facts
    rotary = values.get("use_rotary_positional_embeddings")
    if not isinstance(rotary, bool):
        return facts
    return replace(facts, positions="rotary" if rotary else "sincos")
