"""Stage `filter`: what is measured of every clip that can be read; `select` judges by it.

What is known before a frame is decoded is judged here already, for decoding is what costs time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from data_loaders.panda_dense.aesthetic import GET_CLIP
from data_loaders.panda_dense.clip_reader import ClipError, read_clip, source_facts
from data_loaders.panda_dense.cut import ClipSettings, check_clip, check_videos, unusable
from data_loaders.panda_dense.ingest import source_of
from data_loaders.panda_dense.measuring import Measurer, MeasureSettings, check_measures
from data_loaders.panda_dense.models import ModelFacts, Pieces, require_weights
from data_loaders.panda_dense.sidecars import ClipSource
from data_loaders.panda_dense.stage import Clip, Dropped, Kept, Outcome, Stage
from data_loaders.panda_dense.thresholds import EARLY_REASONS, FilterSettings, verdict
from data_loaders.schema import DataError

_FRAMES = ("num_frames", "fps", "height", "width")
"""Settings of the clips that change what is measured."""
_BEFORE_DECODING = (
    "min_matching_score",
    "desirable",
    "max_shots",
    "max_seconds",
    "min_source_fps",
    "min_source_rows",
)
"""Thresholds on what the list and the header say."""


class FilterStage(Stage):
    """See the module.

    Args:
        settings: What is measured, and how.
        clip: Length, rate and size of the clips that are to be.
        thresholds: Of `select`; those that need no decoding.
        videos: Folder of the sources.
        device: Where models run.
    """

    name, reads = "filter", ("ingest",)

    def __init__(
        self,
        settings: MeasureSettings,
        *,
        clip: ClipSettings,
        thresholds: FilterSettings,
        videos: str,
        device: torch.device,
    ) -> None:
        self._settings, self._clip, self._thresholds = settings, clip, thresholds
        self._videos, self._device = videos, device
        self._measurer: Measurer | None = None

    def settings(self) -> dict[str, Any]:
        """Of what is measured, and of the frames."""
        clip = {name: getattr(self._clip, name) for name in _FRAMES}
        thresholds = {name: getattr(self._thresholds, name) for name in _BEFORE_DECODING}
        return asdict(self._settings) | {"clip": clip, "thresholds": thresholds}

    def judges_again(
        self, stored: Mapping[str, Any], wanted: Mapping[str, Any]
    ) -> tuple[str, ...] | None:
        """Other thresholds concern those that were not decoded; `select` judges the others."""
        rest = [{**settings, "thresholds": None} for settings in (stored, wanted)]
        return EARLY_REASONS if rest[0] == rest[1] else None

    def check(self) -> None:
        """The numbers and the weights."""
        check_clip(self._clip, section="clip")
        check_videos(self._videos)
        check_measures(self._settings, section="filter")
        for name in ("raft_weights", "text_weights", "aesthetic_head"):
            path = getattr(self._settings, name)
            if path is not None and not Path(path).expanduser().is_file():
                raise DataError(f"filter.{name}: expected a file, got {path!r}")
        if self._settings.aesthetic_head is not None:
            key = "filter.aesthetic_clip"
            require_weights(self._settings.aesthetic_clip, key=key, get=GET_CLIP)

    def load(self) -> None:
        """The models, where some are asked for."""
        self._measurer = Measurer(self._settings, device=self._device, section="filter")

    def unload(self) -> None:
        """Let go of the models."""
        self._measurer = None
        super().unload()

    @property
    def pieces(self) -> Sequence[Pieces]:
        """What goes through the model at once."""
        return [] if self._measurer is None else self._measurer.pieces

    @property
    def facts(self) -> ModelFacts | None:
        """What makes the scores."""
        return None if self._measurer is None else self._measurer.facts

    def work(self, clips: Sequence[Clip]) -> list[Outcome]:
        """Measure each clip."""
        return [self._measure(source_of(clip, videos=self._videos)) for clip in clips]

    def _measure(self, source: ClipSource) -> Outcome:
        assert self._measurer is not None
        settings = self._clip
        try:
            reason, detail = verdict(None, source, self._thresholds)
            if reason:
                return Dropped(reason=reason, detail=detail)
            facts = source_facts(source)
            columns = {name: value for name, value in asdict(facts).items() if value is not None}
            reason, detail = verdict(None, source, self._thresholds, facts=facts)
            if reason:
                return Dropped(reason=reason, detail=detail, columns=columns)
            video = read_clip(
                source,
                num_frames=settings.num_frames,
                fps=settings.fps,
                height=settings.height,
                width=settings.width,
            )
        except ClipError as error:
            return unusable(error)
        scores = self._measurer.measure(video.rgb, fps=settings.fps).as_row()
        return Kept(columns=columns | {name: _rounded(value) for name, value in scores.items()})


def _rounded(value: float | int | None) -> float | int | None:
    """Six digits: what is beyond is noise."""
    return value if value is None or isinstance(value, int) else float(f"{value:.6g}")
