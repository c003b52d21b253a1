"""Hard cuts within a clip, by PySceneDetect's content score."""

import cv2
import numpy as np
from jaxtyping import Float64, UInt8

from data_loaders.panda_dense.measures import shrink

_WINDOW = 2
"""Steps on each side that a step is compared with, as PySceneDetect's AdaptiveDetector does."""


def content_scores(
    frames: UInt8[np.ndarray, "t h w 3"], *, fps: float
) -> Float64[np.ndarray, "t-1"]:
    """Change from each frame to the next: mean difference of hue, saturation and value, 0..255.

    Args:
        frames: RGB, 0..255, at least one.
        fps: Frames per second, which name the frames and change nothing.
    """
    from scenedetect import ContentDetector, FrameTimecode, StatsManager

    detector = ContentDetector()
    detector.stats_manager = stats = StatsManager()
    key = ContentDetector.FRAME_SCORE_KEY
    scores: list[float] = []
    for i, frame in enumerate(shrink(frames)):
        time = FrameTimecode(i, fps)
        detector.process_frame(time, cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        if i > 0:
            scores.append(float(stats.get_metrics(time, [key])[0]))
    return np.asarray(scores, np.float64)


def find_cuts(scores: Float64[np.ndarray, "n"], *, ratio: float, least: float) -> tuple[int, ...]:
    """Frames that begin a new shot.

    The rule of PySceneDetect's AdaptiveDetector: a step is a cut where its score is at least
    `least` and at least `ratio` times the mean of its neighbours', two on each side. Steady fast
    motion has high scores everywhere, and no cut. At the ends of a clip, where cut lists are off
    by a frame most often, the AdaptiveDetector is blind; here the neighbours that there are count.

    Args:
        scores: Of `content_scores`.
        ratio: To the neighbours.
        least: Score that a cut has at least.

    Returns:
        Indices of frames, from 1, rising.
    """
    found: list[int] = []
    for i, score in enumerate(scores):
        near = np.concatenate([scores[max(0, i - _WINDOW) : i], scores[i + 1 : i + 1 + _WINDOW]])
        usual = near.mean() if len(near) else 0.0
        if score >= least and score >= ratio * usual:
            found.append(i + 1)
    return tuple(found)
