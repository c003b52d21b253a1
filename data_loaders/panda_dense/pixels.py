"""Frames to the sizes and values that vision models were trained on, without torchvision."""

from collections.abc import Sequence

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Of OpenAI's CLIP, red first, for values 0..1."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Of ImageNet, red first, for values 0..1."""


def resize_cubic(
    rgb: UInt8[np.ndarray, "t h w 3"], *, height: int, width: int
) -> UInt8[np.ndarray, "t height width 3"]:
    """Stretch to a size: the antialiased cubic filter, to whole levels.

    What torchvision, and through it the processors of transformers, do to uint8 pictures.

    Args:
        rgb: Frames, 0..255.
        height: Wanted, pixels.
        width: Wanted, pixels.

    Returns:
        Frames, 0..255; `rgb` itself where it has the right size.
    """
    if rgb.shape[1:3] == (height, width):
        return rgb
    resized = np.empty((len(rgb), height, width, 3), np.uint8)
    for frame, into in zip(rgb, resized, strict=True):
        planes = rearrange(torch.tensor(np.ascontiguousarray(frame)), "h w c -> 1 c h w")
        planes = functional.interpolate(
            planes, size=(height, width), mode="bicubic", antialias=True, align_corners=False
        )
        into[:] = rearrange(planes, "1 c h w -> h w c").numpy()
    return resized


def normalized(
    rgb: UInt8[np.ndarray, "t h w 3"], *, mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "t 3 h w"]:
    """Levels 0..255 to (level / 255 - mean) / std, float32."""
    unit = to_unit(rgb)
    return (unit - unit.new_tensor(mean).view(3, 1, 1)) / unit.new_tensor(std).view(3, 1, 1)


def to_unit(rgb: UInt8[np.ndarray, "t h w 3"]) -> Float[Tensor, "t 3 h w"]:
    """Levels 0..255 to 0..1, float32."""
    planes = rearrange(torch.tensor(np.ascontiguousarray(rgb)), "t h w c -> t c h w")
    return planes.contiguous().float() / 255
