"""Where each token is: the token grid, 3-D rotary tables and 3-D sin-cos tables.

Tables are computed for any latent size and cached per size. They are no parameters and no buffers:
casting the network to bf16 leaves them exact, and checkpoints do not carry them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Complex, Float
from torch import Tensor

_THETA = 10_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenGrid:
    """The token sequence: `text` tokens first, then frames x rows x columns video tokens."""

    text: int
    frames: int
    rows: int
    columns: int
    part: tuple[int, int] | None = None
    """First token that this process holds, and the one after its last; None = it holds all."""

    @property
    def video(self) -> int:
        """Number of video tokens."""
        return self.frames * self.rows * self.columns

    @property
    def total(self) -> int:
        """Number of tokens, text and video."""
        return self.text + self.video

    @property
    def here(self) -> slice:
        """The tokens that this process holds."""
        return slice(0, self.total) if self.part is None else slice(*self.part)

    @property
    def text_here(self) -> int:
        """Number of text tokens among them; they come first."""
        return max(0, min(self.text, self.here.stop) - self.here.start)


def _coordinates(grid: TokenGrid) -> tuple[Tensor, Tensor, Tensor]:
    """Frame, row and column of each video token, float64 (n,) each, in (t, h, w) order."""
    axes = [
        torch.arange(size, dtype=torch.float64, device="cpu")
        for size in (grid.frames, grid.rows, grid.columns)
    ]
    frame, row, column = torch.meshgrid(*axes, indexing="ij")
    return frame.flatten(), row.flatten(), column.flatten()


def _frequencies(size: int) -> Float[Tensor, " half"]:
    """10000^(-2i/size) for i = 0 .. size/2 - 1, float64."""
    exponents = torch.arange(0, size, 2, dtype=torch.float64, device="cpu") / size
    return _THETA**-exponents


# Inference mode is left because a table that is cached there could never be used for training.
@lru_cache(maxsize=8)
@torch.inference_mode(False)
def rotary_table(
    grid: TokenGrid, *, head_dim: int, device: torch.device, dtype: torch.dtype
) -> Complex[Tensor, "n half"]:
    """Unit rotations e^(i angle) of every token; text tokens get 1, so they stay as they are.

    Args:
        grid: The tokens.
        head_dim: Size of an attention head: a quarter of it turns with the frame, three eighths
            with the row, three eighths with the column.
        device: Where the table lies.
        dtype: complex64 or complex128; angles are computed in float64 either way.

    Returns:
        One complex number per pair (2i, 2i+1) of head channels.
    """
    frame, row, column = _coordinates(grid)
    sizes = (head_dim // 4, head_dim // 8 * 3, head_dim // 8 * 3)
    angles = torch.cat(
        [
            torch.outer(position, _frequencies(size))
            for position, size in zip((frame, row, column), sizes, strict=True)
        ],
        dim=1,
    )
    angles = torch.cat([angles.new_zeros(grid.text, head_dim // 2), angles])
    return torch.polar(torch.ones_like(angles), angles).to(device=device, dtype=dtype)


def rotate(
    x: Float[Tensor, "b heads n d"], table: Complex[Tensor, "n half"]
) -> Float[Tensor, "b heads n d"]:
    """Turn each adjacent pair of channels by the token's angle, in the precision of the table."""
    real = torch.float64 if table.dtype == torch.complex128 else torch.float32
    pairs = torch.view_as_complex(x.to(real).unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * table).flatten(-2).to(x.dtype)


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def sincos_table(
    grid: TokenGrid,
    *,
    hidden_size: int,
    spatial_interpolation: float,
    device: torch.device,
    dtype: torch.dtype,
) -> Float[Tensor, "1 n d"]:
    """What CogVideoX-2B adds to its tokens: 0 for text, sines and cosines of the place for video.

    Args:
        grid: The tokens.
        hidden_size: Channels: a quarter for the frame, three eighths for the column, then three
            eighths for the row; in each block all sines come before all cosines.
        spatial_interpolation: Rows and columns are divided by this (1.875 in the released model).
        device: Where the table lies.
        dtype: Of the table; it is computed in float64.
    """

    def waves(count: int, size: int, step: float) -> Tensor:
        # Divided in float32: the very table that the released weights were trained on.
        positions = (torch.arange(count, dtype=torch.float32, device="cpu") / step).double()
        angles = torch.outer(positions, _frequencies(size))
        return torch.cat([angles.sin(), angles.cos()], dim=1).to(dtype)

    # Each axis by itself: in float64 the whole table of CogVideoX-2B would be 270 MB.
    frame = waves(grid.frames, hidden_size // 4, 1.0)[:, None, None]
    row = waves(grid.rows, hidden_size // 8 * 3, spatial_interpolation)[None, :, None]
    column = waves(grid.columns, hidden_size // 8 * 3, spatial_interpolation)[None, None]
    table = torch.zeros(1, grid.total, hidden_size, dtype=dtype, device="cpu")
    video = table[0, grid.text :].unflatten(0, (grid.frames, grid.rows, grid.columns))
    video.copy_(torch.cat([x.expand(*video.shape[:3], -1) for x in (frame, column, row)], dim=-1))
    return table.to(device)


def timestep_waves(timesteps: Tensor, *, size: int) -> Float[Tensor, "b size"]:
    """Cosines, then sines, of t * 10000^(-i/half); float32, by the formula of the released code.

    The formula is kept in float32 on purpose: at t = 999 the last bit of a frequency moves the
    wave by 6e-5, and the released weights were trained on these very values.
    """
    half = size // 2
    steps = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    frequencies = torch.exp(-math.log(_THETA) * steps / half)
    angles = timesteps.float()[:, None] * frequencies[None]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
