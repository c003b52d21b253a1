"""First-frame entities by EntitySeg: Mask2Former or CropFormer with the published weights.

Inputs, masks and scores are those of the published test (github.com/qqlu/Entity, Entityv2/
CropFormer), so that its numbers and its threshold hold. Weights come from `entity_convert`.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor
from torch.nn import functional

from data_loaders.geometry import CropBox, crop
from data_loaders.panda_dense.cropformer import (
    NUM_VIEWS,
    CropFormer,
    CropFusion,
    fuse_views,
    view_boxes,
)
from data_loaders.panda_dense.entity_input import input_size, network_input, resize_frame
from data_loaders.panda_dense.entity_masks import FirstFrame, can_be_kept, paint_entities
from data_loaders.panda_dense.mask2former_parts import Prediction, predict_whole
from data_loaders.panda_dense.models import (
    Dtype,
    ModelFacts,
    Pieces,
    find_weights,
    library_version,
    load_or_explain,
    weights_revision,
)
from data_loaders.schema import DataError
from sat_udpdiff.encoders.source import DTYPES, WeightSource

FUSION_FILE = "cropformer.safetensors"
"""Weights of CropFormer beyond Mask2Former's; a folder without it holds a Mask2Former."""
ABOUT_FILE = "entities.json"
"""Where the converter says what the weights are."""
GET_WEIGHTS = (
    "take a model_final.pth from CropFormer_model/Entity_Segmentation of the data set "
    "qqlu1992/Adobe_EntitySeg of the Hugging Face hub (CC BY-NC 4.0) and convert it"
)
# transformers 5 makes a last norm of Swin that no feature map goes through; 4 keeps the index of
# the position table in its files. Neither is missed.
_HARMLESS = ("swin.layernorm.weight", "swin.layernorm.bias", "relative_position_index")


@dataclass(frozen=True, kw_only=True, slots=True)
class Mask2FormerSettings:
    """First-frame entities by EntitySeg."""

    weights: str = ""
    """Folder that the converter wrote, of a Mask2Former or a CropFormer, or a Mask2Former's hub id.
    No default: the weights are published in another format and for non-commercial use only."""
    dtype: Dtype = "fp32"
    """Of the backbone, the rest being fp32. fp32 as in the published test: it is one frame per
    clip, so that half precision saves little."""
    min_score: float = 0.5
    """Entities with a lower score are dropped, 0..1; 0.5 as in EntitySeg's demo, whose scores are
    at most 0.73 (see `entity_masks.paint_entities`)."""
    min_area: float = 2e-4
    """Least share of the frame, 0..1, that is an entity: about one 8x8 cell of the video codec at
    480x720."""
    most_entities: int | None = None
    """Per frame, the surest first; None = no limit, which is 100 with the published weights: what a
    network has queries."""
    short_side: int = 800
    """Frames are resized to this, pixels; as in the published test."""
    long_side: int = 1333
    """Or to less, so that the longer side is not above this, pixels; as in the published test."""
    views_per_pass: int = NUM_VIEWS
    """CropFormer: how many of the five views go through the backbone at a time; halved when the
    device is full."""


def check_mask2former(settings: Mask2FormerSettings, *, section: str) -> None:
    """Refuse values that cannot work.

    Raises:
        DataError: Names the setting, what was expected and what came.
    """
    most = settings.most_entities
    checks = [
        ("weights", "a folder or a hub id; " + GET_WEIGHTS, bool(settings.weights)),
        ("min_score", "0..1", 0 <= settings.min_score <= 1),
        ("min_area", "0 or more, and below 1", 0 <= settings.min_area < 1),
        ("most_entities", "None or 1..65535", most is None or 1 <= most <= 65535),
        ("short_side", "32 or more", settings.short_side >= 32),
        ("long_side", "short_side or more", settings.long_side >= settings.short_side),
        ("views_per_pass", "1 or more", settings.views_per_pass >= 1),
    ]
    for field, expected, holds in checks:
        if not holds:
            value = getattr(settings, field)
            raise DataError(f"{section}.{field}: expected {expected}, got {value!r}")


