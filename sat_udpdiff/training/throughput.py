"""Work per sample and what a device can do, for MFU (model FLOPs utilisation)."""

import torch

from data_loaders.order import sizes_of
from sat_udpdiff.config import Config
from sat_udpdiff.encoders.latents import latent_size
from sat_udpdiff.model.accounting import forward_flops

_PEAK_FLOPS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "B200": 2250e12,
    "4090": 165e12,
}
"""Dense bf16 / fp16 tensor throughput without sparsity, from the vendor's data sheets, FLOP/s.

The first entry whose name is part of the device's name counts.
"""


def flops_per_sample(config: Config) -> float:
    """FLOPs of training on one sample: a forward, and a backward of twice its cost.

    Recomputed activations and the frozen encoders are not counted, as MFU wants it. With buckets
    it is the mean over samples.
    """
    total = 0.0
    for clip, share in sizes_of(config.data):
        size = latent_size(
            config.codec, num_frames=clip.num_frames, height=clip.height, width=clip.width
        )
        total += share * forward_flops(config.model, size.frames, size.height, size.width)
    return 3.0 * total


def peak_flops(device: torch.device, *, precision: str) -> float | None:
    """Peak of one device in FLOP/s; None where it is not known, as for CPUs and fp32."""
    if device.type != "cuda" or precision == "fp32":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in _PEAK_FLOPS.items() if part in name), None)
