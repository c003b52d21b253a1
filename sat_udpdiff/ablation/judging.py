"""Sampling and scoring a training at a step: a command of evaluate.py, and what it found."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sat_udpdiff.ablation.settings import AblationConfig
from sat_udpdiff.ablation.training import Training
from sat_udpdiff.config import ConfigError, Task
from sat_udpdiff.evaluation.results import read_results
from sat_udpdiff.evaluation.run import NO_MAP, Evaluation
from sat_udpdiff.tiny.recipe import REPOSITORY

RESULTS_FILE = "results.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What an evaluation says of one training at one step."""

    scores: Mapping[Task | None, Mapping[str, float]]
    failures: Mapping[str, str] = field(default_factory=dict)
    """What was to be judged and could not be -> why; videos left out are counted here, too."""


def command(
    config: AblationConfig, training: Training, *, step: int, folder: Path, output: Path
) -> list[str]:
    """The command that samples and judges a checkpoint, as a user would type it."""
    return [
        *("python", "sat_udpdiff/evaluate.py", "--config", *config.evaluation),
        *("--load", str(training.checkpoint(step)), "--output", str(folder)),
        f"cache={output / 'features'}",
        *config.evaluation_settings,
    ]


def check(config: AblationConfig) -> None:
    """Look at the settings of evaluate.py before anything is trained.

    Raises:
        ConfigError: A file is missing, or one of its settings is wrong.
    """
    for file in config.evaluation:
        if not (REPOSITORY / file).is_file():
            raise ConfigError(f"evaluation: there is no file {file}", keys=("evaluation",))


def read(folder: Path, *, training: Training) -> Found | None:
    """The scores of a folder that `command` fills; None while they are not all there."""
    path = folder / RESULTS_FILE
    if not path.is_file():
        return None
    return found_in(read_results(path), training=training)


def found_in(evaluations: list[Evaluation], *, training: Training) -> Found:
    """The scores of an evaluation by task, and what it could not judge."""
    scores: dict[Task | None, dict[str, float]] = {}
    failures: dict[str, str] = {}
    for evaluation in evaluations:
        for task in training.arm.judged:
            name = task or NO_MAP
            group = evaluation.group(name)
            if group is None:
                failures[name] = "no samples"
                continue
            found = scores.setdefault(task, {})
            found.update({score.name: score.value for score in group.scores})
            failures |= {f"{name}, {measure}": why for measure, why in group.failures.items()}
            for measure, videos in group.exclusions.items():
                reason = next(iter(videos.values()))
                failures[f"{name}, {measure}, {len(videos)} videos left out"] = reason
    return Found(scores=scores, failures=failures)
