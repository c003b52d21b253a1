"""A video whose parts need not go together, as those of a broken sample do not."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class LooseVideo:
    """A `Video` that checks nothing."""

    frames: Any
    colours: Any = None
    ids: Any = None
    disparity: Any = None
    name: str = "loose"
    prompt: str = ""
    task: Any = None
    fps: float = 8.0
    path: Any = None
    digest: str = "0"

    def rgb(self):
        return self.frames

    def dense(self):
        return self.colours

    def entity_ids(self):
        return self.ids

    def depth(self):
        return self.disparity
