"""Subject consistency, background consistency and motion smoothness, as measures of videos."""

from collections.abc import Mapping

import numpy as np

from sat_udpdiff.evaluation.frame_features import FrameFeatures
from sat_udpdiff.evaluation.measure import (
    Fact,
    Features,
    Measure,
    Score,
    UnusableError,
    Video,
    mean_score,
)
from sat_udpdiff.evaluation.motion_smoothness import MidFrames, mid_frame_differences
from sat_udpdiff.evaluation.vbench import (
    VERSION,
    consistency_terms,
    motion_smoothness,
    pooled_interval,
    pooled_mean,
)

_TERMS = "terms"
_DIFFERENCES = "differences"
_FRAMES = "frames"


class _Consistency(Measure):
    """Likeness of frames by a network's features.

    Args:
        features_of: `dino_features` or `clip_features`.
    """

    network: str

    def __init__(self, features_of: FrameFeatures) -> None:
        self._features_of = features_of

    @property
    def key(self) -> str:
        """Formula and weights."""
        return f"{self.name} {VERSION} 1 {self._features_of.digest}"

    def features(self, video: Video) -> Features:
        """The terms of the frames but the first, float64, and the number of frames.

        Raises:
            UnusableError: One frame, or features that are not finite.
        """
        frames = video.rgb()
        if len(frames) < 2:
            raise UnusableError(f"expected 2 or more frames, got {len(frames)}")
        return {
            _TERMS: consistency_terms(self._features_of(frames)),
            _FRAMES: np.array(len(frames)),
        }

    def scores(
        self, features: Mapping[str, Features], *, references: Mapping[str, Features]
    ) -> list[Score]:
        """One score, pooled over the frames of all videos; intervals are over videos.

        Raises:
            ValueError: No video could be judged.
        """
        if not features:
            raise ValueError(f"{self.name}: no video could be judged")
        terms = [video[_TERMS] for video in features.values()]
        facts = _facts(features) | {
            "network": self.network,
            "weights": self._features_of.digest,
            "comparable": True,
        }
        return [
            Score(
                name=self.name,
                value=pooled_mean(terms),
                higher_is_better=True,
                per_video={name: float(v[_TERMS].mean()) for name, v in features.items()},
                counts={name: len(v[_TERMS]) for name, v in features.items()},
                interval=pooled_interval(terms),
                facts=facts,
            )
        ]


class SubjectConsistency(_Consistency):
    """VBench's subject consistency: DINO ViT-B/16 (`dino_features`)."""

    name = "subject_consistency"
    network = "DINO ViT-B/16"


class BackgroundConsistency(_Consistency):
    """VBench's background consistency: CLIP ViT-B/32 (`clip_features`)."""

    name = "background_consistency"
    network = "CLIP ViT-B/32"


class MotionSmoothness(Measure):
    """VBench's motion smoothness (`AmtMidFrames`), or ours under another name (`FlowMidFrames`).

    Args:
        predict: What predicts frames from those beside them.
    """

    def __init__(self, predict: MidFrames) -> None:
        self._predict = predict
        self._is_vbench = predict.backend == "amt"
        # A name of its own: nobody shall put it into VBench's column.
        self.name = "motion_smoothness" if self._is_vbench else "motion_smoothness_flow"

    @property
    def key(self) -> str:
        """Formula, backend and weights."""
        return f"{self.name} {VERSION} 1 {self._predict.backend} {self._predict.digest}"

    def features(self, video: Video) -> Features:
        """Differences of the odd frames from their predictions, float64, and number of frames.

        Raises:
            UnusableError: Fewer than 3 frames, too small, or a prediction that is not finite.
        """
        frames = video.rgb()
        return {
            _DIFFERENCES: mid_frame_differences(frames, predict=self._predict),
            _FRAMES: np.array(len(frames)),
        }

    def scores(
        self, features: Mapping[str, Features], *, references: Mapping[str, Features]
    ) -> list[Score]:
        """One score, the mean over videos.

        Raises:
            ValueError: No video could be judged.
        """
        per_video = {name: motion_smoothness(v[_DIFFERENCES]) for name, v in features.items()}
        facts = _facts(features) | {
            "backend": self._predict.backend,
            "weights": self._predict.digest,
            "comparable": self._is_vbench,
        }
        return [mean_score(self.name, per_video, higher_is_better=True, facts=facts)]


def _facts(features: Mapping[str, Features]) -> dict[str, Fact]:
    counts = [int(video[_FRAMES]) for video in features.values()]
    least, most = min(counts, default=0), max(counts, default=0)
    frames: Fact = least if least == most else f"{least}-{most}"
    return {"formula": VERSION, "videos": len(features), "frames": frames}
