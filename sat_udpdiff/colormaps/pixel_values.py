"""Between a network's colours, [-1, 1], and 8-bit pixels."""

import numpy as np
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor


def to_uint8(rgb: Float[Tensor, "t 3 h w"]) -> UInt8[np.ndarray, "t h w 3"]:
    """Frames in [-1, 1] as 0..255, rounded; what lies outside is clipped."""
    levels = ((rgb.float() + 1) * 127.5).round().clamp(0, 255).byte()
    return rearrange(levels, "t c h w -> t h w c").cpu().numpy()
