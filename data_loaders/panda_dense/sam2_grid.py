"""Masks of everything in a picture from a grid of points, by SAM 2: the ablation of EntitySeg.

The rules are those of `SAM2AutomaticMaskGenerator` without crops (facebookresearch/sam2 at 2b90b9f,
sam2/automatic_mask_generator.py, `_process_crop` and `_process_batch`): three masks per point;
those kept that are predicted to be good (IoU > 0.8) and hardly change with the threshold
(stability >= 0.95); of masks whose boxes overlap by more than 0.7 the best predicted one. Its
removal of small regions is off by default there, and `mask_cleaning` comes later here.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64, UInt8, UInt16
from torch import Tensor
from torch.nn.functional import interpolate

from data_loaders.panda_dense.models import Dtype, ModelFacts, Pieces
from data_loaders.panda_dense.sam2_inputs import (
    LoadedSam2,
    grid_points,
    load_sam2,
    prepare_picture,
    scale_points,
)
from data_loaders.schema import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class Sam2GridSettings:
    """Which model, which grid, and which masks are good enough."""

    weights: str = "facebook/sam2.1-hiera-large"
    """Folder or hub id; Meta chose the thresholds below for the large model."""
    dtype: Dtype | None = None
    """Of weights and activations; null = bf16 on a GPU, fp32 on a CPU."""
    reading: Literal["masks", "points"] = "masks"
    """What 'an 8x8 grid' means. masks: automatic masks of the first frame, which are then carried
    on; points: each grid point is an object of its own from the start, without masks (stage 3 has
    nothing to do then, see `Sam2Propagator.propagate_points`)."""
    points_per_side: int = 8
    """Points per row and rows: 8 or 12 in the paper's ablation."""
    least_iou: float = 0.8
    """Predicted IoU that a mask must exceed; that of Meta's code."""
    least_stability: float = 0.95
    """Stability that a mask must reach; that of Meta's code."""
    stability_offset: float = 1.0
    """How far the threshold of the logits is moved up and down for it; that of Meta's code."""
    most_box_overlap: float = 0.7
    """IoU of boxes above which two masks are the same; that of Meta's code."""
    points_per_pass: int = 64
    """Points decoded together, three masks each; that of Meta's code. About 10 MiB each at
    480x720."""


def check_sam2_grid(settings: Sam2GridSettings, *, section: str) -> None:
    """Check the values.

    Raises:
        DataError: A value out of its range, naming `section` and the field.
    """
    if not settings.weights:
        raise DataError(f"{section}.weights: expected a folder or hub id, got ''")
    choices = {"dtype": (None, "fp32", "bf16", "fp16"), "reading": ("masks", "points")}
    for name, known in choices.items():
        value = getattr(settings, name)
        if value not in known:
            raise DataError(f"{section}.{name}: expected one of {known}, got {value!r}")
    for name, most in {"points_per_side": 255, "points_per_pass": 65535}.items():
        value = getattr(settings, name)
        if not 1 <= value <= most:
            raise DataError(f"{section}.{name}: expected 1..{most}, got {value}")
    for name in ("least_iou", "least_stability", "most_box_overlap"):
        value = getattr(settings, name)
        if not 0 <= value <= 1:
            raise DataError(f"{section}.{name}: expected 0..1, got {value}")
    if settings.stability_offset < 0:
        raise DataError(
            f"{section}.stability_offset: expected >= 0, got {settings.stability_offset}"
        )


