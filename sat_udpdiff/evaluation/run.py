"""Videos times measures to scores: one video in memory at a time, restartable, on many processes.

Features go through the cache: what lies there is not made again, and processes tell each other
what they found by it alone. The first process scores, and makes itself whatever another one has
not made by then, so that nobody waits for a process that was killed.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from data_loaders.progress_bar import progress_bar
from sat_udpdiff.config import TASKS, Task
from sat_udpdiff.distributed import Place
from sat_udpdiff.evaluation.cache import FeatureCache
from sat_udpdiff.evaluation.features import FeatureMaker
from sat_udpdiff.evaluation.measure import Fact, Features, Histogram, Measure, Score, Video

NO_MAP = "video"
"""Name of the group of videos without a dense map."""
READING = "reading"
"""Name among costs of what is no measure: decoding videos."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """The videos of one task, and their scores."""

    name: str
    """The task, or `NO_MAP`."""
    videos: tuple[str, ...]
    scores: tuple[Score, ...]
    histograms: tuple[Histogram, ...] = ()
    exclusions: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Measure -> video -> why it was not judged; measures without exclusions are not named."""
    failures: Mapping[str, str] = field(default_factory=dict)
    """Measure -> why the set has no score of it."""

    def score(self, name: str) -> Score | None:
        """The score of that name, None without one."""
        return next((score for score in self.scores if score.name == name), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Time that the features of one measure took, whenever and wherever they were made."""

    seconds: float
    videos: int

    @property
    def videos_per_minute(self) -> float:
        """Of one process; infinite for what took no time."""
        return 60 * self.videos / self.seconds if self.seconds else np.inf


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Everything that was found about one set of videos."""

    name: str
    groups: tuple[Group, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Videos that no measure was asked about -> why: folders that are not whole."""
    reference_exclusions: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """As of groups, of the reference set."""
    costs: Mapping[str, Cost] = field(default_factory=dict)
    """By measure, over samples and references; `READING` is of what was read in this run."""
    facts: Mapping[str, Fact] = field(default_factory=dict)

    def group(self, name: str) -> Group | None:
        """The group of that name, None without one."""
        return next((group for group in self.groups if group.name == name), None)


def evaluate(  # noqa: PLR0913 - what is judged, by what, and where
    videos: Sequence[Video],
    *,
    name: str,
    measures: Sequence[Measure],
    cache: FeatureCache,
    place: Place,
    references: Sequence[Video] = (),
    left_out: Mapping[str, str] | None = None,
    facts: Mapping[str, Fact] | None = None,
) -> Evaluation | None:
    """Score a set of videos, task by task.

    Args:
        videos: To be judged; of any task, with different names.
        name: Of the set.
        measures: What is asked; a measure sees videos of its own tasks alone.
        cache: Where features are kept; all processes must see the folder.
        place: This process among those that share the work.
        references: Real videos, for measures that compare.
        left_out: Name -> reason of what could not be taken, for the record.
        facts: For the record.

    Returns:
        The evaluation; None on other processes than the first, whose work is done.

    Raises:
        ValueError: There is no video, or two have one name.
    """
    check_any(videos, name=name, left_out=left_out or {})
    _check_names(videos, what=name)
    _check_names(references, what="references")
    tasks: set[Task | None] = {video.task for video in videos}
    comparing = [
        m for m in measures if m.compares_with_references and not m.tasks.isdisjoint(tasks)
    ]
    jobs = [(video, [m for m in measures if video.task in m.tasks]) for video in videos]
    jobs += [(video, comparing) for video in references]
    maker = FeatureMaker(cache, measures=measures)
    order = list(_in_turn(len(jobs), place=place))
    for i in progress_bar(order, desc=name, unit="video", disable=not place.is_main):
        maker.make(jobs[i][0], measures=jobs[i][1])
    if not place.is_main:
        return None
    books = _Books(maker, measures=measures, references=references)
    groups = tuple(
        books.group([video for video in videos if video.task == task], name=task or NO_MAP)
        for task in (*TASKS, None)
        if any(video.task == task for video in videos)
    )
    costs = books.costs()
    if maker.num_read:
        costs[READING] = Cost(seconds=maker.read_seconds, videos=maker.num_read)
    return Evaluation(
        name=name,
        groups=groups,
        left_out=dict(left_out or {}),
        reference_exclusions=books.reference_exclusions,
        costs=costs,
        facts={**(facts or {}), "processes": place.world_size, "references": len(references)},
    )


def check_any(videos: Sequence[Video], *, name: str, left_out: Mapping[str, str]) -> None:
    """Raise ValueError where there is no video; tells why those that were found are none."""
    if videos:
        return
    message = f"{name}: expected at least one whole video, found none"
    if left_out:
        first, reason = next(iter(left_out.items()))
        message += f"; {len(left_out)} left out, the first: {first}: {reason}"
    raise ValueError(message)


def _in_turn(count: int, *, place: Place) -> Iterator[int]:
    """Numbers of the videos of a process; the first one looks at those of others afterwards.

    From their end: there the others have not been yet, should one of them be slow.
    """
    yield from range(place.rank, count, place.world_size)
    if place.is_main:
        yield from (i for i in reversed(range(count)) if i % place.world_size)


def _check_names(videos: Sequence[Video], *, what: str) -> None:
    name, count = Counter(video.name for video in videos).most_common(1)[0] if videos else ("", 1)
    if count > 1:
        raise ValueError(f"{what}: expected different names, got {count} videos called {name!r}")


class _Books:
    """What the measures found, put together.

    Args:
        maker: Has made all features.
        measures: In the order of the scores.
        references: For measures that compare.
    """

    def __init__(
        self, maker: FeatureMaker, *, measures: Sequence[Measure], references: Sequence[Video]
    ) -> None:
        self._maker, self._measures, self._references = maker, measures, references
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._videos: Counter[str] = Counter()
        self._of_references: dict[str, Mapping[str, Features]] = {}
        self.reference_exclusions: dict[str, Mapping[str, str]] = {}

    def group(self, videos: Sequence[Video], *, name: str) -> Group:
        """Scores of videos of one task."""
        scores: list[Score] = []
        histograms: list[Histogram] = []
        exclusions, failures = {}, {}
        for measure in self._measures:
            if videos[0].task not in measure.tasks:
                continue
            # Of one measure at a time: features of a thousand videos are not small together.
            features, excluded = self._features(videos, measure=measure)
            if excluded:
                exclusions[measure.name] = excluded
            try:
                references = self._reference_features(measure)
                scores += _checked(measure.scores(features, references=references))
                if features:
                    histograms += measure.histograms(features, references=references)
            except ValueError as error:
                failures[measure.name] = str(error)
        return Group(
            name=name,
            videos=tuple(video.name for video in videos),
            scores=tuple(scores),
            histograms=tuple(histograms),
            exclusions=exclusions,
            failures=failures,
        )

    def costs(self) -> dict[str, Cost]:
        """By measure, of what was asked for."""
        return {
            name: Cost(seconds=self._seconds[name], videos=count)
            for name, count in self._videos.items()
        }

    def _reference_features(self, measure: Measure) -> Mapping[str, Features]:
        if not measure.compares_with_references:
            return {}
        if measure.name not in self._of_references:
            found, excluded = self._features(self._references, measure=measure)
            self._of_references[measure.name] = found
            if excluded:
                self.reference_exclusions[measure.name] = excluded
        return self._of_references[measure.name]

    def _features(
        self, videos: Sequence[Video], *, measure: Measure
    ) -> tuple[dict[str, Features], dict[str, str]]:
        """Features, and reasons of those that have none, by name."""
        features, excluded = {}, {}
        for video in videos:
            entry = self._maker.entry(video, measure=measure)
            self._seconds[measure.name] += entry.seconds
            self._videos[measure.name] += 1
            if entry.unusable:
                excluded[video.name] = entry.unusable
            else:
                features[video.name] = entry.features
        return features, excluded


def _checked(scores: list[Score]) -> list[Score]:
    """Scores as they are; a number that is none is told and not printed."""
    for score in scores:
        if not np.isfinite(score.value):
            raise ValueError(f"{score.name}: expected a finite number, got {score.value}")
    return scores
