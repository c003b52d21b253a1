"""Stage `segment`: the entities of the first frame, each pixel of one entity at most."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import cv2
import numpy as np
import torch
from jaxtyping import UInt8, UInt16

from data_loaders.decode import decode_rgb
from data_loaders.panda_dense.entity_masks import FirstFrame
from data_loaders.panda_dense.exact import BACKEND as EXACT
from data_loaders.panda_dense.exact import exact_facts, read_exact
from data_loaders.panda_dense.mask2former import (
    GET_WEIGHTS,
    EntitySegmenter,
    Mask2FormerSettings,
    check_mask2former,
)
from data_loaders.panda_dense.models import ModelFacts, Pieces, require_weights
from data_loaders.panda_dense.sam2_grid import Sam2Grid, Sam2GridSettings, check_sam2_grid
from data_loaders.panda_dense.sam2_inputs import GET_SAM2
from data_loaders.panda_dense.stage import Clip, Dropped, Kept, Outcome, Stage
from data_loaders.schema import DataError

FILE = "png"
"""Ids of the first frame, 16 bits."""


@runtime_checkable
class Segmenter(Protocol):
    """What finds the entities of pictures."""

    facts: ModelFacts
    pieces: Pieces

    def segment(self, frames: UInt8[np.ndarray, "b h w 3"]) -> list[FirstFrame]:
        """Entities of each frame, RGB, 0..255."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentSettings:
    """Entities of the first frame."""

    backend: Literal["model", "classical", "synthetic"] = "model"
    """'classical': superpixels, for machines without weights, not for results; 'synthetic': the
    exact ids of a synthetic source."""
    method: Literal["entityseg", "sam2_grid"] = "entityseg"
    """'entityseg' is the paper's, a Mask2Former or a CropFormer by its weights; 'sam2_grid' is the
    ablation of table 9: SAM 2, prompted by a grid of points."""
    entityseg: Mask2FormerSettings = field(default_factory=Mask2FormerSettings)
    sam2_grid: Sam2GridSettings = field(default_factory=Sam2GridSettings)
    batch_size: int = 4
    """Clips whose first frames are read before the model runs."""

    @property
    def starts_from_points(self) -> bool:
        """Whether the points of the grid are the objects, and this stage finds no masks."""
        is_grid = self.backend == "model" and self.method == "sam2_grid"
        return is_grid and self.sam2_grid.reading == "points"


class SegmentStage(Stage):
    """See the module.

    Args:
        settings: Of the stage.
        device: Where the model runs.
    """

    name, reads = "segment", ("cut",)

    def __init__(self, settings: SegmentSettings, *, device: torch.device) -> None:
        self._settings, self._device = settings, device
        self.batch_size = settings.batch_size
        self._segmenter: Segmenter | None = None

    def settings(self) -> dict[str, Any]:
        """Of the backend that is used."""
        if self._settings.backend != "model":
            return {"backend": self._settings.backend}
        method = self._settings.method
        return {"backend": "model", "method": method, method: asdict(self._method())}

    def _method(self) -> Mask2FormerSettings | Sam2GridSettings:
        return getattr(self._settings, self._settings.method)

    def check(self) -> None:
        """The numbers and the weights of the model."""
        if self._settings.backend == "model":
            check_segmenter(self._settings)

    def load(self) -> None:
        """The model."""
        if self._settings.backend != EXACT and not self._settings.starts_from_points:
            self._segmenter = load_segmenter(self._settings, device=self._device)

    def unload(self) -> None:
        """Let go of the model."""
        self._segmenter = None
        super().unload()

    @property
    def pieces(self) -> Sequence[Pieces]:
        """What goes through the model at once."""
        return [] if self._segmenter is None else [self._segmenter.pieces]

    @property
    def facts(self) -> ModelFacts:
        """What finds the entities."""
        if self._settings.starts_from_points:
            return ModelFacts(backend="model", model="a grid of points")
        return exact_facts() if self._segmenter is None else self._segmenter.facts

    def work(self, clips: Sequence[Clip]) -> list[Outcome]:
        """Entities of each clip's first frame."""
        if self._settings.starts_from_points:
            points = self._settings.sam2_grid.points_per_side**2
            return [Kept(columns={"num_entities": points}) for _ in clips]
        if self._segmenter is None:
            return [_exact(clip) for clip in clips]
        frames = np.stack([_first_frame(clip) for clip in clips])
        return [_outcome(found) for found in self._segmenter.segment(frames)]


