"""What a stage of the pipeline is to the program that runs it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import UInt8

from data_loaders.decode import decode_rgb
from data_loaders.panda_dense.models import ModelFacts, Pieces, free_device_memory
from data_loaders.panda_dense.store import Row, Store
from data_loaders.schema import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """A clip on its way through the stages."""

    key: str
    part: int
    columns: Mapping[str, Mapping[str, Any]]
    """What each stage so far has found, by its name."""
    store: Store

    def read(self, stage: str, suffix: str) -> bytes:
        """A file that a stage wrote of this clip.

        Raises:
            DataError: It is not there: removed by hand.
        """
        path = self.store.file(stage, self.part, f"{self.key}.{suffix}")
        try:
            return path.read_bytes()
        except FileNotFoundError as error:
            raise DataError(
                f"{path}: expected what {stage} wrote, found nothing: give --redo {stage}"
            ) from error

    def rgb(self) -> UInt8[np.ndarray, "t h w 3"]:
        """Frames as they go into the shards, 0..255."""
        suffix = self.columns["cut"]["member"]
        name = str(self.store.file("cut", self.part, f"{self.key}.{suffix}"))
        return decode_rgb(self.read("cut", suffix), name=name)


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """A stage is done with a clip, which goes on."""

    columns: Mapping[str, Any] = field(default_factory=dict)
    """What was found: JSON values."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Content by suffix: KEY.suffix."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dropped:
    """A stage is done with a clip, which is not wanted."""

    reason: str
    """A few words, the same for all clips of one kind."""
    detail: str = ""
    """The figures of this clip."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """What was found nonetheless."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Flagged:
    """A stage could not do a clip; it is left out and counted apart from those not wanted."""

    reason: str
    """A few words, the same for all clips of one kind."""
    detail: str = ""
    """The message."""


Outcome = Kept | Dropped | Flagged


class Stage(ABC):
    """A step that every clip goes through by itself.

    Errors of `work` other than `torch.OutOfMemoryError` are taken for accidents: the clip is tried
    again and then flagged. What is wrong with the clip itself is `Dropped`.
    """

    name: str
    """Of the command and of the folder."""
    reads: tuple[str, ...]
    """Stages whose files or columns decide what this one writes."""
    batch_size: int = 1
    """Clips that `work` gets at once."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """All that decides what is written: JSON values."""

    @abstractmethod
    def work(self, clips: Sequence[Clip]) -> list[Outcome]:
        """Do some clips; what is written must not depend on when, where and beside which others."""

    def judges_again(
        self, stored: Mapping[str, Any], wanted: Mapping[str, Any]
    ) -> tuple[str, ...] | None:
        """Reasons of the clips to look at again when settings change; None = at all of them.

        Args:
            stored: `settings` that the stage began with.
            wanted: Those it has now.
        """
        return None

    def check(self) -> None:  # noqa: B027 - most have nothing to check
        """Refuse what cannot work before anything is done.

        Raises:
            DataError: A setting is wrong.
            ValueError: Weights are missing; names the setting and where they are to be had.
        """

    def load(self) -> None:  # noqa: B027 - some have no model
        """Load the model; called once, before the first clip.

        Raises:
            ValueError: The weights cannot be loaded.
        """

    def unload(self) -> None:
        """Let go of the model."""
        free_device_memory()

    @property
    def pieces(self) -> Sequence[Pieces]:
        """What goes through the loaded models at once within a clip."""
        return ()

    def shrink(self) -> bool:
        """Work in smaller pieces within a clip; False where they are as small as can be."""
        # All, and not the first that can: which of them was too large is not known.
        shrunk = [pieces.shrink() for pieces in self.pieces]
        return any(shrunk)

    def restore(self) -> None:
        """Undo `shrink`: the next clip may be done in one piece."""
        for pieces in self.pieces:
            pieces.restore()

    @property
    def facts(self) -> ModelFacts | None:
        """What makes the labels, once it is loaded; None where no label is made."""
        return None


def kept_by_all(found: Mapping[str, Mapping[str, Row]]) -> list[str]:
    """Keys of the clips of a part that every stage has kept, in the order of the first stage.

    Args:
        found: Rows by key, by stage.
    """
    first, *others = found.values()
    return [
        key
        for key, row in first.items()
        if row.status == "kept"
        and all(key in rows and rows[key].status == "kept" for rows in others)
    ]
