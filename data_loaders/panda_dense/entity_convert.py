"""EntitySeg's published checkpoints to a folder that transformers and `mask2former` open.

The files are `model_final.pth` of detectron2. What the network is like is read from the shapes; the
few numbers that shapes do not tell are those of the published configurations.
"""

import json
import pickle
import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from data_loaders.panda_dense.entity_keys import rename_weights
from data_loaders.panda_dense.mask2former import ABOUT_FILE, FUSION_FILE, load_network
from data_loaders.schema import DataError
from sat_udpdiff.encoders.source import WeightSource

LICENSE = "CC BY-NC 4.0"
"""Of code and models, by Entityv2/README.md of github.com/qqlu/Entity."""

_TABLE = "backbone.layers.{}.blocks.0.attn.relative_position_bias_table"
_PIXELS = "sem_seg_head.pixel_decoder"
_ENCODER = f"{_PIXELS}.transformer.encoder.layers"
_PREDICTOR = "sem_seg_head.predictor"
_ZIP = b"PK\x03\x04"
# Of deformable attention; transformers has them fixed as well.
_LEVELS, _POINTS = 3, 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversion:
    """What a checkpoint was, and what became of it."""

    network: Literal["mask2former", "cropformer"]
    backbone: str
    """Such as 'Swin-T, window 7'."""
    queries: int
    """Most entities of a frame."""
    tensors: int
    """Published tensors that were used."""
    left_out: dict[str, str]
    """Published tensors that are not needed, and why."""
    filled: dict[str, str]
    """Tensors that were not published, and with what they were filled."""

    def lines(self) -> list[str]:
        """What to print."""
        reasons = sorted(set(self.left_out.values()))
        counts = {why: list(self.left_out.values()).count(why) for why in reasons}
        return [
            f"{self.network}, {self.backbone}, {self.queries} queries: {self.tensors} tensors",
            *(f"left out {count}: {why}" for why, count in counts.items()),
            *(f"filled {name}: {what}" for name, what in self.filled.items()),
            f"licence of the weights: {LICENSE}",
        ]


