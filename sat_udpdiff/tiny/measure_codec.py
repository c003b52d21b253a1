"""What a round trip through a codec keeps of held-out clips: the ceiling of all that follows."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX

from sat_udpdiff.colormaps import depth, pixelplanes
from sat_udpdiff.colormaps.pixel_values import to_uint8
from sat_udpdiff.evaluation.segmentation import adjusted_rand_index
from sat_udpdiff.tiny.clips import TinyWorld, View, paint, to_network


@dataclass(frozen=True, kw_only=True, slots=True)
class CodecQuality:
    """Means over clips."""

    rgb_psnr_db: float
    """Peak signal to noise ratio of 8-bit pixels, dB."""
    segmentation_ari: float
    """Adjusted Rand index between the true ids and those decoded from the colormap, <= 1."""
    depth_mae: float
    """Mean absolute error of disparity in [0, 1]."""
    latent_std: float
    """Standard deviation of the latents over all views, before the scale factor."""
    num_clips: int


def round_trip(codec: AutoencoderKLCogVideoX, pixels: np.ndarray) -> tuple[np.ndarray, float]:
    """Encode to the posterior mean and decode.

    Returns:
        Pixels (t, h, w, 3) uint8 and the mean square of the latents.
    """
    video = to_network(pixels).transpose(0, 1)[None]  # (1, 3, t, h, w)
    posterior: Any = codec.encode(video, return_dict=False)[0]
    latents = posterior.mean
    decoded: Any = codec.decode(latents, return_dict=False)[0]
    return to_uint8(decoded[0].transpose(0, 1)), float(latents.square().mean())


@torch.inference_mode()
def measure_codec(
    codec: AutoencoderKLCogVideoX, *, world: TinyWorld, indices: Iterable[int]
) -> CodecQuality:
    """Measure a codec on clips of the simple world.

    Args:
        codec: In evaluation mode.
        world: Size and seed of the clips.
        indices: Clips, usually held-out ones.

    Returns:
        Means over the clips.
    """
    psnr, ari, mae, power = [], [], [], []
    for index in indices:
        sample = world.clip(index)
        rng = np.random.default_rng(index)
        views: list[View] = ["rgb", "segmentation", "depth"]
        pixels = {view: paint(sample, view=view, generator=rng) for view in views}
        kept = {}
        for view in views:
            kept[view], mean_square = round_trip(codec, pixels[view])
            power.append(mean_square)
        error = kept["rgb"].astype(np.float64) - pixels["rgb"]
        psnr.append(10.0 * np.log10(255.0**2 / max(float(np.mean(error**2)), 1e-9)))
        assert sample.entity_ids is not None and sample.depth is not None
        ari.append(adjusted_rand_index(sample.entity_ids, pixelplanes.decode(kept["segmentation"])))
        disparity = depth.decode(kept["depth"], inverse="midbin")
        mae.append(float(np.abs(disparity - sample.depth / 65535.0).mean()))
    return CodecQuality(
        rgb_psnr_db=float(np.mean(psnr)),
        segmentation_ari=float(np.mean(ari)),
        depth_mae=float(np.mean(mae)),
        latent_std=float(np.sqrt(np.mean(power))),
        num_clips=len(psnr),
    )