def check_segmenter(settings: SegmentSettings) -> None:
    """Check the settings of the model.

    Raises:
        DataError: A number is out of range; names the setting.
        ValueError: There are no such weights; says where they are to be had.
    """
    if settings.method == "entityseg":
        check_mask2former(settings.entityseg, section="segment.entityseg")
        weights, get = settings.entityseg.weights, GET_WEIGHTS
    else:
        check_sam2_grid(settings.sam2_grid, section="segment.sam2_grid")
        weights, get = settings.sam2_grid.weights, GET_SAM2
    if not settings.starts_from_points:
        require_weights(weights, key=f"segment.{settings.method}.weights", get=get)


def load_segmenter(settings: SegmentSettings, *, device: torch.device) -> Segmenter:
    """The segmenter that the settings name.

    Raises:
        ValueError: Its weights cannot be loaded.
    """
    if settings.backend == "classical":
        from data_loaders.panda_dense.classical_entities import ClassicalSegmenter

        return ClassicalSegmenter()
    if settings.method == "entityseg":
        return EntitySegmenter.load(settings.entityseg, device=device, section="segment.entityseg")
    return _GridSegmenter(settings.sam2_grid, device=device)


class _GridSegmenter:
    """SAM 2's automatic masks of several pictures.

    Args:
        settings: Grid and thresholds.
        device: Where it runs.
    """

    def __init__(self, settings: Sam2GridSettings, *, device: torch.device) -> None:
        self._grid = Sam2Grid.load(settings, device=device, section="segment.sam2_grid")
        self.facts = self._grid.facts
        self.pieces = self._grid.pieces

    def segment(self, frames: UInt8[np.ndarray, "b h w 3"]) -> list[FirstFrame]:
        """Masks of each frame; they have no score of an entity, so each is 1."""
        found = [self._grid.segment(frame) for frame in frames]
        return [FirstFrame(ids=ids, scores=(1.0,) * int(ids.max())) for ids in found]


def encode_ids(ids: UInt16[np.ndarray, "h w"]) -> bytes:
    """A PNG of 16 bits."""
    return cv2.imencode(".png", ids)[1].tobytes()


def decode_ids(content: bytes, *, name: str) -> UInt16[np.ndarray, "h w"]:
    """What `encode_ids` wrote.

    Raises:
        DataError: It is damaged.
    """
    ids = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if ids is None or ids.dtype != np.uint16 or ids.ndim != 2:
        raise DataError(f"{name}: expected a gray PNG of 16 bits")
    return ids


def _first_frame(clip: Clip) -> UInt8[np.ndarray, "h w 3"]:
    suffix = clip.columns["cut"]["member"]
    return decode_rgb(clip.read("cut", suffix), name=f"{clip.key}.{suffix}", indices=[0])[0]


def _outcome(found: FirstFrame) -> Outcome:
    if not found.scores:
        return Dropped(reason="no entity found")
    scores = [round(float(score), 4) for score in found.scores]
    columns = {"num_entities": len(scores), "scores": scores}
    return Kept(columns=columns, files={FILE: encode_ids(found.ids)})


def _exact(clip: Clip) -> Outcome:
    ids = read_exact(clip, "entity_ids")[0]
    count = int(np.count_nonzero(np.bincount(ids.ravel())[1:]))
    if not count:
        return Dropped(reason="no entity found")
    return Kept(columns={"num_entities": count}, files={FILE: encode_ids(ids)})
