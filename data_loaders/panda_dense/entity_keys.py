"""Names of EntitySeg's published weights (detectron2) and of transformers' files, one by one.

Left: modules of github.com/qqlu/Entity, Entityv2/CropFormer/mask2former/modeling. Right: names in
files of the hub, which transformers 4 and 5 both read, whatever their modules are called inside;
and those of `cropformer.CropFusion`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from data_loaders.schema import DataError

_SWIN = "model.pixel_level_module.encoder"
_PIXELS = "model.pixel_level_module.decoder"
_QUERIES = "model.transformer_module"
_BLOCK = rf"{_SWIN}.encoder.layers.\1.blocks.\2"
_ENCODER = rf"{_PIXELS}.encoder.layers.\1"
_DECODER = rf"{_QUERIES}.decoder.layers.\1"

# W stands for weight or bias, N for a number; several names share the rows of one tensor equally.
_RULES: dict[str, tuple[str, ...]] = {
    r"backbone.patch_embed.proj.W": (rf"{_SWIN}.embeddings.patch_embeddings.projection.\1",),
    r"backbone.patch_embed.norm.W": (rf"{_SWIN}.embeddings.norm.\1",),
    r"backbone.layers.N.blocks.N.norm1.W": (rf"{_BLOCK}.layernorm_before.\3",),
    r"backbone.layers.N.blocks.N.norm2.W": (rf"{_BLOCK}.layernorm_after.\3",),
    r"backbone.layers.N.blocks.N.attn.relative_position_bias_table": (
        rf"{_BLOCK}.attention.self.relative_position_bias_table",
    ),
    r"backbone.layers.N.blocks.N.attn.qkv.W": (
        rf"{_BLOCK}.attention.self.query.\3",
        rf"{_BLOCK}.attention.self.key.\3",
        rf"{_BLOCK}.attention.self.value.\3",
    ),
    r"backbone.layers.N.blocks.N.attn.proj.W": (rf"{_BLOCK}.attention.output.dense.\3",),
    r"backbone.layers.N.blocks.N.mlp.fc1.W": (rf"{_BLOCK}.intermediate.dense.\3",),
    r"backbone.layers.N.blocks.N.mlp.fc2.W": (rf"{_BLOCK}.output.dense.\3",),
    r"backbone.layers.N.downsample.(norm|reduction).W": (
        rf"{_SWIN}.encoder.layers.\1.downsample.\2.\3",
    ),
    r"backbone.norm0.W": (rf"{_SWIN}.hidden_states_norms.stage1.\1",),
    r"backbone.norm1.W": (rf"{_SWIN}.hidden_states_norms.stage2.\1",),
    r"backbone.norm2.W": (rf"{_SWIN}.hidden_states_norms.stage3.\1",),
    r"backbone.norm3.W": (rf"{_SWIN}.hidden_states_norms.stage4.\1",),
    r"sem_seg_head.pixel_decoder.input_proj.N.N.W": (rf"{_PIXELS}.input_projections.\1.\2.\3",),
    r"sem_seg_head.pixel_decoder.transformer.level_embed": (f"{_PIXELS}.level_embed",),
    r"sem_seg_head.pixel_decoder.transformer.encoder.layers.N.self_attn.(\w+).W": (
        rf"{_ENCODER}.self_attn.\2.\3",
    ),
    r"sem_seg_head.pixel_decoder.transformer.encoder.layers.N.norm1.W": (
        rf"{_ENCODER}.self_attn_layer_norm.\2",
    ),
    r"sem_seg_head.pixel_decoder.transformer.encoder.layers.N.norm2.W": (
        rf"{_ENCODER}.final_layer_norm.\2",
    ),
    r"sem_seg_head.pixel_decoder.transformer.encoder.layers.N.linear([12]).W": (
        rf"{_ENCODER}.fc\2.\3",
    ),
    r"sem_seg_head.pixel_decoder.mask_features.W": (rf"{_PIXELS}.mask_projection.\1",),
    r"sem_seg_head.pixel_decoder.(adapter_1|layer_1).weight": (rf"{_PIXELS}.\1.0.weight",),
    r"sem_seg_head.pixel_decoder.(adapter_1|layer_1).norm.W": (rf"{_PIXELS}.\1.1.\2",),
    r"sem_seg_head.predictor.query_feat.weight": (f"{_QUERIES}.queries_features.weight",),
    r"sem_seg_head.predictor.query_embed.weight": (f"{_QUERIES}.queries_embedder.weight",),
    r"sem_seg_head.predictor.level_embed.weight": (f"{_QUERIES}.level_embed.weight",),
    r"sem_seg_head.predictor.transformer_cross_attention_layers.N.multihead_attn.(\S+)": (
        rf"{_DECODER}.cross_attn.\2",
    ),
    r"sem_seg_head.predictor.transformer_cross_attention_layers.N.norm.W": (
        rf"{_DECODER}.cross_attn_layer_norm.\2",
    ),
    r"sem_seg_head.predictor.transformer_self_attention_layers.N.self_attn.in_proj_W": (
        rf"{_DECODER}.self_attn.q_proj.\2",
        rf"{_DECODER}.self_attn.k_proj.\2",
        rf"{_DECODER}.self_attn.v_proj.\2",
    ),
    r"sem_seg_head.predictor.transformer_self_attention_layers.N.self_attn.out_proj.W": (
        rf"{_DECODER}.self_attn.out_proj.\2",
    ),
    r"sem_seg_head.predictor.transformer_self_attention_layers.N.norm.W": (
        rf"{_DECODER}.self_attn_layer_norm.\2",
    ),
    r"sem_seg_head.predictor.transformer_ffn_layers.N.linear([12]).W": (rf"{_DECODER}.fc\2.\3",),
    r"sem_seg_head.predictor.transformer_ffn_layers.N.norm.W": (
        rf"{_DECODER}.final_layer_norm.\2",
    ),
    r"sem_seg_head.predictor.decoder_norm.W": (rf"{_QUERIES}.decoder.layernorm.\1",),
    r"sem_seg_head.predictor.class_embed.W": (r"class_predictor.\1",),
    r"sem_seg_head.predictor.mask_embed.layers.N.W": (
        rf"{_QUERIES}.decoder.mask_predictor.mask_embedder.\1.0.\2",
    ),
    # CropFormer has the same criterion twice.
    r"criterion(?:_2d)?.empty_weight": ("criterion.empty_weight",),
}
_MAKE_3D = "sem_seg_head.predictor.make_3d"
_FUSION_RULES: dict[str, tuple[str, ...]] = {
    rf"{_MAKE_3D}.enc_crosattn_3d.N.multihead_attn.(\S+)": (r"layers.\1.cross_attention.\2",),
    rf"{_MAKE_3D}.enc_crosattn_3d.N.norm.W": (r"layers.\1.cross_norm.\2",),
    rf"{_MAKE_3D}.enc_selfattn_3d.N.self_attn.(\S+)": (r"layers.\1.self_attention.\2",),
    rf"{_MAKE_3D}.enc_selfattn_3d.N.norm.W": (r"layers.\1.self_norm.\2",),
    rf"{_MAKE_3D}.enc_ffn_3d.N.linear([12]).W": (r"layers.\1.linear\2.\3",),
    rf"{_MAKE_3D}.enc_ffn_3d.N.norm.W": (r"layers.\1.linear_norm.\2",),
}
_LEFT_OUT: dict[str, str] = {
    r"backbone.layers.N.blocks.N.attn.relative_position_index": "follows from the window's size",
    r"criterion_3d.empty_weight": "of the loss, and the same as criterion_2d.empty_weight",
    r"pixel_(?:mean|std)": "set in entity_input",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class RenamedWeights:
    """Published weights under our names."""

    network: dict[str, Tensor] = field(default_factory=dict)
    """Of transformers' Mask2Former, names as in its files."""
    fusion: dict[str, Tensor] = field(default_factory=dict)
    """Of `CropFusion`; empty for a Mask2Former."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Published names that are not needed, and why."""


