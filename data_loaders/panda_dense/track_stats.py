"""How large the entities of a clip are, how long they are seen, and how much they cover."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64, UInt16


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackStats:
    """Of one clip; arrays over its n entities in the order of their ids, or over its t frames."""

    ids: UInt16[np.ndarray, "n"]
    """Ids that are seen in any frame, rising; gaps are allowed."""
    area: Float64[np.ndarray, "n"]
    """Mean share of the picture over the frames in which the entity is seen, 0..1."""
    lifetime: Float64[np.ndarray, "n"]
    """Share of the frames in which it is seen, 0..1."""
    first_frame: Int64[np.ndarray, "n"]
    """Frame in which it is seen first."""
    last_frame: Int64[np.ndarray, "n"]
    """Frame in which it is seen last."""
    coverage: Float64[np.ndarray, "t"]
    """Labelled share of each frame, 0..1."""

    @property
    def count(self) -> int:
        """Entities."""
        return len(self.ids)

    @property
    def lost(self) -> UInt16[np.ndarray, "k"]:
        """Ids that the first frame has and the last frame lacks."""
        gone = self.last_frame < len(self.coverage) - 1
        return self.ids[(self.first_frame == 0) & gone]

    @property
    def entered(self) -> UInt16[np.ndarray, "k"]:
        """Ids that the first frame lacks."""
        return self.ids[self.first_frame > 0]


def track_stats(ids: UInt16[np.ndarray, "t h w"]) -> TrackStats:
    """Statistics of a clip's entity ids.

    Args:
        ids: 0 = unlabelled; at least one frame.
    """
    frames, height, width = ids.shape
    known = int(ids.max()) + 1
    # Frame by frame: one bincount over all of them would make 8 bytes of each 2 first.
    pixels = np.stack([np.bincount(frame.ravel(), minlength=known) for frame in ids])
    coverage = 1 - pixels[:, 0] / (height * width)
    seen_ids = np.flatnonzero(pixels[:, 1:].any(axis=0)) + 1
    pixels = pixels[:, seen_ids]
    seen = pixels > 0
    return TrackStats(
        ids=seen_ids.astype(np.uint16),
        area=pixels.sum(axis=0) / (np.maximum(seen.sum(axis=0), 1) * height * width),
        lifetime=seen.mean(axis=0),
        first_frame=seen.argmax(axis=0).astype(np.int64),
        last_frame=frames - 1 - seen[::-1].argmax(axis=0).astype(np.int64),
        coverage=coverage,
    )
