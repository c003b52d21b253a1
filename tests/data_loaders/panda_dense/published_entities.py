"""EntitySeg's published checkpoints, made up: every name and shape, and numbers for them.

Written from the modules of github.com/qqlu/Entity at 6e7e13a, folder Entityv2/CropFormer, without
regard to our key map. `entity_reference.json` holds what those modules gave, on a CPU, for the
weights and pictures of this file: detectron2's registry, Conv2d, ImageList and Instances were
replaced by a few lines each, and deformable attention took its PyTorch path. 'inference' is what
`MaskFormer.forward` and `CropFormer.forward` returned after the demo's resizing and cropping.
"""

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Size:
    """Numbers of a configuration."""

    embed: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: int = 7
    dim: int = 256
    queries: int = 100
    encoder_layers: int = 6
    encoder_hidden: int = 1024
    decoder_layers: int = 9
    hidden: int = 2048
    attention_heads: int = 8


SWIN_T = Size(embed=96, depths=(2, 2, 6, 2), heads=(3, 6, 12, 24))
SWIN_L = Size(embed=192, depths=(2, 2, 18, 2), heads=(6, 12, 24, 48))
TINY = Size(
    embed=16,
    depths=(2, 1, 2, 1),
    heads=(1, 2, 4, 8),
    window=4,
    dim=32,
    queries=20,
    encoder_layers=2,
    encoder_hidden=48,
    decoder_layers=4,
    hidden=64,
    attention_heads=2,
)


def published_shapes(size: Size, *, is_cropformer: bool) -> Shapes:
    """Every name of a checkpoint and its shape."""
    shapes = _backbone(size) | _pixel_decoder(size) | _predictor(size)
    if is_cropformer:
        shapes |= _make_3d(size)
    for criterion in ("criterion_2d", "criterion_3d") if is_cropformer else ("criterion",):
        shapes[f"{criterion}.empty_weight"] = (2,)
    return shapes


