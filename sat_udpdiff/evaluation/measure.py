"""What a measure of videos is: features of one video after another, then scores of them all.

Videos are seen one at a time, so that a thousand of them never lie in memory together. Features are
small, depend on one video and the measure's key alone, and are cached by content; scores are made
from features, so that intervals and other sets cost nothing more.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Float64, Int32, UInt8

from sat_udpdiff.config import Task

Features = dict[str, np.ndarray]
"""Named arrays that a measure makes of one video; numbers are arrays of no dimension."""
Fact = str | int | float | bool | None
"""What is told beside a number so that it can be compared: N, T, fps, protocol, hashes."""


class UnusableError(ValueError):
    """A video that a measure cannot judge; it is left out and counted, with this reason."""


class NoRoomError(UnusableError):
    """A video that would not fit on this device now; another time it may, so nothing is kept."""


@runtime_checkable
class Video(Protocol):
    """A generated or a real clip, read when it is asked for and not kept."""

    @property
    def name(self) -> str:
        """Unique among the videos of an evaluation; the name of its folder or file."""
        ...

    @property
    def prompt(self) -> str:
        """What it was made from, or its caption; may be empty."""
        ...

    @property
    def task(self) -> Task | None:
        """What its dense map shows; None without one."""
        ...

    @property
    def fps(self) -> float:
        """Frames per second."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 of everything below, in hex."""
        ...

    @property
    def path(self) -> Path | None:
        """The file of the video, None where it has none of its own."""
        ...

    def rgb(self) -> UInt8[np.ndarray, "t h w 3"]:
        """The frames."""
        ...

    def dense(self) -> UInt8[np.ndarray, "t h w 3"] | None:
        """The dense map in colours, None without one."""
        ...

    def entity_ids(self) -> Int32[np.ndarray, "t h w"] | None:
        """Entity of each pixel over the whole clip, 0 = unlabelled; None where unknown."""
        ...

    def depth(self) -> Float32[np.ndarray, "t h w"] | None:
        """Disparity in [0, 1], 1 = near; None where unknown."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """One number for a set of videos."""

    name: str
    """snake_case, unique among all measures: `subject_consistency`, `fvd`, `depth_delta1`."""
    value: float
    higher_is_better: bool
    per_video: Mapping[str, float] = field(default_factory=dict)
    """By name of the video; empty where only the set has a score. The value need not be their mean:
    VBench pools over frames."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """By name of the video, what weighs in the pool: frames compared. Empty for plain means."""
    interval: tuple[float, float] | None = None
    """95 %, by bootstrap over videos; None where there are too few."""
    facts: Mapping[str, Fact] = field(default_factory=dict)
    """What the number depends on; printed beside it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Histogram:
    """Something to look at beside the scores."""

    name: str
    """snake_case, unique among all measures: `depth_error`."""
    axis: str
    """What is counted, with its unit."""
    edges: tuple[float, ...]
    """Of the bins, rising; one more than bins."""
    shares: Mapping[str, tuple[float, ...]]
    """By what they are of ('true', 'found', '' where there is one); each sums to 1."""


class Measure(ABC):
    """Turns videos into features and features into scores."""

    name: str
    """As in settings and messages; several scores may come from one measure."""
    tasks: frozenset[Task | None] = frozenset({"segmentation", "depth", None})
    """Whose samples it judges; others are no exclusions, they are not asked."""
    compares_with_references: bool = False
    """Whether `scores` wants features of the reference set, too."""
    min_videos: int = 1
    """Of a task, and of references where they are compared with; fewer have no score."""
    may_be_missing: frozenset[str] = frozenset()
    """Features that are nan where a video has no such number. A video of which any other feature is
    not finite is left out and counted: weights or arithmetic are broken."""

    @property
    @abstractmethod
    def key(self) -> str:
        """All that the features depend on besides the video: weights, protocol, version.

        A part of the cache's address; any string.
        """

    @abstractmethod
    def features(self, video: Video) -> Features:
        """Features of one video.

        Raises:
            UnusableError: It cannot be judged; the reason is counted and reported.
        """

    @abstractmethod
    def scores(
        self, features: Mapping[str, Features], *, references: Mapping[str, Features]
    ) -> list[Score]:
        """Scores of a set of videos of one task.

        Args:
            features: Of the videos that could be judged, by name, in the order of the set.
            references: Likewise of the reference set; empty unless `compares_with_references`.

        Raises:
            ValueError: The set as a whole cannot be scored (too few videos); says what is missing.
        """

    def histograms(
        self, features: Mapping[str, Features], *, references: Mapping[str, Features]
    ) -> list[Histogram]:
        """Histograms of the same features, at least one of which is there; none by default."""
        del features, references
        return []


def count_histogram(name: str, counts: Mapping[str, Sequence[int]], *, axis: str) -> Histogram:
    """Shares of videos by a number of things, a bin for each number up to the largest.

    Args:
        name: Of the histogram.
        counts: By what they are of, one number >= 0 per video; those without any are left out.
        axis: What is counted.
    """
    length = 1 + max(max(of, default=0) for of in counts.values())
    return Histogram(
        name=name,
        axis=axis,
        edges=tuple(float(edge) - 0.5 for edge in range(length + 1)),
        shares={
            of: tuple((np.bincount(some, minlength=length) / len(some)).tolist())
            for of, some in counts.items()
            if some
        },
    )


def bootstrap_mean(
    values: Float64[np.ndarray, " n"], *, resamples: int = 1000, seed: int = 0
) -> tuple[float, float] | None:
    """95 % percentile interval of the mean over videos; None for less than two of them."""
    if len(values) < 2:
        return None
    rng = np.random.default_rng(seed)
    means = np.array([rng.choice(values, len(values)).mean() for _ in range(resamples)])
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def mean_score(
    name: str,
    per_video: Mapping[str, float],
    *,
    higher_is_better: bool,
    facts: Mapping[str, Fact] | None = None,
) -> Score:
    """The mean over videos with its bootstrap interval.

    Raises:
        ValueError: There is no video, or a value is not finite (the message names the videos).
    """
    if not per_video:
        raise ValueError(f"{name}: no video could be judged")
    if bad := [video for video, value in per_video.items() if not np.isfinite(value)]:
        raise ValueError(f"{name}: expected finite numbers, got others for {', '.join(bad)}")
    values = np.array(list(per_video.values()), dtype=np.float64)
    return Score(
        name=name,
        value=float(values.mean()),
        higher_is_better=higher_is_better,
        per_video=dict(per_video),
        interval=bootstrap_mean(values),
        facts=dict(facts or {}),
    )
