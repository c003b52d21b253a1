"""Measures of the tiny world: the formulas of the real ones, by the eyes of its own judge.

Their scores begin with `tiny_` and compare videos of the simple world at 9 x 32 x 48 with each
other. Three limits to know. Consistency and smoothness are best for a video in which nothing moves,
as VBench's are; only the distance from true clips tells such a video from a good one. A frame in
which the judge sees no thing is like no other: its subject consistency is 0. And things of one
colour are one entity to the judge.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from jaxtyping import Float32, Float64, Int32, UInt8

from sat_udpdiff.evaluation.fvd_measure import Fvd, FvdSettings
from sat_udpdiff.evaluation.measure import Features, Histogram, Measure, Score, UnusableError, Video
from sat_udpdiff.evaluation.motion_smoothness import FlowMidFrames
from sat_udpdiff.evaluation.truth_measures import DepthAgainstTruth, SegmentationAgainstTruth
from sat_udpdiff.evaluation.vbench_measures import (
    BackgroundConsistency,
    MotionSmoothness,
    SubjectConsistency,
)
from sat_udpdiff.tiny.judge import FEATURES, ClipVerdict, Judge

Pixels = UInt8[np.ndarray, "t h w 3"]
HEAD = "tiny_"
# Of the score of smoothness by optical flow; nothing here is by another method.
_FLOW = "_flow"


class Eyes:
    """The judge behind the seams of the measures; remembers the last clip.

    Several measures ask about one video in turn.
    """

    name = "the tiny world's judge"

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._last: tuple[Pixels, ClipVerdict] | None = None

    @property
    def key(self) -> str:
        """The judge's weights."""
        return f"tiny judge {self._judge.key}"

    def see(self, rgb: Pixels) -> ClipVerdict:
        """What the judge says of a clip; UnusableError for one of another size."""
        if self._last is None or not np.array_equal(self._last[0], rgb):
            try:
                self._last = (rgb, self._judge(rgb))
            except ValueError as error:
                raise UnusableError(str(error)) from error
        return self._last[1]

    def depth(self, rgb: Pixels) -> Float32[np.ndarray, "t h w"]:
        """Disparity in [0, 1], 1 = near."""
        return self.see(rgb).depth

    def entities(self, rgb: Pixels) -> Int32[np.ndarray, "t h w"]:
        """Entity of each pixel, the same id over the whole clip; never 0."""
        return self.see(rgb).entity_ids


class _FrameEyes:
    """Features of frames, of their things or of what is behind them."""

    def __init__(self, eyes: Eyes, *, part: str) -> None:
        self._eyes, self._part = eyes, part

    @property
    def digest(self) -> str:
        return self._eyes.key

    def __call__(self, frames: Pixels) -> Float32[np.ndarray, "t d"]:
        return getattr(self._eyes.see(frames), f"{self._part}_features").astype(np.float32)


class _ClipEyes:
    """Features of whole clips, for the distance."""

    dim = FEATURES

    def __init__(self, eyes: Eyes) -> None:
        self._eyes = eyes

    @property
    def key(self) -> str:
        return self._eyes.key

    def __call__(self, rgb: Pixels) -> Float64[np.ndarray, " d"]:
        return self._eyes.see(rgb).clip_features


class TinyMeasure(Measure):
    """A measure whose scores are the tiny world's own, and say so.

    Args:
        measure: With the judge in the place of its networks.
    """

    def __init__(self, measure: Measure) -> None:
        self._measure = measure
        self.name = HEAD + measure.name.removesuffix(_FLOW)
        self.tasks = measure.tasks
        self.compares_with_references = measure.compares_with_references
        self.may_be_missing, self.min_videos = measure.may_be_missing, measure.min_videos

    @property
    def key(self) -> str:
        """That of the measure."""
        return self._measure.key

    def features(self, video: Video) -> Features:
        """Those of the measure."""
        return self._measure.features(video)

    def histograms(
        self, features: Mapping[str, Features], *, references: Mapping[str, Features]
    ) -> list[Histogram]:
        """Those of the measure, by other names."""
        found = self._measure.histograms(features, references=references)
        return [replace(one, name=HEAD + one.name) for one in found]

    def scores(
        self, features: Mapping[str, Features], *, references: Mapping[str, Features]
    ) -> list[Score]:
        """Those of the measure, by other names.

        Raises:
            ValueError: As of the measure, by this one's name.
        """
        try:
            scores = self._measure.scores(features, references=references)
        except ValueError as error:
            raise ValueError(f"{HEAD}{error}") from error
        return [
            replace(
                score,
                name=HEAD + score.name.removesuffix(_FLOW),
                facts={**score.facts, "comparable": False},
            )
            for score in scores
        ]


def single_measures(eyes: Eyes) -> list[Measure]:
    """What judges each video by itself: consistency, smoothness, depth, segmentation.

    Depth is scored where the truth is above .001: of the wall, which is 0, no ratio is right.
    """
    return [
        TinyMeasure(measure)
        for measure in (
            SubjectConsistency(_FrameEyes(eyes, part="subject")),
            BackgroundConsistency(_FrameEyes(eyes, part="background")),
            MotionSmoothness(FlowMidFrames()),
            DepthAgainstTruth(eyes, scored="above_least"),
            SegmentationAgainstTruth(eyes),
        )
    ]


def distance(eyes: Eyes, *, settings: FvdSettings) -> Measure:
    """The Frechet distance from true clips, by the judge's features of whole clips."""
    return TinyMeasure(Fvd(_ClipEyes(eyes), protocol=None, settings=settings))