class EntitySegmenter:
    """Frames to entities.

    Args:
        network: A Mask2Former of transformers, or a CropFormer around one; moved to the device.
        settings: Numbers.
        facts: What the weights are.
        device: Where it runs.
    """

    def __init__(
        self,
        network: Any,
        *,
        settings: Mask2FormerSettings,
        facts: ModelFacts,
        device: torch.device,
    ):
        self.facts = facts
        self._settings = settings
        self._device = device
        has_views = isinstance(network, CropFormer)
        self.pieces = Pieces(min(NUM_VIEWS, settings.views_per_pass) if has_views else 1)
        self._network = network.eval().requires_grad_(False).to(device)
        plain = network.network if isinstance(network, CropFormer) else network
        plain.model.pixel_level_module.encoder.to(DTYPES[settings.dtype])

    @classmethod
    def load(
        cls,
        settings: Mask2FormerSettings,
        *,
        device: torch.device,
        section: str = "entities",
    ) -> "EntitySegmenter":
        """Load the weights that the settings name.

        Raises:
            ValueError: There are none, or they do not fit; one line that says how to get them.
        """
        key = f"{section}.weights"
        source = find_weights(settings.weights, key=key, get=GET_WEIGHTS)
        network = load_or_explain(source, lambda: load_network(source), key=key, get=GET_WEIGHTS)
        facts = _facts(settings, source, network)
        return cls(network, settings=settings, facts=facts, device=device)

    def segment(self, frames: UInt8[np.ndarray, "b h w 3"]) -> list[FirstFrame]:
        """Entities of each frame, which is run by itself: no frame's result depends on another.

        Args:
            frames: RGB, 0..255.

        Raises:
            DataError: The network's scores are no numbers: fp16 was too narrow, or bad weights.
        """
        with torch.inference_mode():
            return [self._segment_frame(frame) for frame in frames]

    def _segment_frame(self, frame: UInt8[np.ndarray, "h w 3"]) -> FirstFrame:
        settings = self._settings
        height, width = frame.shape[:2]
        whole = CropBox(top=0, left=0, height=height, width=width)
        is_cropped = isinstance(self._network, CropFormer)
        boxes = view_boxes(height=height, width=width) if is_cropped else (whole,)
        views = [self._resized(crop(frame[None], box=box)[0]) for box in boxes]
        pixels = network_input(views, device=self._device)
        prediction = self._predict(pixels)
        scores = prediction.class_logits.float().softmax(-1)[:, :-1].sum(-1)
        # Checked here: comparisons with NaN are false, and the frame would seem to have no entity.
        if not bool(torch.isfinite(scores).all()):
            raise DataError(f"entity scores: expected numbers, got none in {settings.dtype}")
        class_scores = scores.cpu().numpy()
        candidates = np.flatnonzero(can_be_kept(class_scores, min_score=settings.min_score))
        if not len(candidates):
            return FirstFrame(ids=np.zeros((height, width), np.uint16), scores=())
        chosen = torch.from_numpy(candidates).to(self._device)
        probabilities = [
            mask_probabilities(
                logits[chosen], padded=pixels.shape[-2:], size=view.shape[:2], target=box
            )
            for logits, view, box in zip(prediction.mask_logits, views, boxes, strict=True)
        ]
        return paint_entities(
            class_scores[candidates],
            fuse_views(probabilities, boxes=boxes).cpu().numpy(),
            min_score=settings.min_score,
            min_area=settings.min_area,
            most=settings.most_entities,
        )

    def _resized(self, view: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h2 w2 3"]:
        height, width = view.shape[:2]
        size = input_size(
            height=height,
            width=width,
            short_side=self._settings.short_side,
            long_side=self._settings.long_side,
        )
        return resize_frame(view, size=size)

    def _predict(self, pixels: Float32[Tensor, "v 3 h w"]) -> Prediction:
        if isinstance(self._network, CropFormer):
            return self._network(pixels, views_per_pass=self.pieces.size)
        return predict_whole(self._network, pixels)


def mask_probabilities(
    logits: Float32[Tensor, "q h w"],
    *,
    padded: tuple[int, ...],
    size: tuple[int, ...],
    target: CropBox,
) -> Float32[Tensor, "q height width"]:
    """Masks at the size of the view in its frame, the padding cut away; two resizes, as published.

    Args:
        logits: Of the network, of the padded view.
        padded: Height and width of the network's input.
        size: Of the view in it.
        target: The view in its frame.

    Returns:
        Probabilities, 0..1.
    """
    full = functional.interpolate(
        logits[None], size=(padded[0], padded[1]), mode="bilinear", align_corners=False
    )
    full = functional.interpolate(
        full[..., : size[0], : size[1]],
        size=(target.height, target.width),
        mode="bilinear",
        align_corners=False,
    )
    return full[0].sigmoid()


def load_network(source: WeightSource) -> Any:
    """A Mask2Former of transformers in fp32, or a `CropFormer` where the folder has its file.

    Raises:
        ValueError: Weights that do not fit the configuration.
        OSError: Files are missing.
    """
    from transformers import Mask2FormerForUniversalSegmentation

    loaded: Any = Mask2FormerForUniversalSegmentation.from_pretrained(
        source.name,
        subfolder=source.subfolder,
        local_files_only=source.is_local,
        output_loading_info=True,
        dtype=torch.float32,
    )
    network, info = loaded
    # transformers fills what it does not find with random numbers, and only logs that.
    keys = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
    wrong = sorted(str(key) for key in keys if not str(key).endswith(_HARMLESS))
    if wrong:
        raise ValueError(f"{len(wrong)} tensors do not fit its config.json, first {wrong[0]}")
    fusion_file = Path(source.name) / source.subfolder / FUSION_FILE
    if not (source.is_local and fusion_file.is_file()):
        return network
    return CropFormer(network, fusion=_load_fusion(fusion_file, config=network.config))


def _load_fusion(path: Path, *, config: Any) -> CropFusion:
    from safetensors.torch import load_file

    weights = load_file(path)
    fusion = CropFusion(
        num_layers=1 + max(int(name.split(".")[1]) for name in weights),
        dim=config.hidden_dim,
        # The published configuration has 8 here and there.
        num_heads=config.num_attention_heads,
        hidden=len(weights["layers.0.linear1.bias"]),
    )
    fusion.load_state_dict(weights)
    return fusion


def _facts(settings: Mask2FormerSettings, source: WeightSource, network: Any) -> ModelFacts:
    named = Path(settings.weights).expanduser()
    about = Path(source.name) / source.subfolder / ABOUT_FILE
    license_name = "see the model card"
    if source.is_local and about.is_file():
        license_name = str(json.loads(about.read_text())["license"])
    plain = network.network if isinstance(network, CropFormer) else network
    return ModelFacts(
        backend="model",
        model=named.resolve().name if named.is_dir() else settings.weights,
        revision=weights_revision(source, commit=getattr(plain.config, "_commit_hash", None)),
        version=library_version("transformers"),
        license=license_name,
    )
