"""CropFormer: Mask2Former on a picture and its four crops at once, with shared weights.

Port of github.com/qqlu/Entity, Entityv2/CropFormer: mask2former/modeling/transformer_decoder/
cropformer_transformer_decoder.py (`CropSharedMultiScaleMaskedTransformerDecoder`, `Make3dQueries`),
position_encoding.py (`PositionEmbeddingSine3D2D`), mask2former/cropformer_model.py
(`inference_whole_views`) and data/dataset_mappers/crop_augmentations.py (`EntityCrop`).

Each view is decoded by itself. One more block makes the queries of all views into one set, and the
same decoder runs again on it, this time attending to all views at once, whose positions also tell
the view. A query then has one mask in each view.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor, nn
from torch.nn import functional

from data_loaders.geometry import CropBox
from data_loaders.panda_dense.mask2former_parts import (
    PixelFeatures,
    Prediction,
    decode_views,
    pixel_features,
)

CROP_RATIO = 0.7
"""Sides of a crop by those of the picture, as trained (CROP_AREA_RATIO, not of the area)."""
NUM_VIEWS = 5


class FusionLayer(nn.Module):
    """Cross-attention to the queries of all views, self-attention, feed-forward; norms after.

    Args:
        dim: Of a query.
        num_heads: Of both attentions.
        hidden: Of the feed-forward part.
    """

    def __init__(self, *, dim: int, num_heads: int, hidden: int):
        super().__init__()
        self.cross_attention = nn.MultiheadAttention(dim, num_heads)
        self.cross_norm = nn.LayerNorm(dim)
        self.self_attention = nn.MultiheadAttention(dim, num_heads)
        self.self_norm = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, hidden)
        self.linear2 = nn.Linear(hidden, dim)
        self.linear_norm = nn.LayerNorm(dim)

    def forward(
        self,
        queries: Float[Tensor, "q b c"],
        *,
        memory: Float[Tensor, "n b c"],
        position: Float[Tensor, "q b c"],
        memory_position: Float[Tensor, "n b c"],
    ) -> Float[Tensor, "q b c"]:
        """Fused queries."""
        seen, _ = self.cross_attention(
            queries + position, memory + memory_position, memory, need_weights=False
        )
        queries = self.cross_norm(queries + seen)
        # Without positions here, as published.
        seen, _ = self.self_attention(queries, queries, queries, need_weights=False)
        queries = self.self_norm(queries + seen)
        inner = functional.relu(self.linear1(queries))
        return self.linear_norm(queries + self.linear2(inner))


class CropFusion(nn.Module):
    """The published `make_3d`: queries of all views to one set.

    Args:
        num_layers: Fusion layers; 1 as published.
        dim: Of a query.
        num_heads: Of the attentions.
        hidden: Of the feed-forward part.
    """

    def __init__(self, *, num_layers: int, dim: int, num_heads: int, hidden: int):
        super().__init__()
        self.layers = nn.ModuleList(
            FusionLayer(dim=dim, num_heads=num_heads, hidden=hidden) for _ in range(num_layers)
        )

    def forward(
        self, queries: Float[Tensor, "v q c"], *, position: Float[Tensor, "q c"]
    ) -> Float[Tensor, "q 1 c"]:
        """One set of queries of those of v views, the whole picture being the first.

        Args:
            queries: Of each view, before the decoder's last norm.
            position: Learned embedding of each query, the same in all views.
        """
        views = len(queries)
        fused = queries[0][:, None]
        memory = queries.transpose(0, 1).flatten(0, 1)[:, None]  # ((q v), 1, c)
        for layer in self.layers:
            fused = layer(
                fused,
                memory=memory,
                position=position[:, None],
                memory_position=position.repeat_interleave(views, dim=0)[:, None],
            )
        return fused


class CropFormer(nn.Module):
    """The network on the views of one picture.

    Args:
        network: `Mask2FormerForUniversalSegmentation`: all that the views share.
        fusion: The block between the two passes.
    """

    def __init__(self, network: Any, *, fusion: CropFusion):
        super().__init__()
        self.network = network
        self.fusion = fusion

    def forward(
        self, pixels: Float32[Tensor, "v 3 height width"], *, views_per_pass: int = NUM_VIEWS
    ) -> Prediction:
        """What it predicts of one picture.

        Args:
            pixels: The whole picture, then its crops (`view_boxes`), padded to one size.
            views_per_pass: How many go through backbone and pixel decoder at a time.
        """
        features = pixel_features(self.network, pixels, views_per_pass=views_per_pass)
        alone = decode_views(self.network, features).last_hidden_state
        position = self.network.model.transformer_module.queries_embedder.weight
        return self._decode_together(self.fusion(alone, position=position), features=features)

    def _decode_together(
        self, queries: Float[Tensor, "q 1 c"], *, features: PixelFeatures
    ) -> Prediction:
        module = self.network.model.transformer_module
        decoder = module.decoder
        sizes = [level.shape[-2:] for level in features.levels]
        memory, positions = self._memory(features)
        query_position = module.queries_embedder.weight[:, None]
        normed = decoder.layernorm(queries)
        masks = self._masks(normed, features=features)
        for number, layer in enumerate(decoder.layers):
            level = number % len(sizes)
            hidden = attention_mask(masks, size=sizes[level])
            queries = layer(
                queries,
                level_index=level,
                position_embeddings=positions,
                query_position_embeddings=query_position,
                encoder_hidden_states=memory,
                encoder_attention_mask=hidden.repeat(decoder.config.num_attention_heads, 1, 1),
            )[0]
            normed = decoder.layernorm(queries)
            masks = self._masks(normed, features=features)
        return Prediction(
            class_logits=self.network.class_predictor(normed[:, 0]), mask_logits=masks
        )

    def _masks(
        self, normed: Float[Tensor, "q 1 c"], *, features: PixelFeatures
    ) -> Float32[Tensor, "v q h w"]:
        embed = self.network.model.transformer_module.decoder.mask_predictor.mask_embedder
        return torch.einsum("qc,vchw->vqhw", embed(normed[:, 0]), features.masks)

    def _memory(
        self, features: PixelFeatures
    ) -> tuple[list[Float[Tensor, "_n 1 c"]], list[Float[Tensor, "_n 1 c"]]]:
        """Keys of the second pass, all views in a row, and their positions; of each level."""
        module = self.network.model.transformer_module
        memory, positions = [], []
        for number, level in enumerate(features.levels):
            embedded = module.input_projections[number](level).flatten(2)
            embedded = embedded + module.level_embed.weight[number][:, None]
            memory.append(_in_a_row(embedded))
            where = module.position_embedder(level.shape, level.device, level.dtype, None)
            which = view_positions(len(level), dim=where.shape[1], device=level.device)
            positions.append(_in_a_row(where.flatten(2) + which[..., None]))
        return memory, positions


def _in_a_row(tokens: Float[Tensor, "v c n"]) -> Float[Tensor, "vn 1 c"]:
    return tokens.permute(0, 2, 1).flatten(0, 1)[:, None]


def attention_mask(
    masks: Float32[Tensor, "v q h w"], *, size: Sequence[int]
) -> Bool[Tensor, "1 q n"]:
    """Where the queries may not look: outside of their masks, in all views, views in a row.

    A query whose mask is empty in every view looks everywhere.

    Args:
        masks: Logits.
        size: Height and width of the level.
    """
    height, width = size
    resized = functional.interpolate(
        masks, size=(height, width), mode="bilinear", align_corners=False
    )
    outside = (resized.sigmoid() < 0.5).transpose(0, 1).flatten(1)  # (q, v h w)
    return (outside & ~outside.all(-1, keepdim=True))[None]


def view_positions(
    views: int, *, dim: int, device: torch.device | None = None
) -> Float32[Tensor, "views dim"]:
    """Sines and cosines, in turns, of the number of a view, as DETR's of a row; added to those.

    View k of v stands at 2 pi (k + 1) / v; channels 2i and 2i + 1 have the period 10000^(2i/dim).
    """
    angles = torch.arange(1, views + 1, device=device, dtype=torch.float32)
    angles = angles / (views + 1e-6) * (2 * math.pi)
    channels = torch.arange(dim, device=device)
    even = channels - channels % 2
    angles = angles[:, None] / 10000.0 ** (even / dim)
    return torch.where(channels % 2 == 0, angles.sin(), angles.cos())


def view_boxes(*, height: int, width: int) -> tuple[CropBox, ...]:
    """The whole picture, and crops in its corners: above left, right, below left, right.

    Args:
        height: Of the picture, pixels.
        width: Of the picture, pixels.
    """
    # Cut off in floats, as published: 0.7 * 720 is 503.99... and gives 503.
    rows, columns = max(1, int(CROP_RATIO * height)), max(1, int(CROP_RATIO * width))
    whole = CropBox(top=0, left=0, height=height, width=width)
    corners = [(top, left) for top in (0, height - rows) for left in (0, width - columns)]
    crops = (CropBox(top=t, left=left, height=rows, width=columns) for t, left in corners)
    return (whole, *crops)


def fuse_views(
    probabilities: Sequence[Float32[Tensor, "q _h _w"]], *, boxes: Sequence[CropBox]
) -> Float32[Tensor, "q height width"]:
    """The mean, at each pixel, of the views that see it.

    Args:
        probabilities: Of each view at its size in the picture; the first sees all of it.
        boxes: Where the views lie.
    """
    total = torch.zeros_like(probabilities[0])
    seen = torch.zeros_like(total[0])
    for view, box in zip(probabilities, boxes, strict=True):
        rows = slice(box.top, box.top + box.height)
        columns = slice(box.left, box.left + box.width)
        total[:, rows, columns] += view
        seen[rows, columns] += 1
    return total / seen
