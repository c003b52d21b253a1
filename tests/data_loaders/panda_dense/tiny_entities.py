"""EntitySeg's networks of the real classes with random weights, small enough for a CPU."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data_loaders.panda_dense.cropformer import CropFusion
from data_loaders.panda_dense.mask2former import ABOUT_FILE, FUSION_FILE

# At these, the tiny networks find several entities in most pictures.
TINY_MIN_SCORE = 0.2
TINY_SHORT_SIDE = 96
TINY_LONG_SIDE = 160


def make_tiny_mask2former(*, seed: int = 0) -> Any:
    """A Mask2Former of 20 queries."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    features: dict[str, Any] = {"out_features": [f"stage{stage}" for stage in range(1, 5)]}
    swin = SwinConfig(
        image_size=64,
        embed_dim=16,
        depths=[2, 1, 2, 1],
        num_heads=[1, 2, 4, 8],
        window_size=4,
        drop_path_rate=0.0,
        **features,
    )
    config = Mask2FormerConfig(
        backbone_config=swin,
        id2label={0: "entity"},
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_layers=2,
        encoder_feedforward_dim=48,
        decoder_layers=5,
        dim_feedforward=64,
        num_attention_heads=2,
        num_queries=20,
    )
    network = Mask2FormerForUniversalSegmentation(config).eval()
    randomise(network, seed=seed)
    with torch.no_grad():
        # Entities more likely than none, or no score is ever high.
        network.class_predictor.bias.copy_(torch.tensor([1.5, 0.0]))
    return network


def make_tiny_fusion(*, seed: int = 0) -> CropFusion:
    """CropFormer's block for `make_tiny_mask2former`."""
    fusion = CropFusion(num_layers=1, dim=32, num_heads=2, hidden=64)
    randomise(fusion, seed=seed)
    return fusion.eval()


def save_tiny_mask2former(folder: Path) -> None:
    """A folder as the converter writes it."""
    make_tiny_mask2former().save_pretrained(folder)
    about = {"network": "mask2former", "license": "none: random weights"}
    (folder / ABOUT_FILE).write_text(json.dumps(about))


def save_tiny_cropformer(folder: Path) -> None:
    """A folder as the converter writes it."""
    from safetensors.torch import save_file

    save_tiny_mask2former(folder)
    save_file(make_tiny_fusion().state_dict(), folder / FUSION_FILE)


def randomise(module: nn.Module, *, seed: int) -> None:
    """Give every weight, bias and norm a value of its own, so that none can be lost unseen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            # Uniform draws of doubles: torch's normal ones differ between vectorised kernels.
            draw = torch.rand(parameter.shape, generator=generator, dtype=torch.float64) * 2 - 1
            if parameter.ndim < 2:
                start = parameter.double().mean().round()
                parameter.copy_(start + 0.3 * draw)
            else:
                # Queries so far apart that their masks stay different ones.
                scale = 8.0 if "queries" in name else 2 / math.sqrt(parameter[0].numel())
                parameter.copy_(scale * draw)
