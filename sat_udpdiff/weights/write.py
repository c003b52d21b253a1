"""Writing states: one tensor in memory at a time, files whole or not there.

safetensors' own `save_file` and `torch.save` want every tensor at once. Here the layout is written
first, from shapes and dtypes, and the numbers follow one by one.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import struct
from collections.abc import Callable, Mapping
from mmap import MAP_SHARED
from pathlib import Path

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from torch import Tensor

from data_loaders.atomic_file import atomic_file, partial_of, sync_folder, write_atomically
from sat_udpdiff.weights.stored import State, StoredTensor, dtype_name

MAX_SHARD_BYTES = 5 * 10**9
"""diffusers' own choice."""

_CODES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_ALIGNMENT = 8


def write_safetensors(
    path: Path,
    state: State,
    *,
    metadata: Mapping[str, str] | None = None,
    see: Callable[[bytes | memoryview], object] | None = None,
) -> None:
    """Write a safetensors file.

    Args:
        path: An older file is replaced when the new one is whole.
        state: Tensors of float32, bfloat16 or float16.
        metadata: Beside `format`, which is `pt`.
        see: Called with all bytes in turn, such as the `update` of a hashlib object: a sum of what
            was meant to be written, and not of what a disk gives back.

    Raises:
        OSError: No space, or not writable; an older file is as it was.
        ValueError: A tensor is not what its shape and dtype said; names it.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    # Names in order, so that equal states make equal files.
    names, end = sorted(state), 0
    for name in names:
        begin, end = end, end + state[name].num_bytes
        header[name] = {
            "dtype": _CODES[state[name].dtype],
            "shape": list(state[name].shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with atomic_file(path) as file:
        os.posix_fallocate(file.fileno(), 0, 8 + len(text) + end)
        parts = (_bytes(read_checked(name, state[name])) for name in names)
        for part in itertools.chain([struct.pack("<Q", len(text)) + text], parts):
            file.write(part)
            if see is not None:
                see(part)


def write_sharded(
    folder: Path, state: State, *, stem: str, max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Write `STEM.safetensors`, or shards with `STEM.safetensors.index.json`, as diffusers does.

    Args:
        folder: Is there.
        state: As for `write_safetensors`.
        stem: Beginning of the file names.
        max_shard_bytes: A file is not made larger, except by one tensor alone.

    Raises:
        OSError: As `write_safetensors`.
        ValueError: As `write_safetensors`.
    """
    plan = split_state_dict_into_shards_factory(
        {name: state[name] for name in sorted(state)},  # pyright: ignore[reportArgumentType]
        get_storage_size=lambda stored: stored.num_bytes,
        filename_pattern=stem + "{suffix}.safetensors",
        max_shard_size=max_shard_bytes,
    )
    for name, keys in plan.filename_to_tensors.items():
        write_safetensors(folder / name, {key: state[key] for key in keys})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        write_atomically(folder / f"{stem}.safetensors.index.json", text.encode())


def write_pickle(path: Path, state: State, *, under: str) -> None:
    """Write `{under: state}` as `torch.save` does, for programs that read nothing else (SAT).

    torch lays the file out with holes for the numbers; these are filled through a mapping of the
    file.

    Raises:
        OSError: No space, or not writable; an older file is as it was.
        ValueError: A tensor is not what its shape and dtype said; names it.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        layout = {name: torch.empty(s.shape, dtype=s.dtype) for name, s in state.items()}
    partial = partial_of(path)
    try:
        with torch.serialization.skip_data(materialize_fake_tensors=True):
            torch.save({under: layout}, partial)
        with partial.open("r+b") as file:
            # A mapping of a file with holes would end the process on a full disk.
            os.posix_fallocate(file.fileno(), 0, partial.stat().st_size)
            _fill(partial, state, under=under)
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _fill(file: Path, state: State, *, under: str) -> None:
    with torch.serialization.set_default_mmap_options(MAP_SHARED):
        mapped = torch.load(file, mmap=True, weights_only=True, map_location="cpu")[under]
    for name, stored in state.items():
        mapped[name].copy_(read_checked(name, stored))


def read_checked(name: str, stored: StoredTensor) -> Tensor:
    """The numbers of a tensor, which must be of the shape and dtype that were announced.

    Raises:
        ValueError: They are not; names the tensor.
    """
    tensor = stored.read()
    if tuple(tensor.shape) != stored.shape or tensor.dtype != stored.dtype:
        raise ValueError(
            f"{name}: expected {dtype_name(stored.dtype)} {stored.shape}, "
            f"got {dtype_name(tensor.dtype)} {tuple(tensor.shape)}"
        )
    return tensor


def total_bytes(state: State) -> int:
    """Size of the numbers of a state."""
    return sum(stored.num_bytes for stored in state.values())


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().contiguous().reshape(math.prod(tensor.shape))
    return flat.view(torch.uint8).numpy().data
