"""DINO ViT-B/16 and CLIP ViT-B/32 by transformers, from either form in which they are published."""

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from data_loaders.panda_dense.load_parts import without_bars
from sat_udpdiff.evaluation.feature_weights import FeatureWeights

_PATCH = 16
# OpenAI publishes CLIP as a TorchScript archive, which is a program: that one alone is opened.
OPENAI_SHA256 = "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"

_DINO_TOP = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
}
_DINO_BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_CLIP_TOP = {
    "class_embedding": "vision_model.embeddings.class_embedding",
    "positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "conv1": "vision_model.embeddings.patch_embedding",
    "ln_pre": "vision_model.pre_layrnorm",  # sic, in transformers
    "ln_post": "vision_model.post_layernorm",
}
_CLIP_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def dino_positions(
    table: Float[Tensor, "1 n d"], *, height: int, width: int
) -> Float[Tensor, "1 m d"]:
    """Position embeddings for a picture, by the formula in DINO's own code.

    It passes a scale with 0.1 patches added, where timm and transformers pass the size. The sampled
    points differ, and features by up to half a percent. A square picture of the trained size takes
    the table as it is; one of as many patches that is not square does not.

    Args:
        table: The trained embeddings: of the class token, then row by row of a square grid.
        height: Of the picture, pixels.
        width: Of the picture, pixels.
    """
    side = int((table.shape[1] - 1) ** 0.5)
    rows, columns = height // _PATCH, width // _PATCH
    if rows * columns == side * side and height == width:
        return table
    grid = table[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    scale = ((rows + 0.1) / side, (columns + 0.1) / side)
    resized = interpolate(grid, scale_factor=scale, mode="bicubic")  # (1, d, rows, columns)
    return torch.cat([table[:, :1], resized.flatten(2).transpose(1, 2)], dim=1)


class _Dino(nn.Module):
    """Normalised pixels to the CLS token after the last norm."""

    def __init__(self, vit: Any) -> None:
        super().__init__()
        self.vit = vit
        vit.embeddings.interpolate_pos_encoding = self._positions

    def _positions(self, tokens: Tensor, height: int, width: int) -> Tensor:
        table = self.vit.embeddings.position_embeddings
        return dino_positions(table, height=height, width=width)

    def forward(self, pixels: Float[Tensor, "t 3 h w"]) -> Float[Tensor, "t d"]:
        return self.vit(pixels, interpolate_pos_encoding=True).last_hidden_state[:, 0]


class _Clip(nn.Module):
    """Normalised pixels to the projected image embedding."""

    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, pixels: Float[Tensor, "t 3 h w"]) -> Float[Tensor, "t d"]:
        return self.clip(pixel_values=pixels).image_embeds


def load_dino(weights: FeatureWeights) -> nn.Module:
    """DINO ViT-B/16 in fp32, from facebookresearch's file or transformers' folder.

    Raises:
        ValueError: It cannot be read or is another network.
    """
    from transformers import ViTConfig, ViTModel

    # ViT-B/16 is the default; the eps is DINO's, where published config files say 1e-12.
    config = ViTConfig(layer_norm_eps=1e-6)
    state = None if weights.path.is_dir() else vit_state(_read_state(weights))
    return _Dino(_open(ViTModel, weights, config=config, state=state, add_pooling_layer=False))


def load_clip(weights: FeatureWeights) -> nn.Module:
    """CLIP ViT-B/32's picture side in fp32, from transformers' folder or OpenAI's file.

    Raises:
        ValueError: It cannot be read or is another network.
    """
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    # ViT-B/32 with quick_gelu is the default.
    config = CLIPVisionConfig()
    state = None if weights.path.is_dir() else clip_state(_read_state(weights))
    return _Clip(_open(CLIPVisionModelWithProjection, weights, config=config, state=state))