def convert_checkpoint(source: Path, output: Path) -> Conversion:
    """Convert a published checkpoint.

    The folder gets its name after transformers has opened it and found every tensor in it.

    Args:
        source: `model_final.pth` of a Mask2Former or CropFormer with a Swin backbone.
        output: Folder to make: config.json, model.safetensors, entities.json, and for a CropFormer
            cropformer.safetensors.

    Raises:
        DataError: The folder is there already, or the file is no such checkpoint; one line.
    """
    if output.exists():
        raise DataError(f"{output}: expected a folder that is not there yet, got one that is")
    published = read_checkpoint(source)
    partial = output.with_name(f"{output.name}.{secrets.token_hex(6)}.partial")
    try:
        conversion = _write(partial, published=published, source=source)
        try:
            load_network(WeightSource(name=str(partial), subfolder="", is_local=True))
        except (ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise DataError(f"{source}: expected a complete network, got: {reason}") from error
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return conversion


def _write(folder: Path, *, published: Mapping[str, Tensor], source: Path) -> Conversion:
    from safetensors.torch import save_file

    from sat_udpdiff.encoders.identity import file_sha256

    try:
        config, backbone = recognise(published)
        renamed = rename_weights(published)
    except DataError as error:
        raise DataError(f"{source}: {error}") from None
    width = config.backbone_config.hidden_size
    unused_norm = "model.pixel_level_module.encoder.swin.layernorm"
    filled = {
        f"{unused_norm}.weight": torch.ones(width),
        f"{unused_norm}.bias": torch.zeros(width),
    }
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    # Copies of what shares memory: safetensors stores no views.
    network = {name: tensor.clone() for name, tensor in (renamed.network | filled).items()}
    save_file(network, folder / "model.safetensors", metadata={"format": "pt"})
    if renamed.fusion:
        fusion = {name: tensor.contiguous() for name, tensor in renamed.fusion.items()}
        save_file(fusion, folder / FUSION_FILE)
    kind = "cropformer" if renamed.fusion else "mask2former"
    about = {"network": kind, "license": LICENSE, "source_sha256": file_sha256(source)}
    (folder / ABOUT_FILE).write_text(json.dumps(about, indent=2) + "\n")
    return Conversion(
        network=kind,
        backbone=backbone,
        queries=config.num_queries,
        tensors=len(published) - len(renamed.left_out),
        left_out=renamed.left_out,
        filled=dict.fromkeys(filled, "the identity; no result goes through it"),
    )


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Weights of a detectron2 checkpoint; nothing in the file can run.

    Args:
        path: Written by `torch.save`: {'model': {name: tensor or array}, ...}, or the inner
            dictionary by itself.

    Raises:
        DataError: Damaged, asks for code, or no weights in it.
    """
    try:
        with path.open("rb") as file:
            is_zip = file.read(len(_ZIP)) == _ZIP
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        with torch.serialization.safe_globals(_numpy_globals()):
            # Mapped, so that the optimizer's state beside the weights is not read. Files of torch
            # before 1.6 are no zip archives and cannot be mapped.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        raise DataError(f"{path}: {_reason(error)}") from None
    weights = content.get("model", content) if isinstance(content, dict) else content
    if not isinstance(weights, dict) or not weights:
        raise DataError(f"{path}: expected named weights, got {type(weights).__name__}")
    named = {}
    for name, value in weights.items():
        tensor = torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise DataError(f"{path}: {name}: expected a tensor, got {type(value).__name__}")
        named[name] = tensor.float() if tensor.is_floating_point() else tensor
    return named


def _reason(error: Exception) -> str:
    if wanted := re.search(r"(?:GLOBAL|class|function) `?([\w.]+)", str(error)):
        return (
            f"expected weights only, got a pickle that asks for {wanted[1]}, which could run "
            "anything; save its 'model' by itself with torch.save where you trust it"
        )
    return "expected a file of torch.save, got one that is cut short or something else"


def _numpy_globals() -> list[Any]:
    """What makes an array of plain numbers, under the names that old and new numpy write."""
    reconstruct: Any = np.zeros(0).__reduce__()[0]
    scalar: Any = np.float64(0).__reduce__()[0]
    kinds = [type(np.dtype(name)) for name in ("float16", "float32", "float64", "int64", "int32")]
    return [
        (reconstruct, "numpy.core.multiarray._reconstruct"),
        (reconstruct, "numpy._core.multiarray._reconstruct"),
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        np.ndarray,
        np.dtype,
        *kinds,
    ]


def recognise(published: Mapping[str, Tensor]) -> tuple[Any, str]:
    """Configuration of transformers, and name of the backbone, by the shapes of the weights.

    Heads are counted where deformable attention shows them; pre-norm, activations and the rest are
    as in all published configurations.

    Raises:
        DataError: A backbone other than Swin, or weights that are not there.
    """
    if any("gnconv" in name for name in published):
        raise DataError(
            "expected a Swin backbone, got HorNet, which transformers lacks; take a swin_tiny or "
            "swin_large checkpoint"
        )
    if "backbone.patch_embed.proj.weight" not in published:
        first = min(published)
        raise DataError(f"expected a Swin backbone, got none; the first weight is {first}")
    try:
        return _configuration(published)
    except KeyError as error:
        raise DataError(f"expected the weight {error.args[0]}, got none of that name") from None


def _configuration(published: Mapping[str, Tensor]) -> tuple[Any, str]:
    from transformers import Mask2FormerConfig, SwinConfig

    def size(name: str, dim: int) -> int:
        return published[name].shape[dim]

    def count(pattern: str) -> int:
        found = (re.match(pattern, name) for name in published)
        return 1 + max((int(match[1]) for match in found if match), default=-1)

    embed = size("backbone.patch_embed.proj.weight", 0)
    stages = count(r"backbone\.layers\.(\d+)\.")
    depths = [count(rf"backbone\.layers\.{stage}\.blocks\.(\d+)\.") for stage in range(stages)]
    window = (round(size(_TABLE.format(0), 0) ** 0.5) + 1) // 2
    fc1 = "backbone.layers.0.blocks.0.mlp.fc1.weight"
    # An argument of all backbones that pyright does not see in the one.
    features: dict[str, Any] = {"out_features": [f"stage{stage + 1}" for stage in range(stages)]}
    swin = SwinConfig(
        patch_size=size("backbone.patch_embed.proj.weight", 3),
        embed_dim=embed,
        depths=depths,
        num_heads=[size(_TABLE.format(stage), 1) for stage in range(stages)],
        window_size=window,
        mlp_ratio=size(fc1, 0) / size(fc1, 1),
        drop_path_rate=0.0,
        **features,
    )
    labels = size(f"{_PREDICTOR}.class_embed.weight", 0) - 1
    names = {number: "entity" if labels == 1 else str(number) for number in range(labels)}
    config = Mask2FormerConfig(
        backbone_config=swin,
        feature_size=size(f"{_PIXELS}.input_proj.0.0.weight", 0),
        mask_feature_size=size(f"{_PIXELS}.mask_features.weight", 0),
        hidden_dim=size(f"{_PREDICTOR}.query_feat.weight", 1),
        num_queries=size(f"{_PREDICTOR}.query_feat.weight", 0),
        encoder_layers=count(re.escape(_ENCODER) + r"\.(\d+)\."),
        encoder_feedforward_dim=size(f"{_ENCODER}.0.linear1.weight", 0),
        # transformers counts the prediction before the first layer as well.
        decoder_layers=1 + count(rf"{_PREDICTOR}\.transformer_ffn_layers\.(\d+)\."),
        dim_feedforward=size(f"{_PREDICTOR}.transformer_ffn_layers.0.linear1.weight", 0),
        num_attention_heads=size(f"{_ENCODER}.0.self_attn.attention_weights.weight", 0)
        // (_LEVELS * _POINTS),
        id2label=names,
        label2id={name: number for number, name in names.items()},
    )
    config.architectures = ["Mask2FormerForUniversalSegmentation"]
    known = {"96 2-2-6-2": "Swin-T", "192 2-2-18-2": "Swin-L"}
    found = f"{embed} {'-'.join(map(str, depths))}"
    return config, f"{known.get(found, 'Swin ' + found)}, window {window}"
