"""Stage `propagate`: the first frame's entities through the clip, then cleaned.

Entities that come into the picture later stay unlabelled, as in the paper; with
`propagate.reprompt.every` the first frame's model looks at later frames too.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import UInt8, UInt16

from data_loaders.decode import encode_labels
from data_loaders.panda_dense.classical_entities import BACKEND as CLASSICAL
from data_loaders.panda_dense.classical_propagation import (
    ClassicalPropagationSettings,
    check_classical_propagation,
    propagate_classically,
)
from data_loaders.panda_dense.exact import exact_facts, read_exact
from data_loaders.panda_dense.mask_cleaning import CleaningSettings, check_cleaning, clean_masks
from data_loaders.panda_dense.models import ModelFacts, Pieces, library_version, require_weights
from data_loaders.panda_dense.reprompting import Reprompter, RepromptSettings, check_reprompt
from data_loaders.panda_dense.sam2_inputs import GET_SAM2, grid_points
from data_loaders.panda_dense.sam2_video import Sam2Propagator, Sam2Settings, check_sam2
from data_loaders.panda_dense.segment import (
    FILE,
    Segmenter,
    SegmentSettings,
    check_segmenter,
    decode_ids,
    load_segmenter,
)
from data_loaders.panda_dense.stage import Clip, Dropped, Kept, Outcome, Stage
from data_loaders.panda_dense.track_stats import track_stats
from data_loaders.schema import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class PropagateSettings:
    """Entities through the clip."""

    backend: Literal["model", "classical", "synthetic"] = "model"
    """'classical': optical flow, for machines without weights, not for results; 'synthetic': the
    exact ids of a synthetic source."""
    sam2: Sam2Settings = field(default_factory=Sam2Settings)
    classical: ClassicalPropagationSettings = field(default_factory=ClassicalPropagationSettings)
    reprompt: RepromptSettings = field(default_factory=RepromptSettings)
    clean: CleaningSettings = field(default_factory=CleaningSettings)
    min_coverage: float = 0.3
    """Clips are dropped of which less is labelled, share of all pixels: black says nothing about
    the picture, and a model that sees much of it learns to paint black."""


def check_propagate(settings: PropagateSettings) -> None:
    """Check the numbers.

    Raises:
        DataError: One is out of range; names it.
        ValueError: There are no such weights; says where they are to be had.
    """
    check_cleaning(settings.clean, section="propagate.clean")
    check_reprompt(settings.reprompt, section="propagate.reprompt")
    check_classical_propagation(settings.classical, section="propagate.classical")
    if not 0 <= settings.min_coverage <= 1:
        raise DataError(
            f"propagate.min_coverage: expected a share in 0..1, got {settings.min_coverage}"
        )
    if settings.backend == "model":
        check_sam2(settings.sam2, section="propagate.sam2")
        require_weights(settings.sam2.weights, key="propagate.sam2.weights", get=GET_SAM2)


def check_tracking(settings: PropagateSettings, *, segment: SegmentSettings) -> None:
    """`check_propagate`, and whether it goes together with the stage before.

    Raises:
        DataError: A setting is wrong; names it.
        ValueError: Weights are missing; says where they are to be had.
    """
    check_propagate(settings)
    if segment.starts_from_points and settings.backend != "model":
        raise DataError(
            "segment.sam2_grid.reading: points are prompts of SAM 2: expected "
            f"propagate.backend 'model', got {settings.backend!r}"
        )
    looks_again = settings.backend != "synthetic" and settings.reprompt.every is not None
    if looks_again and segment.backend != CLASSICAL:
        check_segmenter(segment)


class EntityTracker:
    """The entities of a first frame through a clip, cleaned: all of the stage but its files.

    Args:
        settings: Of the stage; its backend is not 'synthetic'.
        segment: Of the stage before.
        model: SAM 2; None = optical flow.
        segmenter: What looks at later frames; None = they are not looked at.
    """

    def __init__(
        self,
        settings: PropagateSettings,
        *,
        segment: SegmentSettings,
        model: Sam2Propagator | None,
        segmenter: Segmenter | None,
    ) -> None:
        self._settings, self._segment = settings, segment
        self._model, self._segmenter = model, segmenter

    @classmethod
    def load(
        cls, settings: PropagateSettings, *, segment: SegmentSettings, device: torch.device
    ) -> "EntityTracker":
        """Load the models that the settings name.

        Raises:
            ValueError: Weights cannot be loaded.
        """
        model = segmenter = None
        if settings.backend == "model":
            model = Sam2Propagator.load(settings.sam2, device=device, section="propagate.sam2")
        if settings.reprompt.every is not None:
            segmenter = load_segmenter(segment, device=device)
        return cls(settings, segment=segment, model=model, segmenter=segmenter)

    @property
    def pieces(self) -> Sequence[Pieces]:
        """What goes through the model at once."""
        return [] if self._model is None else [self._model.pieces]

    @property
    def facts(self) -> ModelFacts:
        """What carries the entities on."""
        if self._model is None:
            return ModelFacts(backend=CLASSICAL, version=library_version("opencv-python-headless"))
        return self._model.facts

    def track(
        self, rgb: UInt8[np.ndarray, "t h w 3"], first: UInt16[np.ndarray, "h w"] | None
    ) -> UInt16[np.ndarray, "t h w"]:
        """Ids of every frame, the same through the clip; 0 = unlabelled.

        Args:
            rgb: Frames, 0..255.
            first: Ids of the first frame; not looked at where the points of a grid are the objects.
        """
        return clean_masks(self._propagate(rgb, first), settings=self._settings.clean)

    def _propagate(
        self, rgb: UInt8[np.ndarray, "t h w 3"], first: UInt16[np.ndarray, "h w"] | None
    ) -> UInt16[np.ndarray, "t h w"]:
        if self._segment.starts_from_points:
            assert self._model is not None
            per_side = self._segment.sam2_grid.points_per_side
            height, width = rgb.shape[1:3]
            points = grid_points(per_side, height=height, width=width)
            return self._model.propagate_points(rgb, points)
        assert first is not None
        reprompter = None
        if self._segmenter is not None:
            reprompter = Reprompter(segment=self._look, settings=self._settings.reprompt)
        if self._model is not None:
            return self._model.propagate(rgb, first, reprompter=reprompter)
        return propagate_classically(
            rgb, first, settings=self._settings.classical, reprompter=reprompter
        )

    def _look(self, frame: UInt8[np.ndarray, "h w 3"]) -> UInt16[np.ndarray, "h w"]:
        """Entities of a later frame."""
        assert self._segmenter is not None
        return self._segmenter.segment(frame[None])[0].ids


class PropagateStage(Stage):
    """See the module.

    Args:
        settings: Of the stage.
        segment: Settings of the stage before, which looks at later frames where that is asked for.
        device: Where the model runs.
    """

    name, reads = "propagate", ("cut", "segment")

    def __init__(
        self, settings: PropagateSettings, *, segment: SegmentSettings, device: torch.device
    ) -> None:
        self._settings, self._segment, self._device = settings, segment, device
        self._tracker: EntityTracker | None = None

    def settings(self) -> dict[str, Any]:
        """Of the backend that is used."""
        chosen: dict[str, Any] = {
            "backend": self._settings.backend,
            "min_coverage": self._settings.min_coverage,
        }
        if self._settings.backend != "synthetic":
            chosen["clean"] = asdict(self._settings.clean)
            chosen["reprompt"] = asdict(self._settings.reprompt)
        if self._settings.backend == "model":
            chosen["sam2"] = asdict(self._settings.sam2)
        if self._settings.backend == CLASSICAL:
            chosen["classical"] = asdict(self._settings.classical)
        return chosen

    def check(self) -> None:
        """The numbers and the weights of the models."""
        check_tracking(self._settings, segment=self._segment)

    def load(self) -> None:
        """The model; the first frame's too, where later frames are looked at."""
        if self._settings.backend != "synthetic":
            self._tracker = EntityTracker.load(
                self._settings, segment=self._segment, device=self._device
            )

    def unload(self) -> None:
        """Let go of the models."""
        self._tracker = None
        super().unload()

    @property
    def pieces(self) -> Sequence[Pieces]:
        """What goes through the model at once."""
        return [] if self._tracker is None else self._tracker.pieces

    @property
    def facts(self) -> ModelFacts:
        """What carries the entities on."""
        if self._settings.backend == "synthetic":
            return exact_facts()
        assert self._tracker is not None
        return self._tracker.facts

    def work(self, clips: Sequence[Clip]) -> list[Outcome]:
        """Ids of each clip."""
        return [self._follow(clip) for clip in clips]

    def _track(self, clip: Clip) -> UInt16[np.ndarray, "t h w"]:
        assert self._tracker is not None
        first = None
        if not self._segment.starts_from_points:
            first = decode_ids(clip.read("segment", FILE), name=f"{clip.key}.{FILE}")
        return self._tracker.track(clip.rgb(), first)

    def _follow(self, clip: Clip) -> Outcome:
        if self._settings.backend == "synthetic":
            ids = read_exact(clip, "entity_ids")
        else:
            ids = self._track(clip)
        stats = track_stats(ids)
        columns = {
            "num_entities": stats.count,
            "num_lost": len(stats.lost),
            "num_entered": len(stats.entered),
            "coverage": round(float(stats.coverage.mean()), 4),
            "least_coverage": round(float(stats.coverage.min()), 4),
            "areas": [round(float(share), 5) for share in stats.area],
            "lifetimes": [round(float(share), 4) for share in stats.lifetime],
        }
        if columns["coverage"] < self._settings.min_coverage:
            return Dropped(
                reason="too little is labelled",
                detail=f"{columns['coverage']:.1%} of the pixels",
                columns=columns,
            )
        content = encode_labels(ids, fps=clip.columns["cut"]["fps"])
        return Kept(columns=columns, files={"seg.mkv": content})
