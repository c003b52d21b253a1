"""The colormaps on tensors, colours in [-1, 1]: what the numpy modules do, on the tensor's device.

Apart from them, so that a process that only paints clips need not load torch.
"""

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int, Int32, UInt8
from torch import Tensor

from sat_udpdiff.colormaps import depth as depth_map
from sat_udpdiff.colormaps import location_aware, pixelplanes
from sat_udpdiff.colormaps.pixel_values import to_uint8


def encode_pixelplanes(
    entity_ids: Int[Tensor, "*batch t h w"], *, colors: UInt8[Tensor, "n 3"]
) -> Float[Tensor, "*batch t 3 h w"]:
    """Paint a clip: `pixelplanes.encode` on the tensor's device, colours in [-1, 1], float32.

    Ids are not checked on a GPU, where the check would wait for the device.

    Raises:
        ValueError: On the CPU, an id is negative or has no colour.
    """
    if entity_ids.device.type == "cpu" and entity_ids.numel():
        low, high = (int(v) for v in entity_ids.aminmax())
        if low < 0:
            raise ValueError(f"entity_ids: expected ids >= 0, got {low}")
        pixelplanes.check_range(largest=high, num_colors=len(colors))
    table = torch.full((len(colors) + 1, 3), -1.0, device=entity_ids.device)
    table[1:] = colors.to(entity_ids.device).float() / 127.5 - 1
    index = entity_ids.int()
    return torch.stack([channel[index] for channel in table.unbind(1)], dim=-3)


def decode_pixelplanes(
    rgb: Float[Tensor, "*batch t 3 h w"],
    *,
    palette: UInt8[np.ndarray, "n 3"] | None = None,
    min_area: int | None = None,
) -> Int32[Tensor, "*batch t h w"]:
    """`pixelplanes.decode` of each clip, colours in [-1, 1], ids on the tensor's device.

    The work is done on the CPU: votes and components of a few labels are no task for a GPU.
    """
    clips = rgb.reshape(-1, *rgb.shape[-4:])
    ids = [pixelplanes.decode(to_uint8(clip), palette=palette, min_area=min_area) for clip in clips]
    stacked = torch.from_numpy(np.stack(ids)).to(rgb.device)
    return stacked.reshape(*rgb.shape[:-3], *rgb.shape[-2:])


def encode_location_aware(
    entity_ids: Int[Tensor, "*batch t h w"],
    *,
    grid: int = 11,
    collisions: location_aware.Collisions = "share",
) -> Float[Tensor, "*batch t 3 h w"]:
    """`location_aware.encode` of each clip on the tensor's device, colours in [-1, 1], float32.

    Raises:
        ValueError: See `location_aware.encode`.
    """
    painted = []
    for ids in entity_ids.reshape(-1, *entity_ids.shape[-3:]):
        colors = location_aware.colors_of(ids.cpu().numpy(), grid=grid, collisions=collisions)
        painted.append(encode_pixelplanes(ids, colors=torch.from_numpy(colors)))
    return torch.stack(painted).reshape(*entity_ids.shape[:-2], 3, *entity_ids.shape[-2:])


def decode_location_aware(
    rgb: Float[Tensor, "*batch t 3 h w"],
    *,
    grid: int = 11,
    collisions: location_aware.Collisions = "share",
    min_area: int | None = None,
) -> Int32[Tensor, "*batch t h w"]:
    """`location_aware.decode` of each clip, colours in [-1, 1]; see `decode_pixelplanes`."""
    used = location_aware.used_colors(grid=grid, collisions=collisions)
    return decode_pixelplanes(rgb, palette=used, min_area=min_area)


def encode_depth(depth: Float[Tensor, "*batch t h w"]) -> Float[Tensor, "*batch t 3 h w"]:
    """`depth.encode` on the tensor's device: disparity in [0, 1] -> colours in [-1, 1], float32."""
    index = (depth.float() * depth_map.NUM_COLORS).clamp(0, depth_map.NUM_COLORS - 1).int()
    colors = torch.as_tensor(depth_map.COLORS.copy(), device=depth.device).float() / 127.5 - 1
    return torch.stack([channel[index] for channel in colors.unbind(1)], dim=-3)


@lru_cache(maxsize=8)
def _device_table(inverse: depth_map.Inverse, device: torch.device) -> Tensor:
    index = depth_map.nearest_sample(inverse).full_table().reshape(-1)
    # One float per colour would be 64 MB; the index fits one byte for both inverses.
    return torch.from_numpy(index.astype(np.uint8)).to(device)


def decode_depth(
    rgb: Float[Tensor, "*batch t 3 h w"], *, inverse: depth_map.Inverse = "midbin"
) -> Float[Tensor, "*batch t h w"]:
    """`depth.decode` on the tensor's device.

    Args:
        rgb: Colours in [-1, 1]; rounded to 8 bits first, so that both versions agree exactly.
        inverse: See `depth.decode`.

    Returns:
        Disparity in (0, 1], float32. The first call on a device fills a 16 MB table (one second).
    """
    values = torch.from_numpy(depth_map.sample_values(inverse)).to(rgb.device)
    table = _device_table(inverse, rgb.device)
    shape = (*rgb.shape[:-3], *rgb.shape[-2:])
    depth = torch.empty(shape, device=rgb.device, dtype=torch.float32)
    # Frame by frame: the int32 codes of a whole clip would take as much memory as the clip.
    for frame, out in zip(rgb.flatten(0, -4), depth.view(-1, *rgb.shape[-2:]), strict=True):
        red, green, blue = ((frame.float() + 1) * 127.5).round().clamp(0, 255).int().unbind(0)
        out.copy_(values[table[blue << 16 | green << 8 | red].int()])
    return depth
