"""Work per sample and what a device can do, for MFU (model FLOPs utilisation) and plans."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from data_loaders.order import sizes_of
from sat_udpdiff.config import Config
from sat_udpdiff.encoders.latents import latent_size
from sat_udpdiff.model.accounting import backward_flops, forward_flops


@dataclass(frozen=True, kw_only=True, slots=True)
class GPU:
    """What a type of GPU can do."""

    device: str
    """Part of the name that CUDA gives it."""
    peak_flops: float
    """FLOP/s of dense bf16 / fp16 products, without sparsity; from the vendor's data sheet."""
    memory_gb: float
    """As sold. The card then has a few per cent more in units of 10^9 bytes; plans leave them."""
    assumed_mfu: float = 0.40
    """Share of the peak that a plan counts on where nobody measured. A100: the paper's 50 steps of
    5B take 204 s, which is 163 TFLOP/s or 0.52, and training is a little slower."""


GPUS: Mapping[str, GPU] = {
    "h200": GPU(device="H200", peak_flops=989e12, memory_gb=141.0),
    "h100-pcie": GPU(device="H100 PCIe", peak_flops=756e12, memory_gb=80.0),
    "h100": GPU(device="H100", peak_flops=989e12, memory_gb=80.0),
    "a100": GPU(device="A100", peak_flops=312e12, memory_gb=80.0, assumed_mfu=0.48),
    "a100-40g": GPU(device="A100", peak_flops=312e12, memory_gb=40.0, assumed_mfu=0.48),
    "a800": GPU(device="A800", peak_flops=312e12, memory_gb=80.0, assumed_mfu=0.48),
    "l40s": GPU(device="L40S", peak_flops=362e12, memory_gb=48.0),
    "b200": GPU(device="B200", peak_flops=2250e12, memory_gb=180.0),
    "rtx4090": GPU(device="4090", peak_flops=165e12, memory_gb=24.0),
}
"""By the names of `train.py --plan --gpu`; the first whose `device` is in CUDA's name counts."""


def flops_per_sample(config: Config) -> float:
    """FLOPs of training on one sample: a forward, and a backward of twice its cost (LoRA: less).

    Recomputed activations and the frozen encoders are not counted, as MFU wants it. With buckets
    it is the mean over samples.
    """
    total = 0.0
    for clip, share in sizes_of(config.data):
        size = latent_size(
            config.codec, num_frames=clip.num_frames, height=clip.height, width=clip.width
        )
        for flops in (forward_flops, backward_flops):
            shape = (size.frames, size.height, size.width)
            total += share * flops(config.model, *shape, lora=config.lora)
    return total


def peak_flops(device: torch.device, *, precision: str) -> float | None:
    """Peak of one device in FLOP/s; None where it is not known, as for CPUs and fp32."""
    if device.type != "cuda" or precision == "fp32":
        return None
    name = torch.cuda.get_device_name(device)
    return next((gpu.peak_flops for gpu in GPUS.values() if gpu.device in name), None)
