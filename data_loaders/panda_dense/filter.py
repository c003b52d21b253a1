"""Stage `filter`: what is measured of every clip that can be read; `select` judges by it."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from data_loaders.panda_dense.clip_reader import ClipError, read_clip, source_facts
from data_loaders.panda_dense.cut import ClipSettings, check_clip, unusable
from data_loaders.panda_dense.ingest import source_of
from data_loaders.panda_dense.measures import Measurer, MeasureSettings, check_measures
from data_loaders.panda_dense.sidecars import ClipSource
from data_loaders.panda_dense.stage import Clip, Kept, Outcome, Stage

_FRAMES = ("num_frames", "fps", "height", "width")
"""Settings of the clips that change what is measured."""


class FilterStage(Stage):
    """See the module.

    Args:
        settings: What is measured, and how.
        clip: Length, rate and size of the clips that are to be.
        videos: Folder of the sources.
        device: Where models run.
    """

    name, reads = "filter", ("ingest",)

    def __init__(
        self, settings: MeasureSettings, *, clip: ClipSettings, videos: str, device: torch.device
    ) -> None:
        self._settings, self._clip = settings, clip
        self._videos, self._device = videos, device
        self._measurer: Measurer | None = None

    def settings(self) -> dict[str, Any]:
        """Of what is measured, and of the frames."""
        clip = {name: getattr(self._clip, name) for name in _FRAMES}
        return asdict(self._settings) | {"clip": clip}

    def check(self) -> None:
        """The numbers and the weights."""
        check_clip(self._clip, section="clip")
        check_measures(self._settings, section="filter")

    def load(self) -> None:
        """The models, where some are asked for."""
        self._measurer = Measurer.load(self._settings, device=self._device)

    def unload(self) -> None:
        """Let go of the models."""
        self._measurer = None
        super().unload()

    def work(self, clips: Sequence[Clip]) -> list[Outcome]:
        """Measure each clip."""
        return [self._measure(source_of(clip, videos=self._videos)) for clip in clips]

    def _measure(self, source: ClipSource) -> Outcome:
        assert self._measurer is not None
        settings = self._clip
        try:
            facts = source_facts(source)
            video = read_clip(
                source,
                num_frames=settings.num_frames,
                fps=settings.fps,
                height=settings.height,
                width=settings.width,
            )
        except ClipError as error:
            return unusable(error)
        columns = {name: value for name, value in asdict(facts).items() if value is not None}
        columns |= self._measurer.measure(video.rgb, fps=settings.fps)
        return Kept(columns=columns)
