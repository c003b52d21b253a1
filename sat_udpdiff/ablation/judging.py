"""Sampling and scoring a training at a step: a command of evaluate.py, and what it found."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from data_loaders.atomic_file import write_atomically
from data_loaders.order import ClipSize
from sat_udpdiff.ablation.processes import launcher
from sat_udpdiff.ablation.settings import AblationConfig
from sat_udpdiff.ablation.settings import chosen as chosen_arms
from sat_udpdiff.ablation.training import Training
from sat_udpdiff.config import ConfigError, DataConfig, Task
from sat_udpdiff.evaluation.choose import Around, make_measures
from sat_udpdiff.evaluation.inputs import check_counts, find_prompts, find_references
from sat_udpdiff.evaluation.measure import Fact
from sat_udpdiff.evaluation.references import ClipFit
from sat_udpdiff.evaluation.results import read_results
from sat_udpdiff.evaluation.run import NO_MAP, Evaluation
from sat_udpdiff.evaluation.settings import dump

RESULTS_FILE = "results.json"
SETTINGS_FILE = "evaluation.yaml"


@dataclass(frozen=True, kw_only=True, slots=True)
class StepScores:
    """What an evaluation says of one training at one step."""

    scores: Mapping[Task | None, Mapping[str, float]]
    failures: Mapping[str, str] = field(default_factory=dict)
    """What was to be judged and could not be -> why; videos left out are counted here, too."""
    has_all: bool = True
    """Whether every measure that was asked for a task scored it."""
    facts: Mapping[str, Mapping[str, Fact]] = field(default_factory=dict)
    """Name of a score -> what it depends on."""


def check(config: AblationConfig, *, data: DataConfig, output: Path) -> None:
    """See that everything is there that networks are judged with.

    Args:
        config: Of the ablation.
        data: Of its trainings: the size of the samples.
        output: Folder of the ablation.

    Raises:
        ValueError: Names every measure that cannot be made, and what it lacks; or prompts or
            reference clips are not there, or are too few for a distance.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = config.evaluation
    measures = make_measures(chosen, around=Around(device=device, cache=_cache(config, output)))
    size = ClipSize(num_frames=data.num_frames, height=data.height, width=data.width)
    fit = ClipFit(size=size, fps=data.fps)
    try:
        prompts = len(find_prompts(chosen, fit=fit))
        references = len(find_references(chosen.reference, fit=fit).videos)
        tasks: list[Task | None] = []
        for arm in chosen_arms(config):
            tasks.extend(task for task in arm.judged if task not in tasks)
        check_counts(tasks * prompts, references=references, measures=measures)
    except ValueError as error:
        raise ConfigError(f"evaluation.{error}") from error


def _cache(config: AblationConfig, output: Path) -> Path:
    """Features; one folder for all, so that the references are looked at once."""
    return Path(config.evaluation.run.cache or output / "features").expanduser()


def command(training: Training, *, step: int, output: Path, port: int | None) -> list[str]:
    """The command that samples and judges a checkpoint, as a user would type it.

    Args:
        training: What is judged, by as many processes as train it.
        step: Of its checkpoint.
        output: Folder of the ablation, where `write_settings` was called.
        port: Needed for more than one process.
    """
    words = [*launcher(ranks=training.ranks, port=port), "sat_udpdiff/evaluate.py"]
    words += ["--config", str(output / SETTINGS_FILE)]
    words += ["--load", str(training.checkpoint(step)), "--name", f"{training.name}, step {step}"]
    # A network of two tasks need not be sampled for both; one without dense maps has none.
    tasks = [task for task in training.arm.judged if task is not None]
    words += ["--output", str(folder_of(training, step=step))]
    return [*words, f"sample.tasks=[{','.join(tasks)}]"]


def folder_of(training: Training, *, step: int) -> Path:
    """Where the samples and scores of a training at a step are."""
    return training.folder.with_name(f"{training.folder.name}_judged") / f"step_{step:08d}"


def write_settings(config: AblationConfig, *, output: Path) -> None:
    """Write the settings that every call of evaluate.py reads."""
    shared = replace(config.evaluation.run, cache=str(_cache(config, output)))
    content = dump(replace(config.evaluation, run=shared))
    write_atomically(output / SETTINGS_FILE, content.encode())


def read(training: Training, *, step: int) -> StepScores | None:
    """The scores of a training at a step; None while they are not there.

    Raises:
        ValueError: The file cannot be read; names it.
    """
    path = folder_of(training, step=step) / RESULTS_FILE
    if not path.is_file():
        return None
    return found_in(read_results(path), training=training)


def found_in(evaluations: list[Evaluation], *, training: Training) -> StepScores:
    """The scores of an evaluation by task, and what it could not judge."""
    scores: dict[Task | None, dict[str, float]] = {}
    failures: dict[str, str] = {}
    facts: dict[str, Mapping[str, Fact]] = {}
    has_all = True
    for evaluation in evaluations:
        failures |= _counted(evaluation.left_out, what="samples left out")
        for measure, videos in evaluation.reference_exclusions.items():
            failures |= _counted(videos, what=f"{measure}, references left out")
        for task in training.arm.judged:
            name = task or NO_MAP
            group = evaluation.group(name)
            if group is None:
                failures[name] = "no samples"
                has_all = False
                continue
            has_all = has_all and not group.failures
            facts |= {score.name: score.facts for score in group.scores}
            found = scores.setdefault(task, {})
            found.update({score.name: score.value for score in group.scores})
            failures |= {f"{name}, {measure}": why for measure, why in group.failures.items()}
            for measure, videos in group.exclusions.items():
                failures |= _counted(videos, what=f"{name}, {measure}, videos left out")
    return StepScores(scores=scores, failures=failures, has_all=has_all, facts=facts)


def _counted(reasons: Mapping[str, str], *, what: str) -> dict[str, str]:
    """How many there are, and why the first of them; nothing of nothing."""
    return {f"{what}: {len(reasons)}": next(iter(reasons.values()))} if reasons else {}
