"""Frames as EntitySeg's networks were tested on them.

detectron2's test transform and padding (data/transforms/augmentation_impl.py `ResizeShortestEdge`,
structures/image_list.py), with the numbers of Entityv2/CropFormer/configs/entityv2/
entity_segmentation: RGB, mean and deviation of ImageNet in 0..255, sides multiples of 32.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from PIL import Image
from torch import Tensor

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)
SIZE_DIVISOR = 32
_STATISTICS = (PIXEL_MEAN, PIXEL_STD)


def input_size(*, height: int, width: int, short_side: int, long_side: int) -> tuple[int, int]:
    """Height and width, in pixels, at which the network sees a frame.

    Args:
        height: Of the frame.
        width: Of the frame.
        short_side: What the shorter side becomes ...
        long_side: ... unless the longer one would go beyond this.
    """
    # Halves up after two steps in floats, as detectron2 does: one step rounds some sizes otherwise.
    scale = short_side / min(height, width)
    rows, columns = height * scale, width * scale
    if height < width:
        rows = float(short_side)
    else:
        columns = float(short_side)
    if max(rows, columns) > long_side:
        shrink = long_side / max(rows, columns)
        rows, columns = rows * shrink, columns * shrink
    return max(1, int(rows + 0.5)), max(1, int(columns + 0.5))


def resize_frame(
    frame: UInt8[np.ndarray, "h w 3"], *, size: tuple[int, int]
) -> UInt8[np.ndarray, "rows columns 3"]:
    """Resize by Pillow's triangular filter, antialiased and rounded to uint8, as published."""
    rows, columns = size
    resized = Image.fromarray(frame).resize((columns, rows), Image.Resampling.BILINEAR)
    return np.asarray(resized)


def network_input(
    frames: Sequence[UInt8[np.ndarray, "_h _w 3"]], *, device: torch.device
) -> Float32[Tensor, "b 3 height width"]:
    """Normalise RGB frames of about one size and pad them below and right with 0, the mean.

    Args:
        frames: Resized, 0..255.
        device: Where the result lies.
    """
    rows, columns = network_input_size([frame.shape[:2] for frame in frames])
    batch = torch.zeros((len(frames), 3, rows, columns), device=device)
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in _STATISTICS)
    for into, frame in zip(batch, frames, strict=True):
        # A copy: Pillow's arrays are read-only, which torch warns about.
        pixels = torch.from_numpy(frame.copy()).to(device).permute(2, 0, 1).float()
        into[:, : frame.shape[0], : frame.shape[1]] = (pixels - mean) / std
    return batch


def network_input_size(sizes: Sequence[tuple[int, ...]]) -> tuple[int, int]:
    """Height and width of `network_input` for frames of these heights and widths."""
    rows, columns = (max(size[side] for size in sizes) for side in (0, 1))
    return _round_up(rows), _round_up(columns)


def _round_up(pixels: int) -> int:
    return -(-pixels // SIZE_DIVISOR) * SIZE_DIVISOR
