"""A video whose frames are kept while it is its turn, so that ten measures read it once."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from jaxtyping import Float32, Int32, UInt8
from numpy import ndarray

from sat_udpdiff.config import Task
from sat_udpdiff.evaluation.measure import Video

_Array = TypeVar("_Array", bound=ndarray | None)


class KeptVideo:
    """A `Video` that reads another one, each part once; dropped when the next video's turn comes.

    Args:
        video: The other one.
        digest: Of it, known already: it takes reading its files.

    Attributes:
        read_seconds: That reading took so far.
    """

    def __init__(self, video: Video, *, digest: str) -> None:
        self.digest = digest
        self.read_seconds = 0.0
        self._video = video
        self._arrays: dict[str, ndarray | None] = {}

    @property
    def name(self) -> str:
        """As of the other one, like all that follows."""
        return self._video.name

    @property
    def prompt(self) -> str:
        """What it was made from."""
        return self._video.prompt

    @property
    def task(self) -> Task | None:
        """What its dense map shows."""
        return self._video.task

    @property
    def fps(self) -> float:
        """Frames per second."""
        return self._video.fps

    @property
    def path(self) -> Path | None:
        """Its file."""
        return self._video.path

    def rgb(self) -> UInt8[ndarray, "t h w 3"]:
        """The frames; not writable, as others will see them, too."""
        return self._read("rgb", self._video.rgb)

    def dense(self) -> UInt8[ndarray, "t h w 3"] | None:
        """The dense map in colours."""
        return self._read("dense", self._video.dense)

    def entity_ids(self) -> Int32[ndarray, "t h w"] | None:
        """Entity of each pixel."""
        return self._read("entity_ids", self._video.entity_ids)

    def depth(self) -> Float32[ndarray, "t h w"] | None:
        """Disparity."""
        return self._read("depth", self._video.depth)

    def _read(self, name: str, read: Callable[[], _Array]) -> _Array:
        if name not in self._arrays:
            started = time.perf_counter()
            array = read()
            if array is not None:
                array.flags.writeable = False
            self._arrays[name] = array
            self.read_seconds += time.perf_counter() - started
        return self._arrays[name]  # pyright: ignore[reportReturnType]
