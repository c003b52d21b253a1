"""The smallest video codecs of CogVideoX's class, with random weights."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX


def small_vae(channels: Sequence[int] = (8, 8, 16), **settings: Any) -> AutoencoderKLCogVideoX:
    """4 x 4 x 4 pixels to a latent of 4 channels, as the tiny codec; weights as diffusers begins.

    Args:
        channels: Of the three levels.
        settings: Of the class, over ours.
    """
    torch.manual_seed(0)
    levels = len(channels)
    ours = {
        "down_block_types": ("CogVideoXDownBlock3D",) * levels,
        "up_block_types": ("CogVideoXUpBlock3D",) * levels,
        "block_out_channels": tuple(channels),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "latent_channels": 4,
        # Of the tiles, where they are asked for: 6 x 10 latents, 5 and 8 apart.
        "sample_height": 32,
        "sample_width": 48,
    }
    return AutoencoderKLCogVideoX(**ours | settings)


def random_vae() -> AutoencoderKLCogVideoX:
    """`small_vae` with every weight random: zero biases would hide faults."""
    vae = small_vae()
    for parameter in vae.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.1)
    return vae