def published_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Numbers that hang on the name alone, all of them different."""
    weights = {}
    for name, shape in shapes.items():
        if name.endswith("relative_position_index"):
            weights[name] = torch.zeros(shape, dtype=torch.int64)
            continue
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        draw = torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1
        is_gain = len(shape) == 1 and name.endswith("weight")
        if len(shape) < 2:
            value = 0.3 * draw + is_gain
        else:
            value = draw * (8.0 if "query" in name else 2 / math.sqrt(math.prod(shape[1:])))
        weights[name] = value.float()
    if "sem_seg_head.predictor.class_embed.bias" in weights:
        weights["sem_seg_head.predictor.class_embed.bias"] = torch.tensor([1.5, 0.01])
    return weights


def picture(*, height: int, width: int) -> np.ndarray:
    """Patches of random colours, with noise on them."""
    rng = np.random.default_rng(height * 1000 + width)
    small = rng.integers(0, 200, (height // 9 + 1, width // 9 + 1, 3), dtype=np.uint8)
    patches = small.repeat(9, 0).repeat(9, 1)[:height, :width]
    return patches + rng.integers(0, 50, patches.shape, dtype=np.uint8)


def _affine(name: str, *shape: int) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _backbone(size: Size) -> Shapes:
    shapes = _affine("backbone.patch_embed.proj", size.embed, 3, 4, 4)
    shapes |= _affine("backbone.patch_embed.norm", size.embed)
    for stage, (depth, heads) in enumerate(zip(size.depths, size.heads, strict=True)):
        width = size.embed * 2**stage
        for number in range(depth):
            block = f"backbone.layers.{stage}.blocks.{number}"
            shapes |= _affine(f"{block}.norm1", width)
            shapes[f"{block}.attn.relative_position_bias_table"] = (
                (2 * size.window - 1) ** 2,
                heads,
            )
            shapes[f"{block}.attn.relative_position_index"] = (size.window**2,) * 2
            shapes |= _affine(f"{block}.attn.qkv", 3 * width, width)
            shapes |= _affine(f"{block}.attn.proj", width, width)
            shapes |= _affine(f"{block}.norm2", width)
            shapes |= _affine(f"{block}.mlp.fc1", 4 * width, width)
            shapes |= _affine(f"{block}.mlp.fc2", width, 4 * width)
        if stage < len(size.depths) - 1:
            shapes[f"backbone.layers.{stage}.downsample.reduction.weight"] = (2 * width, 4 * width)
            shapes |= _affine(f"backbone.layers.{stage}.downsample.norm", 4 * width)
        shapes |= _affine(f"backbone.norm{stage}", width)
    return shapes


def _pixel_decoder(size: Size) -> Shapes:
    dim, head = size.dim, "sem_seg_head.pixel_decoder"
    shapes: Shapes = {f"{head}.transformer.level_embed": (3, dim)}
    for number in range(3):
        shapes |= _affine(
            f"{head}.input_proj.{number}.0", dim, size.embed * 2 ** (3 - number), 1, 1
        )
        shapes |= _affine(f"{head}.input_proj.{number}.1", dim)
    samples = size.attention_heads * 3 * 4  # levels and points
    for number in range(size.encoder_layers):
        layer = f"{head}.transformer.encoder.layers.{number}"
        shapes |= _affine(f"{layer}.self_attn.sampling_offsets", 2 * samples, dim)
        shapes |= _affine(f"{layer}.self_attn.attention_weights", samples, dim)
        shapes |= _affine(f"{layer}.self_attn.value_proj", dim, dim)
        shapes |= _affine(f"{layer}.self_attn.output_proj", dim, dim)
        shapes |= _affine(f"{layer}.norm1", dim) | _affine(f"{layer}.norm2", dim)
        shapes |= _affine(f"{layer}.linear1", size.encoder_hidden, dim)
        shapes |= _affine(f"{layer}.linear2", dim, size.encoder_hidden)
    shapes |= _affine(f"{head}.mask_features", dim, dim, 1, 1)
    shapes |= {f"{head}.adapter_1.weight": (dim, size.embed, 1, 1)}
    shapes |= {f"{head}.layer_1.weight": (dim, dim, 3, 3)}
    return shapes | _affine(f"{head}.adapter_1.norm", dim) | _affine(f"{head}.layer_1.norm", dim)


def _attention(name: str, dim: int) -> Shapes:
    packed = {f"{name}.in_proj_weight": (3 * dim, dim), f"{name}.in_proj_bias": (3 * dim,)}
    return packed | _affine(f"{name}.out_proj", dim, dim)


def _predictor(size: Size) -> Shapes:
    dim, head = size.dim, "sem_seg_head.predictor"
    shapes: Shapes = {}
    for number in range(size.decoder_layers):
        own = f"{head}.transformer_self_attention_layers.{number}"
        cross = f"{head}.transformer_cross_attention_layers.{number}"
        inner = f"{head}.transformer_ffn_layers.{number}"
        shapes |= _attention(f"{own}.self_attn", dim) | _affine(f"{own}.norm", dim)
        shapes |= _attention(f"{cross}.multihead_attn", dim) | _affine(f"{cross}.norm", dim)
        shapes |= _affine(f"{inner}.linear1", size.hidden, dim)
        shapes |= _affine(f"{inner}.linear2", dim, size.hidden) | _affine(f"{inner}.norm", dim)
    shapes |= _affine(f"{head}.decoder_norm", dim)
    for name, rows in (("query_feat", size.queries), ("query_embed", size.queries)):
        shapes[f"{head}.{name}.weight"] = (rows, dim)
    shapes[f"{head}.level_embed.weight"] = (3, dim)
    shapes |= _affine(f"{head}.class_embed", 2, dim)
    for number in range(3):
        shapes |= _affine(f"{head}.mask_embed.layers.{number}", dim, dim)
    return shapes


def _make_3d(size: Size) -> Shapes:
    dim, block = size.dim, "sem_seg_head.predictor.make_3d"
    shapes = _attention(f"{block}.enc_crosattn_3d.0.multihead_attn", dim)
    shapes |= _affine(f"{block}.enc_crosattn_3d.0.norm", dim)
    shapes |= _attention(f"{block}.enc_selfattn_3d.0.self_attn", dim)
    shapes |= _affine(f"{block}.enc_selfattn_3d.0.norm", dim)
    shapes |= _affine(f"{block}.enc_ffn_3d.0.linear1", size.hidden, dim)
    shapes |= _affine(f"{block}.enc_ffn_3d.0.linear2", dim, size.hidden)
    return shapes | _affine(f"{block}.enc_ffn_3d.0.norm", dim)


def network_picture(*, views: int) -> Tensor:
    """Input of 'class_logits' and 'mask_logits', (views, 3, 128, 160)."""
    pixels = torch.from_numpy(picture(height=128, width=160)).permute(2, 0, 1).float()
    return torch.stack([((pixels - 128) / 60).roll(16 * view, -1) for view in range(views)])
