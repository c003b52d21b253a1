"""Tensors that lie in files: name, shape and dtype at once, numbers when they are asked for.

A state of `StoredTensor` can be checked, renamed, split, joined and cast without memory for its
numbers; whoever consumes it holds one tensor at a time.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
"""What weights of a network may be stored as."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StoredTensor:
    """One tensor of a checkpoint."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]
    """Its numbers, on the CPU; not to be written to."""

    @property
    def num_bytes(self) -> int:
        """Size of the numbers."""
        return math.prod(self.shape) * self.dtype.itemsize


State = Mapping[str, StoredTensor]
"""A state dict by name."""


def store(tensor: Tensor) -> StoredTensor:
    """A tensor in memory, as if it lay in a file."""
    return StoredTensor(shape=tuple(tensor.shape), dtype=tensor.dtype, read=lambda: tensor)


def store_all(state: Mapping[str, Tensor]) -> dict[str, StoredTensor]:
    """A state dict in memory, as if it lay in a file."""
    return {name: store(tensor) for name, tensor in state.items()}


def read_all(state: State) -> dict[str, Tensor]:
    """Every tensor of a state."""
    return {name: stored.read() for name, stored in state.items()}


def cast(name: str, stored: StoredTensor, dtype: torch.dtype) -> StoredTensor:
    """The tensor in another floating dtype.

    Reading raises ValueError, with the name, where finite numbers leave the range of `dtype`.
    """
    if stored.dtype == dtype:
        return stored

    def read() -> Tensor:
        before = stored.read()
        after = before.to(dtype)
        if not after.isfinite().all() and before.isfinite().all():
            largest = before.abs().max().item()
            raise ValueError(
                f"{name}: its largest number {largest:.4g} does not fit {dtype_name(dtype)}; "
                "choose --dtype bf16 or fp32"
            )
        return after

    return replace(stored, dtype=dtype, read=read)


def chunk(stored: StoredTensor, count: int) -> list[StoredTensor]:
    """Equal parts along dim 0, as `Tensor.chunk`; the length must be a multiple of `count`.

    The whole is read once for all parts that are held at the same time.
    """
    if stored.shape[0] % count:
        raise ValueError(f"expected a first dim that {count} divides, got {stored.shape}")
    rows = stored.shape[0] // count
    last: list[weakref.ref[Tensor]] = []

    def whole() -> Tensor:
        held = last[0]() if last else None  # alive as long as a view of it is
        if held is None:
            held = stored.read()
            last[:] = [weakref.ref(held)]
        return held

    def part(first: int) -> StoredTensor:
        shape = (rows, *stored.shape[1:])
        read = lambda: whole()[first : first + rows]  # noqa: E731 - a view, made late
        return StoredTensor(shape=shape, dtype=stored.dtype, read=read)

    return [part(k * rows) for k in range(count)]


def join(parts: list[StoredTensor]) -> StoredTensor:
    """Parts joined along dim 0, as `torch.cat`; equal in dtype and in the other dims.

    Raises:
        ValueError: They differ.
    """
    kinds = {(part.dtype, part.shape[1:]) for part in parts}
    if len(kinds) > 1:
        found = ", ".join(f"{dtype_name(part.dtype)} {part.shape}" for part in parts)
        raise ValueError(f"expected tensors of one dtype and width to join, got {found}")
    if len(parts) == 1:
        return parts[0]
    rows = sum(part.shape[0] for part in parts)
    return StoredTensor(
        shape=(rows, *parts[0].shape[1:]),
        dtype=parts[0].dtype,
        read=lambda: torch.cat([part.read() for part in parts]),
    )


def dtype_name(dtype: torch.dtype) -> str:
    """A dtype without `torch.`."""
    return str(dtype).removeprefix("torch.")
