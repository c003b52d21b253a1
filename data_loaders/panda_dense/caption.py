"""Stage `caption`: the long caption, and the short one as it came."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch

from data_loaders.panda_dense.captioner import (
    Captioner,
    CaptionModelSettings,
    check_captions,
    first_sentence,
)
from data_loaders.panda_dense.models import ModelFacts
from data_loaders.panda_dense.stage import Clip, Dropped, Kept, Outcome, Stage


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionSettings:
    """Captions of the clips."""

    backend: Literal["model", "given"] = "model"
    """'given': the captions of the source, the short one for the long one where there is none."""
    model: CaptionModelSettings = field(default_factory=CaptionModelSettings)
    batch_size: int = 4
    """Clips captioned at once; halved where the device is full."""


class CaptionStage(Stage):
    """See the module.

    Args:
        settings: Of the stage.
        device: Where the model runs.
    """

    name, reads = "caption", ("cut",)

    def __init__(self, settings: CaptionSettings, *, device: torch.device) -> None:
        self._settings, self._device = settings, device
        self.batch_size = settings.batch_size if settings.backend == "model" else 64
        self._captioner: Captioner | None = None

    def settings(self) -> dict[str, Any]:
        """Of the backend that is used."""
        if self._settings.backend == "given":
            return {"backend": "given"}
        return {"backend": "model", "model": asdict(self._settings.model)}

    def check(self) -> None:
        """The numbers and the weights of the model."""
        if self._settings.backend == "model":
            check_captions(self._settings.model, section="caption.model")

    def load(self) -> None:
        """The model."""
        if self._settings.backend == "model":
            self._captioner = Captioner.load(self._settings.model, device=self._device)

    def unload(self) -> None:
        """Let go of the model."""
        self._captioner = None
        super().unload()

    def shrink(self) -> bool:
        """Smaller pieces of a clip's work."""
        return self._captioner is not None and self._captioner.shrink()

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
            fps=clips[0].columns["cut"]["fps"],
            keys=[clip.key for clip in clips],
            short_captions=[clip.columns["ingest"]["caption_short"] for clip in clips],
        )
        return [
            self._outcome(clip, text=result.text, flag=result.flag, attempts=result.attempts)
            for clip, result in zip(clips, results, strict=True)
        ]

    def _outcome(self, clip: Clip, *, text: str, flag: str, attempts: int) -> Outcome:
        source = clip.columns["ingest"]
        columns = {"flag": flag, "tries": attempts, "model": self.facts.model}
        # A flagged text is kept in the table, to be looked at, and trains nothing.
        long = (source["caption_long"] or source["caption_short"]) if flag else text
        short = source["caption_short"] or first_sentence(long)
        if not short:
            return Dropped(reason="no caption", detail=f"{flag}: {text}", columns=columns)
        if flag:
            columns["flagged_text"] = text
        return Kept(columns=columns | {"caption_short": short, "caption_long": long or short})


def _given(clip: Clip) -> Outcome:
    source = clip.columns["ingest"]
    long = source["caption_long"] or source["caption_short"]
    short = source["caption_short"] or first_sentence(long)
    if not short:
        return Dropped(reason="no caption", detail="neither given nor a model to write one")
    columns = {"flag": "", "tries": 0, "model": ""}
    return Kept(columns=columns | {"caption_short": short, "caption_long": long or short})