class Sam2Grid:
    """Automatic masks of single pictures.

    Args:
        loaded: The image model.
        settings: Grid and thresholds.
        device: Where it runs.
    """

    def __init__(
        self, loaded: LoadedSam2, *, settings: Sam2GridSettings, device: torch.device
    ) -> None:
        self.facts: ModelFacts = loaded.facts
        self._loaded = loaded
        self._settings = settings
        self.pieces = Pieces(settings.points_per_pass)
        self._device = device

    @classmethod
    def load(
        cls,
        settings: Sam2GridSettings,
        *,
        device: torch.device,
        section: str = "entities.sam2_grid",
    ) -> "Sam2Grid":
        """Load the weights.

        Args:
            settings: Which weights, and how they are used.
            device: Where it runs.
            section: Of the configuration, for messages.

        Raises:
            ValueError: No weights, or they do not fit; names `section`.weights.
        """
        loaded = load_sam2(
            "image",
            settings.weights,
            key=f"{section}.weights",
            dtype=settings.dtype,
            device=device,
        )
        return cls(loaded, settings=settings, device=device)

    @torch.inference_mode()
    def segment(self, frame: UInt8[np.ndarray, "h w 3"]) -> UInt16[np.ndarray, "h w"]:
        """Masks of a picture that do not overlap.

        Args:
            frame: 0..255.

        Returns:
            Ids from 1 by falling predicted IoU, which also says who has a pixel that two masks
            claim; 0 = no mask.
        """
        height, width = frame.shape[:2]
        masks, scores = self._candidates(frame)
        if not len(masks):
            return np.zeros((height, width), np.uint16)
        boxes = mask_boxes(masks)
        chosen = suppress_boxes(boxes, scores=scores, most_overlap=self._settings.most_box_overlap)
        return paint_masks(masks[chosen])

    def _candidates(
        self, frame: UInt8[np.ndarray, "h w 3"]
    ) -> tuple[Bool[np.ndarray, "n h w"], Float32[np.ndarray, "n"]]:
        """Masks that are good enough, point by point, and their predicted IoU."""
        settings, size = self._settings, self._loaded.size
        height, width = frame.shape[:2]
        picture = prepare_picture(frame, size=size).to(self._device, self._loaded.dtype)
        features = self._loaded.model.get_image_embeddings(picture[None])
        grid = grid_points(settings.points_per_side, height=height, width=width)
        points = scale_points(grid, height=height, width=width, size=size).to(self._device)
        masks, scores = [], []
        for some in points.split(self.pieces.size):
            found = self._loaded.model(
                image_embeddings=features,
                input_points=some[None, :, None],
                input_labels=torch.ones(1, len(some), 1, dtype=torch.int32, device=self._device),
                multimask_output=True,
            )
            # Good ones only are enlarged: the rules are the same in any order.
            iou = found.iou_scores.float().flatten()
            good = iou > settings.least_iou
            logits = interpolate(
                found.pred_masks[0].float().flatten(0, 1)[good][:, None],
                size=(height, width),
                mode="bilinear",
                align_corners=False,
            )[:, 0]
            stable = stability(logits, offset=settings.stability_offset) >= settings.least_stability
            masks.append((logits[stable] > 0).cpu().numpy())
            scores.append(iou[good][stable].cpu().numpy())
        return np.concatenate(masks), np.concatenate(scores)


def stability(logits: Float[Tensor, "n h w"], *, offset: float) -> Float32[Tensor, "n"]:
    """IoU of the masks above +offset and above -offset; nan where both are empty.

    `calculate_stability_score` of facebookresearch/sam2.
    """
    within = (logits > offset).flatten(1).sum(dim=1)
    around = (logits > -offset).flatten(1).sum(dim=1)
    return within / around


def mask_boxes(masks: Bool[np.ndarray, "n h w"]) -> Int64[np.ndarray, "n 4"]:
    """First column, first row, last column, last row of each mask; zeros for an empty one."""
    sides = []
    across: tuple[Any, Any] = (masks.any(axis=1), masks.any(axis=2))
    for inside in across:
        length = inside.shape[1]
        first = inside.argmax(axis=1)
        last = length - 1 - inside[:, ::-1].argmax(axis=1)
        sides.append(np.where(inside.any(axis=1), [first, last], 0))
    (left, right), (top, bottom) = sides
    return np.stack([left, top, right, bottom], axis=1).astype(np.int64)


def suppress_boxes(
    boxes: Int64[np.ndarray, "n 4"], *, scores: Float32[np.ndarray, "n"], most_overlap: float
) -> Int64[np.ndarray, "k"]:
    """Non-maximum suppression: from the best score down, drop what overlaps something better.

    As torchvision's `nms`: a box's area is (right - left) (bottom - top), so that of a line is 0,
    which nothing overlaps; of equal scores the earlier box is the better one.

    Args:
        boxes: Left, top, right, bottom.
        scores: Higher is better.
        most_overlap: IoU above which the worse of two boxes goes.

    Returns:
        Places of the boxes that stay, by falling score.
    """
    edges = boxes.astype(np.float64)
    areas = (edges[:, 2] - edges[:, 0]) * (edges[:, 3] - edges[:, 1])
    left = np.argsort(-scores, kind="stable")
    kept = []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        low = np.maximum(edges[best, :2], edges[left, :2])
        high = np.minimum(edges[best, 2:], edges[left, 2:])
        shared = np.maximum(high - low, 0).prod(axis=1)
        union = areas[best] + areas[left] - shared
        # Without a division: two lines have no union.
        left = left[shared <= most_overlap * union]
    return np.array(kept, np.int64)


def paint_masks(masks: Bool[np.ndarray, "n h w"]) -> UInt16[np.ndarray, "h w"]:
    """Masks, best first, as one map of ids.

    Returns:
        Ids from 1 in the order of the masks; where masks overlap, the earlier one's. A mask that
        better ones cover completely gets no id, and leaves no gap in the numbers.
    """
    ids = np.zeros(masks.shape[1:], np.uint16)
    number = 0
    for mask in masks:
        free = mask & (ids == 0)
        if free.any():
            number += 1
            ids[free] = number
    return ids
