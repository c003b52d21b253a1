"""Entities that come into the picture later: looking again at every nth frame.

By the paper's rule only what the first frame shows is annotated, so this is off unless asked for.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8, UInt16

from data_loaders.schema import DataError

# Entity ids of a picture (h, w, 3): uint16 (h, w), 0 = unlabelled.
Segmenter = Callable[[np.ndarray], np.ndarray]

_LAST_ID = np.iinfo(np.uint16).max


@dataclass(frozen=True, kw_only=True, slots=True)
class RepromptSettings:
    """When to look for new entities, and what is one."""

    every: int | None = None
    """Frames between two looks; None = the first frame only, as in the paper."""
    max_overlap: float = 0.5
    """Share of a mask that known entities may hold; half, as where masks are matched."""
    min_area: float = 0.002
    """Least new area, share of the picture: 26 x 26 pixels of 480x720; borders of known entities
    that moved leave thinner slivers."""


def check_reprompt(settings: RepromptSettings, *, section: str) -> None:
    """Check the values.

    Raises:
        DataError: A value out of its range, naming `section` and the field.
    """
    if settings.every is not None and settings.every < 1:
        raise DataError(f"{section}.every: expected >= 1 or null, got {settings.every}")
    for name in ("max_overlap", "min_area"):
        value = getattr(settings, name)
        if not 0 <= value <= 1:
            raise DataError(f"{section}.{name}: expected a share in 0..1, got {value}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Reprompter:
    """Finds the entities of a frame that are not known yet."""

    segment: Segmenter
    """What finds entities in one picture."""
    settings: RepromptSettings

    def is_due(self, frame: int) -> bool:
        """Whether to look at the frame of that number; never at 0, whose entities are given."""
        every = self.settings.every
        return every is not None and frame > 0 and frame % every == 0

    def new_entities(
        self,
        frame: UInt8[np.ndarray, "h w 3"],
        *,
        known: UInt16[np.ndarray, "h w"],
        next_id: int,
    ) -> UInt16[np.ndarray, "h w"]:
        """`find_new_entities` on what the segmenter finds in the frame."""
        found = self.segment(frame)
        return find_new_entities(found, known=known, next_id=next_id, settings=self.settings)


def find_new_entities(
    found: UInt16[np.ndarray, "h w"],
    *,
    known: UInt16[np.ndarray, "h w"],
    next_id: int,
    settings: RepromptSettings,
) -> UInt16[np.ndarray, "h w"]:
    """The masks that lie mostly where nothing is labelled.

    Args:
        found: Entities of the frame as a segmenter sees it, ids of its own; 0 = none.
        known: Ids carried on to this frame; 0 = unlabelled.
        next_id: First id that is free in the whole clip.
        settings: How much overlap is allowed, and the least area.

    Returns:
        Ids next_id, next_id + 1, ... by the order of `found`'s ids, on unlabelled pixels only;
        0 elsewhere. What does not fit into 16 bits is left out.
    """
    count = int(found.max(initial=0)) + 1
    areas = np.bincount(found.ravel(), minlength=count)
    free = np.bincount(found[known == 0], minlength=count)
    new = (free >= max(1.0, settings.min_area * found.size)) & (
        areas - free <= settings.max_overlap * areas
    )
    new[0] = False
    chosen = np.flatnonzero(new)[: max(0, _LAST_ID + 1 - next_id)]
    table = np.zeros(count, np.uint16)
    table[chosen] = np.arange(next_id, next_id + len(chosen))
    return np.where(known == 0, table[found], np.uint16(0))
