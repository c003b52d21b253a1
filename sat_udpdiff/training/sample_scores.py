"""Scores of sample videos during training, by the measures of evaluation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from sat_udpdiff.config import Task
from sat_udpdiff.evaluation.arrays import ArrayVideo
from sat_udpdiff.evaluation.measure import Features, Measure, UnusableError
from sat_udpdiff.generation import GeneratedSample


@dataclass(kw_only=True, slots=True)
class Findings:
    """What the measures made of one rank's videos; small, so that ranks can exchange it."""

    features: dict[tuple[str, Task | None], dict[str, Features]] = field(default_factory=dict)
    """By measure and task, then by name of the video."""
    excluded: list[str] = field(default_factory=list)
    """Videos that a measure could not judge, with the reason."""
    failures: list[str] = field(default_factory=list)


class SampleScores:
    """Judges samples one by one, then scores all of them, each task by itself.

    Args:
        measures: Of the evaluation; none of them may compare with a reference set.
        fps: Of the samples.

    Raises:
        ValueError: One of them needs references, which a few samples cannot be compared with.
    """

    def __init__(self, measures: Sequence[Measure], *, fps: float) -> None:
        for measure in measures:
            if measure.compares_with_references:
                raise ValueError(
                    f"validation.measures: {measure.name} compares many videos with a reference "
                    "set; expected measures that judge each sample by itself"
                )
        self._measures, self._fps = tuple(measures), fps

    def judge(self, sample: GeneratedSample, *, name: str, findings: Findings) -> None:
        """Add what each measure sees in a sample; a measure that fails leaves a message."""
        video = ArrayVideo.of_sample(sample, name=name, fps=self._fps)
        for measure in self._measures:
            if sample.task not in measure.tasks:
                continue
            try:
                features = measure.features(video)
            except UnusableError as error:
                findings.excluded.append(f"{measure.name} left {name} out: {error}")
            except Exception as error:  # the other measures, and the run, go on
                findings.failures.append(f"{measure.name} of {name}: {_describe(error)}")
            else:
                findings.features.setdefault((measure.name, sample.task), {})[name] = features

    def join(self, shares: Sequence[Findings]) -> tuple[dict[str, float | None], list[str]]:
        """Scores of all ranks' videos, `subject_consistency_depth`, and what failed.

        The number of exclusions is among them where there are measures; None is a score that is
        not finite.
        """
        values: dict[str, float | None] = {}
        failures = [failure for share in shares for failure in share.failures]
        if self._measures:
            values["excluded_videos"] = float(sum(len(share.excluded) for share in shares))
        for measure in self._measures:
            keys = {key for share in shares for key in share.features if key[0] == measure.name}
            for _, task in sorted(keys, key=lambda key: str(key[1])):
                found = _joined([share.features.get((measure.name, task), {}) for share in shares])
                try:
                    scores = measure.scores(found, references={})
                except Exception as error:  # likewise
                    failures.append(f"{measure.name}: {_describe(error)}")
                    continue
                for score in scores:
                    name = score.name if task is None else f"{score.name}_{task}"
                    values[name] = score.value if math.isfinite(score.value) else None
        return values, failures


def _joined(shares: Sequence[dict[str, Features]]) -> dict[str, Features]:
    """Of all ranks in the order of names, so that scores do not depend on who made what."""
    found = {name: features for share in shares for name, features in share.items()}
    return dict(sorted(found.items()))


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
