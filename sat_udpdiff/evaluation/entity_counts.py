"""How many entities clips have, samples beside real ones (Fig. 6 of the paper, of its data)."""

from collections.abc import Mapping

import numpy as np

from sat_udpdiff.config import Task
from sat_udpdiff.evaluation.measure import (
    Features,
    Histogram,
    Measure,
    Score,
    UnusableError,
    Video,
    count_histogram,
)


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
        # Here, for it takes a second of the start of every program.
        from scipy.stats import wasserstein_distance

        counts, real = _counts(features), _counts(references)
        return [
            Score(
                name="entity_count_distance",
                value=float(wasserstein_distance(counts, real)),
                higher_is_better=False,
                facts={
                    "mean": float(np.mean(counts)),
                    "reference_mean": float(np.mean(real)),
                    "references": len(real),
                },
            )
        ]

    def histograms(
        self, features: Mapping[str, Features], *, references: Mapping[str, Features]
    ) -> list[Histogram]:
        """Of samples and of references."""
        counts = {"samples": _counts(features), "references": _counts(references)}
        return [count_histogram("entities", counts, axis="entities of a clip")]


def _counts(features: Mapping[str, Features]) -> list[int]:
    return [int(found["count"]) for found in features.values()]
