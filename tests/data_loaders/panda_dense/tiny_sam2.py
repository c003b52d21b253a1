"""Tiny random SAM 2 models of the real classes: 1.1 million weights, pictures of 128 x 128.

All weights are drawn, biases and norms too, so that a zero cannot hide a fault. Objects count as
seen by a margin of _SEEN, and the seed is one with which the video model labels about a half of
later frames (17 to 60 % of those tried, none with most others), nearly always for all its objects.
What it labels has nothing to do with the picture. The image model's masks reach all over it: their
boxes are one and the same to the suppression of boxes, unless that is switched off.
"""

from pathlib import Path
from typing import Any

import torch

SIZE = 128
_HIDDEN = 128
_SEEN = 2.0


def _vision() -> dict[str, Any]:
    return {
        "model_type": "sam2_vision_model",
        "fpn_hidden_size": _HIDDEN,
        "backbone_channel_list": [96, 48, 24, 12],
        "backbone_feature_sizes": [[SIZE // 4] * 2, [SIZE // 8] * 2, [SIZE // 16] * 2],
        "backbone_config": {
            "model_type": "sam2_hiera_det_model",
            "hidden_size": 12,
            "image_size": [SIZE, SIZE],
            "blocks_per_stage": [1, 1, 2, 1],
            "embed_dim_per_stage": [12, 24, 48, 96],
            "num_attention_heads_per_stage": [1, 1, 2, 4],
            "window_size_per_stage": [4, 2, 2, 2],
            # Not the first block of a stage, which pools its queries.
            "global_attention_blocks": [3],
            "window_positional_embedding_background_size": [2, 2],
        },
    }


def _heads() -> dict[str, Any]:
    return {
        "prompt_encoder_config": {
            "hidden_size": _HIDDEN,
            "image_size": SIZE,
            "patch_size": 16,
            "mask_input_channels": 8,
        },
        "mask_decoder_config": {
            "hidden_size": _HIDDEN,
            "mlp_dim": 32,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": 32,
        },
    }


def _randomise(model: torch.nn.Module, *, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            fan_in = weight[0].numel() if weight.dim() > 1 else 1
            scale = fan_in**-0.5 if weight.dim() > 1 else 0.1
            weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
            if weight.dim() == 1 and name.endswith("weight"):
                weight.add_(1)  # norms
        for name, table in sorted(model.named_buffers()):
            if name == "shared_image_embedding.positional_embedding":
                table.copy_(torch.randn(table.shape, generator=generator))
                # Points and pictures are placed by the same table in the released weights.
                model.get_buffer("prompt_encoder.shared_embedding.positional_embedding").copy_(
                    table
                )
        model.get_parameter("mask_decoder.pred_obj_score_head.proj_out.bias").add_(_SEEN)


def save_tiny_sam2_video(folder: Path, *, seed: int = 0) -> None:
    """Write config.json and model.safetensors of a `Sam2VideoModel`."""
    from transformers import Sam2VideoConfig, Sam2VideoModel

    config = Sam2VideoConfig(
        vision_config=_vision(),
        **_heads(),
        image_size=SIZE,
        memory_attention_hidden_size=_HIDDEN,
        memory_attention_num_layers=1,
        memory_attention_feed_forward_hidden_size=32,
        memory_attention_rope_feat_sizes=[SIZE // 16] * 2,
        memory_encoder_hidden_size=_HIDDEN,
        # The width of the memory attention's keys is fixed at 64 in the model's code.
        memory_encoder_output_channels=64,
        mask_downsampler_embed_dim=_HIDDEN,
        memory_fuser_embed_dim=_HIDDEN,
        memory_fuser_intermediate_dim=32,
        memory_fuser_num_layers=1,
    )
    model = Sam2VideoModel(config)
    _randomise(model, seed=seed)
    model.save_pretrained(folder)


def save_tiny_sam2_image(folder: Path, *, seed: int = 0) -> None:
    """Write config.json and model.safetensors of a `Sam2Model`."""
    from transformers import Sam2Config, Sam2Model

    model = Sam2Model(Sam2Config(vision_config=_vision(), **_heads()))
    _randomise(model, seed=seed)
    model.save_pretrained(folder)