def rename_weights(published: Mapping[str, Tensor]) -> RenamedWeights:
    """Give every published tensor its name or names; tensors of several names are views.

    Raises:
        DataError: A name that no rule knows, or rows that cannot be shared out.
    """
    renamed = RenamedWeights()
    for name, tensor in published.items():
        if targets := _apply(_COMPILED_RULES, name):
            into = renamed.network
        elif targets := _apply(_COMPILED_FUSION_RULES, name):
            into = renamed.fusion
        elif why := _apply(_COMPILED_LEFT_OUT, name):
            renamed.left_out[name] = why[0]
            continue
        else:
            raise DataError(
                f"{name}: expected a weight of EntitySeg's Mask2Former or CropFormer with a Swin "
                "backbone, got a name that is none"
            )
        if len(targets) > 1 and len(tensor) % len(targets):
            raise DataError(
                f"{name}: expected rows for {len(targets)} equal parts, got {len(tensor)}"
            )
        into.update(zip(targets, tensor.chunk(len(targets)), strict=True))
    return renamed


def _compile(
    rules: Mapping[str, tuple[str, ...]],
) -> list[tuple[re.Pattern[str], tuple[str, ...]]]:
    compiled = []
    for name, targets in rules.items():
        pattern = name.replace(".", r"\.").replace("N", r"(\d+)").replace("W", "(weight|bias)")
        compiled.append((re.compile(pattern), targets))
    return compiled


def _apply(rules: list[tuple[re.Pattern[str], tuple[str, ...]]], name: str) -> tuple[str, ...]:
    for pattern, targets in rules:
        if match := pattern.fullmatch(name):
            return tuple(match.expand(target) for target in targets)
    return ()


_COMPILED_RULES = _compile(_RULES)
_COMPILED_FUSION_RULES = _compile(_FUSION_RULES)
_COMPILED_LEFT_OUT = _compile({name: (why,) for name, why in _LEFT_OUT.items()})