def vit_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take facebookresearch's names of a DINO ViT to those of transformers' files.

    Names that are not DINO's stay, to be found wanting.
    """
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        block = _block_of(name, prefix="blocks.")
        if block is None:
            renamed[_renamed(name, names=_DINO_TOP)] = value
            continue
        number, inner = block
        stem = f"encoder.layer.{number}."
        if inner.startswith("attn.qkv."):
            end = inner.removeprefix("attn.qkv.")
            for part, third in zip(("query", "key", "value"), value.chunk(3), strict=True):
                renamed[f"{stem}attention.attention.{part}.{end}"] = third
        else:
            renamed[stem + _renamed(inner, names=_DINO_BLOCK)] = value
    return renamed


def clip_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take OpenAI's names of CLIP's picture side to those of transformers' files.

    The text side is left out. Names that are not CLIP's stay, to be found wanting.
    """
    renamed: dict[str, Tensor] = {}
    for full_name, value in state.items():
        if not full_name.startswith("visual."):
            continue
        name = full_name.removeprefix("visual.")
        block = _block_of(name, prefix="transformer.resblocks.")
        if name == "proj":
            renamed["visual_projection.weight"] = value.T
        elif block is None:
            renamed[_renamed(name, names=_CLIP_TOP)] = value
        else:
            number, inner = block
            stem = f"vision_model.encoder.layers.{number}."
            if inner.startswith("attn.in_proj_"):
                end = inner.removeprefix("attn.in_proj_")
                for part, third in zip("qkv", value.chunk(3), strict=True):
                    renamed[f"{stem}self_attn.{part}_proj.{end}"] = third
            else:
                renamed[stem + _renamed(inner, names=_CLIP_BLOCK)] = value
    return renamed


def _block_of(name: str, *, prefix: str) -> tuple[str, str] | None:
    """('3', 'norm1.weight') of 'blocks.3.norm1.weight'; None outside the blocks."""
    if not name.startswith(prefix):
        return None
    number, _, inner = name.removeprefix(prefix).partition(".")
    return number, inner


def _renamed(name: str, *, names: Mapping[str, str]) -> str:
    if name in names:
        return names[name]
    stem, _, end = name.rpartition(".")
    return f"{names[stem]}.{end}" if stem in names else name


def _read_state(weights: FeatureWeights) -> dict[str, Tensor]:
    """Tensors of a published file, in fp32; no code in it is run but OpenAI's own archive's."""
    try:
        if _is_torchscript(weights.path):
            if weights.sha256 != OPENAI_SHA256:
                raise ValueError("a TorchScript archive holds code, and this one is not OpenAI's")
            with warnings.catch_warnings():
                # TorchScript is on its way out of torch, but it is what OpenAI publishes.
                warnings.simplefilter("ignore", DeprecationWarning)
                state = torch.jit.load(str(weights.path), map_location="cpu").state_dict()
        else:
            state = torch.load(weights.path, map_location="cpu", weights_only=True)
    # torch raises what the file makes it raise.
    except Exception as error:
        raise weights.error(error) from error
    if not isinstance(state, Mapping) or not all(torch.is_tensor(v) for v in state.values()):
        raise weights.error("expected a dictionary of tensors")
    return {name: value.float() for name, value in state.items()}


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _open(
    network: Any,
    weights: FeatureWeights,
    *,
    config: Any,
    state: dict[str, Tensor] | None,
    **options: bool,
) -> Any:
    """A network of transformers with all its tensors from a folder, or from `state`."""
    # Given a state, transformers takes the names of its files, whatever the version calls things.
    source = str(weights.path) if state is None else None
    try:
        with without_bars(quiet=True):
            model, info = network.from_pretrained(
                source,
                config=config,
                state_dict=state,
                local_files_only=True,
                output_loading_info=True,
                dtype=torch.float32,
                **options,
            )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise weights.error(error) from error
    wrong = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if wrong:
        raise weights.error(f"{len(wrong)} tensors are missing or of another size, as {wrong[0]!r}")
    return model.eval().requires_grad_(False)
