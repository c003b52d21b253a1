"""Sets that are too small are refused before anything is sampled."""

from collections.abc import Mapping

import pytest

from sat_udpdiff.evaluation.inputs import check_counts
from sat_udpdiff.evaluation.measure import Features, Measure, Score, Video


class Distance(Measure):
    name = "distance"
    tasks = frozenset({"depth", None})
    compares_with_references = True
    min_videos = 3
    key = "distance 1"

    def features(self, video: Video) -> Features:
        raise NotImplementedError

    def scores(
        self, features: Mapping[str, Features], *, references: Mapping[str, Features]
    ) -> list[Score]:
        raise NotImplementedError


def test_enough_is_enough() -> None:
    check_counts(["depth"] * 3 + ["segmentation"], references=3, measures=[Distance()])
    check_counts(["depth"], references=0, measures=[])


def test_too_few_samples_of_a_task_are_named() -> None:
    with pytest.raises(ValueError, match=r"prompts\.count: distance wants 3 .* got 2"):
        check_counts(["depth"] * 2 + [None] * 3, references=3, measures=[Distance()])


@pytest.mark.parametrize("references", [0, 2])
def test_too_few_references_are_named(references: int) -> None:
    with pytest.raises(ValueError, match=rf"reference: distance .* 3 or more .* got {references}"):
        check_counts(["depth"] * 3, references=references, measures=[Distance()])
