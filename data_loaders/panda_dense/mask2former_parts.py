"""Steps of transformers' Mask2Former, for networks that take them apart."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float32
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelFeatures:
    """What the pixel decoder gives of v pictures."""

    masks: Float32[Tensor, "v c h w"]
    """At a quarter of the picture's sides."""
    levels: tuple[Float32[Tensor, "v c _h _w"], ...]
    """At 1/32, 1/16 and 1/8."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """Queries of one picture, seen in v views (1 without crops)."""

    class_logits: Float32[Tensor, "q k"]
    """k - 1 classes, and last 'no entity'."""
    mask_logits: Float32[Tensor, "v q h w"]
    """At a quarter of the view's sides; > 0 inside."""


def pixel_features(
    network: Any, pixels: Float32[Tensor, "v 3 height width"], *, views_per_pass: int
) -> PixelFeatures:
    """Backbone in its own dtype, pixel decoder in fp32: deformable attention needs its positions.

    Args:
        network: `Mask2FormerForUniversalSegmentation`.
        pixels: Of `entity_input.network_input`.
        views_per_pass: Pictures to run at a time.
    """
    level_module = network.model.pixel_level_module
    dtype = next(level_module.encoder.parameters()).dtype
    parts = []
    for some in pixels.split(views_per_pass):
        features = level_module.encoder(some.to(dtype)).feature_maps
        parts.append(level_module.decoder([feature.float() for feature in features]))
    levels = zip(*(part.multi_scale_features for part in parts), strict=True)
    return PixelFeatures(
        masks=torch.cat([part.mask_features for part in parts]),
        levels=tuple(torch.cat(level) for level in levels),
    )


def decode_views(network: Any, features: PixelFeatures) -> Any:
    """The masked-attention decoder on each view by itself; transformers' output object."""
    return network.model.transformer_module(
        multi_scale_features=list(features.levels),
        mask_features=features.masks,
        output_hidden_states=True,
    )


def predict_whole(network: Any, pixels: Float32[Tensor, "1 3 height width"]) -> Prediction:
    """What plain Mask2Former predicts of one picture.

    Args:
        network: `Mask2FormerForUniversalSegmentation`.
        pixels: Of `entity_input.network_input`.
    """
    decoded = decode_views(network, pixel_features(network, pixels, views_per_pass=1))
    queries: Float[Tensor, "q b c"] = decoded.intermediate_hidden_states[-1]
    return Prediction(
        class_logits=network.class_predictor(queries.transpose(0, 1))[0],
        mask_logits=decoded.masks_queries_logits[-1],
    )
