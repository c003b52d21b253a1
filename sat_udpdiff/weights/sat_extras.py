"""What official SAT checkpoints hold beside the trained weights: tables that SAT wants to find.

SAT refuses a checkpoint without them, so they are made again when one is written.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from sat_udpdiff.config import ModelConfig
from sat_udpdiff.model.positions import TokenGrid, sincos_table
from sat_udpdiff.weights.key_map import (
    SAT_COSINES,
    SAT_POSITIONS,
    SAT_SINES,
    SAT_UNUSED_POSITIONS,
)
from sat_udpdiff.weights.stored import StoredTensor

_UNUSED_POSITIONS = 64
"""Rows of SAT's own table of positions: the `max_sequence_length` of the released configuration."""


def sat_extras(
    model: ModelConfig, *, latent_size: tuple[int, int, int], dtype: torch.dtype
) -> dict[str, StoredTensor]:
    """The tables of a network, by SAT's names without prefix.

    Sin-cos: the table that is added to the tokens. Rotary: sines and cosines of the angle of every
    head channel for each video token, and SAT's own table of positions, which nothing reads and
    which is zero here. CogVideoX 1.5 keeps none of its tables in a checkpoint but the last.

    Args:
        model: The network.
        latent_size: Frames, rows and columns of the latents that it was made for.
        dtype: Of the checkpoint, to which SAT casts its tables.
    """
    frames, height, width = latent_size
    grid = TokenGrid(
        text=model.text_length if model.positions == "sincos" else 0,
        frames=-(-frames // model.patch_size_t),
        rows=height // model.patch_size,
        columns=width // model.patch_size,
    )
    if model.positions == "sincos":
        shape = (1, grid.total, model.hidden_size)
        return {
            SAT_POSITIONS: StoredTensor(
                shape=shape,
                dtype=dtype,
                read=lambda: sincos_table(
                    grid,
                    hidden_size=model.hidden_size,
                    spatial_interpolation=model.spatial_interpolation,
                    device=torch.device("cpu"),
                    # SAT rounds twice.
                    dtype=torch.float32,
                ).to(dtype),
            )
        }
    head = model.hidden_size // model.num_heads
    unused = StoredTensor(
        shape=(_UNUSED_POSITIONS, model.hidden_size),
        dtype=dtype,
        read=lambda: torch.zeros(_UNUSED_POSITIONS, model.hidden_size, dtype=dtype),
    )
    if model.patch_size_t > 1:
        return {SAT_UNUSED_POSITIONS: unused}

    def table(wave: Callable[[Tensor], Tensor]) -> StoredTensor:
        return StoredTensor(
            shape=(grid.video, head),
            dtype=dtype,
            read=lambda: wave(_angles(grid, head_dim=head)).to(dtype),
        )

    return {
        SAT_SINES: table(torch.sin),
        SAT_COSINES: table(torch.cos),
        SAT_UNUSED_POSITIONS: unused,
    }


def _angles(grid: TokenGrid, *, head_dim: int) -> Float[Tensor, "n d"]:
    """Angle of every video token and head channel, in float32 by SAT's formula: same bits."""
    sizes = (head_dim // 4, head_dim // 8 * 3, head_dim // 8 * 3)
    axes = []
    for count, size in zip((grid.frames, grid.rows, grid.columns), sizes, strict=True):
        frequencies = 1.0 / 10_000 ** (torch.arange(0, size, 2).float() / size)
        angles = torch.outer(torch.arange(count, dtype=torch.float32), frequencies)
        axes.append(angles.repeat_interleave(2, dim=1))
    frame, row, column = axes
    shape = (grid.frames, grid.rows, grid.columns, -1)
    parts = (frame[:, None, None], row[None, :, None], column[None, None])
    return torch.cat([part.expand(shape) for part in parts], dim=-1).flatten(0, 2)
