"""Measures that need no weights: of pixels alone, for any machine and any world.

They are not the paper's, and none of their numbers is comparable with one of it.
"""

from collections.abc import Mapping

import numpy as np

from sat_udpdiff.config import Task
from sat_udpdiff.evaluation import agreement
from sat_udpdiff.evaluation.measure import (
    Features,
    Measure,
    Score,
    UnusableError,
    Video,
    mean_score,
)


class FrameConsistency(Measure):
    """VBench's subject consistency on coarse pixels; `pixel_consistency`."""

    name = "consistency"

    @property
    def key(self) -> str:
        """The version."""
        return "coarse pixels 1"

    def features(self, video: Video) -> Features:
        """One number; UnusableError for a video of one frame."""
        rgb = video.rgb()
        if len(rgb) < 2:
            raise UnusableError(f"expected 2 or more frames, got {len(rgb)}")
        return {"consistency": np.array(agreement.frame_consistency(rgb))}

    def scores(
        self, features: Mapping[str, Features], *, references: Mapping[str, Features]
    ) -> list[Score]:
        """The mean over videos."""
        per_video = {name: float(found["consistency"]) for name, found in features.items()}
        return [mean_score("pixel_consistency", per_video, higher_is_better=True)]


class MapAgreement(Measure):
    """Whether a dense map belongs to its video, and looks like a map of its task.

    `map_foreground_iou` and `map_boundary_f`; of segmentation maps `map_flat_share`, of depth maps
    `map_colour_distance`, to the nearest colour that a depth map may have.
    """

    name = "agreement"
    tasks: frozenset[Task | None] = frozenset({"segmentation", "depth"})

    @property
    def key(self) -> str:
        """The version."""
        return "foreground and boundaries 2"

    def features(self, video: Video) -> Features:
        """Three numbers, the last of them by the task.

        Raises:
            UnusableError: There is no map, or it differs in size or length.
        """
        rgb, dense = video.rgb(), video.dense()
        if dense is None or dense.shape != rgb.shape:
            found = "none" if dense is None else str(dense.shape[:3])
            raise UnusableError(f"expected a map of {rgb.shape[:3]}, got {found}")
        features = {
            "foreground": np.array(agreement.foreground_iou(rgb, dense)),
            "boundary": np.array(agreement.boundary_f(rgb, dense)),
        }
        # Entities are flat and of any colour, depth is neither.
        if video.task == "depth":
            return {**features, "distance": np.array(agreement.depth_map_distance(dense))}
        return {**features, "flat": np.array(agreement.flat_share(dense))}

    def scores(
        self, features: Mapping[str, Features], *, references: Mapping[str, Features]
    ) -> list[Score]:
        """The means over videos."""
        names = {
            "foreground": ("map_foreground_iou", True),
            "boundary": ("map_boundary_f", True),
            "distance": ("map_colour_distance", False),
            "flat": ("map_flat_share", True),
        }
        return [
            mean_score(
                score,
                {video: float(found[feature]) for video, found in features.items()},
                higher_is_better=higher_is_better,
            )
            for feature, (score, higher_is_better) in names.items()
            if all(feature in found for found in features.values())
        ]
