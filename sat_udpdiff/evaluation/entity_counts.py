"""How many entities clips have, samples beside real ones (Fig. 6 of the paper, of its data)."""

from collections.abc import Mapping

import numpy as np
from scipy.stats import wasserstein_distance

from sat_udpdiff.config import Task
from sat_udpdiff.evaluation.measure import Features, Measure, Score, UnusableError, Video

ENTITIES_SCORE = "entity_count_distance"
"""Its per-video numbers are the numbers of entities, which are neither good nor bad."""


class EntityCounts(Measure):
    """Distance of the numbers of entities per clip from those of real clips.

    The least mean change of the number that makes one distribution the other (Wasserstein's). It
    tells merging and splitting of entities where no clip has a true count of its own.
    """

    name = "entities"
    tasks: frozenset[Task | None] = frozenset({"segmentation"})
    compares_with_references = True

    @property
    def key(self) -> str:
        """The version."""
        return "ids of a clip 1"

    def features(self, video: Video) -> Features:
        """One number; UnusableError for a video without ids."""
        ids = video.entity_ids()
        if ids is None:
            raise UnusableError("no entity ids")
        return {"count": np.array(len(np.unique(ids[ids > 0])), np.int64)}

    def scores(
        self, features: Mapping[str, Features], *, references: Mapping[str, Features]
    ) -> list[Score]:
        """The distance, in entities.

        Raises:
            ValueError: No sample or no reference clip has ids.
        """
        if not features or not references:
            raise ValueError(
                f"entities: expected samples and reference clips with entity ids, got "
                f"{len(features)} and {len(references)}"
            )
        counts = {name: float(found["count"]) for name, found in features.items()}
        real = [float(found["count"]) for found in references.values()]
        return [
            Score(
                name=ENTITIES_SCORE,
                value=float(wasserstein_distance(list(counts.values()), real)),
                higher_is_better=False,
                per_video=counts,
                facts={
                    "mean": float(np.mean(list(counts.values()))),
                    "reference_mean": float(np.mean(real)),
                    "references": len(real),
                },
            )
        ]
