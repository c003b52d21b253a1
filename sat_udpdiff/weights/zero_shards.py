"""Checkpoints of DeepSpeed's ZeRO, put together on the CPU from the shards of all ranks.

Stages 1 and 2 keep the fp32 weights of a parameter group as one long vector, cut into equal pieces,
one per rank. Stage 3 cuts every parameter by itself. The layouts are those of DeepSpeed's own
`zero_to_fp32.py`, whose result a test compares; unlike there nothing is unpickled freely, and no
vector is built as a whole: a tensor is put together when it is asked for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sat_udpdiff.weights.pickles import load_pickle
from sat_udpdiff.weights.stored import StoredTensor, store

SHARDS = "*_optim_states.pt"
_RANK = re.compile(r"zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")


def is_zero_folder(folder: Path) -> bool:
    """Whether a folder holds shards of ZeRO."""
    return any(folder.glob(SHARDS))


def read_zero_folder(folder: Path, *, trust: bool = False) -> dict[str, StoredTensor]:
    """The fp32 weights of a ZeRO checkpoint by parameter name, frozen ones in their own dtype.

    Args:
        folder: With `*_optim_states.pt` and `*_model_states.pt` of every rank.
        trust: See `pickles.load_pickle`.

    Raises:
        ValueError: A shard is missing or damaged, or the checkpoint is model-parallel; names it.
    """
    files = _shard_files(folder)
    try:
        return _read_shards(folder, files, trust=trust)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder}: its shards are not those of DeepSpeed's ZeRO that are known here: "
            f"{type(error).__name__} {error}"
        ) from None


def _read_shards(folder: Path, files: Sequence[Path], *, trust: bool) -> dict[str, StoredTensor]:
    shards = [load_pickle(file, trust=trust)["optimizer_state_dict"] for file in files]
    first = shards[0]
    counts = first["partition_count"]
    world_size = max(counts) if isinstance(counts, list | tuple) else int(counts)
    if world_size != len(files):
        present = {int(_match(file)[1]) for file in files}
        missing = sorted(set(range(world_size)) - present)
        raise ValueError(
            f"{folder}: expected shards of {world_size} ranks ({SHARDS}), got {len(files)}; "
            f"missing are those of rank {', '.join(map(str, missing))}"
        )
    stage = int(first["zero_stage"])
    if stage == 3:
        return _read_stage_3(folder, shards, world_size=world_size, trust=trust)
    return _read_stage_2(folder, shards, trust=trust)


def _shard_files(folder: Path) -> list[Path]:
    files = list(folder.glob(SHARDS))
    strange = [file.name for file in files if _RANK.search(file.name) is None]
    if strange:
        raise ValueError(f"{folder}: expected names zero_pp_rank_N_mp_rank_M_..., got {strange[0]}")
    if any(_match(file)[2] != "00" for file in files):
        raise ValueError(f"{folder}: expected one model-parallel rank, got shards of several")
    return sorted(files, key=lambda file: int(_match(file)[1]))


def _match(file: Path) -> re.Match[str]:
    match = _RANK.search(file.name)
    assert match is not None
    return match


def _read_stage_2(
    folder: Path, shards: Sequence[Mapping[str, Any]], *, trust: bool
) -> dict[str, StoredTensor]:
    model = load_pickle(_model_file(folder, "mp_rank_00_model_states.pt"), trust=trust)
    found = {
        name: store(part) for name, part in (model.get("frozen_param_fragments") or {}).items()
    }
    paddings = shards[0].get("param_alignment_paddings")
    for group, shapes in enumerate(model["param_shapes"]):
        pieces = [shard["single_partition_of_fp32_groups"][group] for shard in shards]
        offset = 0
        for number, (name, shape) in enumerate(shapes.items()):
            found[name] = _cut(pieces, shape=tuple(shape), offset=offset)
            offset += math.prod(shape) + (paddings[group][number] if paddings else 0)
        if offset > (have := sum(piece.numel() for piece in pieces)):
            raise ValueError(
                f"{folder}: group {group} of its weights needs {offset:,} numbers, the shards hold "
                f"{have:,}"
            )
    return found | _shared(model, found)


def _read_stage_3(
    folder: Path, shards: Sequence[Mapping[str, Any]], *, world_size: int, trust: bool
) -> dict[str, StoredTensor]:
    models = [
        load_pickle(
            _model_file(folder, f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt"), trust=trust
        )
        for rank in range(world_size)
    ]
    found: dict[str, StoredTensor] = {}
    for name, shape in (models[0].get("frozen_param_shapes") or {}).items():
        pieces = [model["frozen_param_fragments"][name] for model in models]
        found[name] = _cut(pieces, shape=tuple(shape), offset=0)
    # One rank's groups follow one another in its shard; parameters in the order of the groups.
    vectors = [[part.flatten() for part in shard["fp32_flat_groups"]] for shard in shards]
    offset = 0
    for shapes in models[0]["param_shapes"]:
        for name, shape in shapes.items():
            length = -(-math.prod(shape) // world_size)
            pieces = [_slice(parts, first=offset, length=length) for parts in vectors]
            found[name] = _cut(pieces, shape=tuple(shape), offset=0)
            offset += length
    return found | _shared(models[0], found)


def _model_file(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise ValueError(f"{folder}: expected {name}, which names the weights, got no such file")
    return folder / name


def _shared(model: Mapping[str, Any], found: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Parameters that are one tensor under two names."""
    pairs = (model.get("shared_params") or {}).items()
    return {name: found[other] for name, other in pairs if other in found}


def _cut(pieces: Sequence[Tensor], *, shape: tuple[int, ...], offset: int) -> StoredTensor:
    """The tensor that begins at `offset` in the pieces put end to end."""
    length = math.prod(shape)
    return StoredTensor(
        shape=shape,
        dtype=pieces[0].dtype,
        read=lambda: _slice(pieces, first=offset, length=length).view(shape),
    )


def _slice(pieces: Sequence[Tensor], *, first: int, length: int) -> Tensor:
    """Numbers [first, first + length) of vectors put end to end; a view where one holds them."""
    parts: list[Tensor] = []
    for piece in pieces:
        begin, end = max(first, 0), min(first + length, piece.numel())
        if begin < end:
            parts.append(piece.flatten()[begin:end])
        first -= piece.numel()
    return parts[0] if len(parts) == 1 else torch.cat(parts)
