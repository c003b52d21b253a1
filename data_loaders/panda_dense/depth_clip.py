"""Depth of one clip as the data keeps it: disparity, scaled over the whole clip, near = 65535."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt16

from data_loaders.schema import DataError

LEVELS = 65535


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthClip:
    """Disparity of a clip, and what it was before it was scaled."""

    depth: UInt16[np.ndarray, "t h w"]
    """0 = the farthest point of the clip, 65535 = the nearest; all 0 where `is_flat`."""
    raw_min: float
    """Of the model's output over the clip, in its own unit: what became 0."""
    raw_max: float
    """What became 65535."""

    @property
    def is_flat(self) -> bool:
        """Whether the model saw one distance everywhere, so that there is nothing to learn."""
        return self.raw_max <= self.raw_min


def scale_clip(disparity: Float32[np.ndarray, "t h w"], *, key: str) -> DepthClip:
    """Min-max over all frames at once, so that depth does not flicker: (x - min) / (max - min).

    Args:
        disparity: What a model says, larger = nearer.
        key: Of the clip, for messages.

    Returns:
        The clip, to the nearest of 65536 levels. Where all values are equal there is no scale:
        depth 0, and `is_flat`.

    Raises:
        DataError: A value is not finite, as when half precision overflows.
    """
    bad = disparity.size - int(np.isfinite(disparity).sum())
    if bad:
        raise DataError(
            f"clip {key!r}: depth: expected finite values, got {bad} of {disparity.size} that are "
            "not; try dtype fp32"
        )
    low, high = float(disparity.min()), float(disparity.max())
    # Doubles: float32 has fewer digits than 65536 levels of a narrow range need.
    scaled = (disparity.astype(np.float64) - low) / (high - low) if high > low else disparity * 0
    depth = np.rint(scaled * LEVELS).astype(np.uint16)
    return DepthClip(depth=depth, raw_min=low, raw_max=high)
