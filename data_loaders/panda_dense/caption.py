"""Stage `caption`: the long caption, and the short one as it came."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch

from data_loaders.panda_dense.caption_models import KINDS
from data_loaders.panda_dense.caption_quality import first_sentence
from data_loaders.panda_dense.captioner import (
    Captioner,
    CaptionResult,
    CaptionSettings,
    check_captions,
)
from data_loaders.panda_dense.models import ModelFacts, Pieces, require_weights
from data_loaders.panda_dense.stage import Clip, Dropped, Kept, Outcome, Stage


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionStageSettings:
    """Captions of the clips."""

    backend: Literal["model", "given"] = "model"
    """'given': the captions of the source, the short one for the long one where there is none."""
    captioner: CaptionSettings = field(default_factory=CaptionSettings)


class CaptionStage(Stage):
    """See the module.

    Args:
        settings: Of the stage.
        device: Where the model runs.
    """

    name, reads = "caption", ("cut",)

    def __init__(self, settings: CaptionStageSettings, *, device: torch.device) -> None:
        self._settings, self._device = settings, device
        self.batch_size = settings.captioner.clips_per_batch
        self._captioner: Captioner | None = None

    def settings(self) -> dict[str, Any]:
        """Of the backend that is used."""
        if self._settings.backend == "given":
            return {"backend": "given"}
        return {"backend": "model", "captioner": asdict(self._settings.captioner)}

    def check(self) -> None:
        """The numbers and the weights of the model."""
        if self._settings.backend == "model":
            settings = self._settings.captioner
            check_captions(settings, section="caption.captioner")
            get = KINDS[settings.model].get
            require_weights(settings.weights, key="caption.captioner.weights", get=get)

    def load(self) -> None:
        """The model."""
        if self._settings.backend == "model":
            self._captioner = Captioner.load(
                self._settings.captioner, device=self._device, section="caption.captioner"
            )

    def unload(self) -> None:
        """Let go of the model."""
        self._captioner = None
        super().unload()

    @property
    def pieces(self) -> Sequence[Pieces]:
        """What goes through the model at once."""
        return [] if self._captioner is None else [self._captioner.pieces]

    @property
    def facts(self) -> ModelFacts:
        """What writes the long captions."""
        return ModelFacts(backend="given") if self._captioner is None else self._captioner.facts

    def work(self, clips: Sequence[Clip]) -> list[Outcome]:
        """Captions of each clip."""
        if self._captioner is None:
            return [_given(clip) for clip in clips]
        results = self._captioner.caption(
            [clip.rgb() for clip in clips],
            fps=[clip.columns["cut"]["fps"] for clip in clips],
            keys=[clip.key for clip in clips],
            short_captions=[clip.columns["ingest"]["caption_short"] for clip in clips],
        )
        return [
            self._outcome(clip, result=result) for clip, result in zip(clips, results, strict=True)
        ]

    def _outcome(self, clip: Clip, *, result: CaptionResult) -> Outcome:
        columns = {"flag": result.flag, "tries": result.attempts}
        if result.flag:
            # Kept in the table, to be looked at; it trains nothing.
            columns["flagged_answer"] = result.answer
        # A flagged answer does not take the place of a long caption that came with the video.
        given = clip.columns["ingest"]["caption_long"]
        long = given if result.flag and given else result.caption_long
        short = result.caption_short or first_sentence(long)
        if not short:
            return Dropped(reason="no caption", detail=result.flag, columns=columns)
        return Kept(columns=columns | {"caption_short": short, "caption_long": long or short})


def _given(clip: Clip) -> Outcome:
    source = clip.columns["ingest"]
    long = source["caption_long"] or source["caption_short"]
    short = source["caption_short"] or first_sentence(long)
    if not short:
        return Dropped(reason="no caption", detail="neither given nor a model to write one")
    columns = {"flag": "", "tries": 0}
    return Kept(columns=columns | {"caption_short": short, "caption_long": long or short})
