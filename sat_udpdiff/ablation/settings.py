"""Settings of an ablation: what is trained and how it is judged; its YAML files and words."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from sat_udpdiff.ablation.recipes import Arm, choose_arms
from sat_udpdiff.ablation.scores import FED_BY
from sat_udpdiff.config import ConfigError
from sat_udpdiff.config_sources import load_settings, plain
from sat_udpdiff.evaluation.settings import EvaluationConfig
from sat_udpdiff.evaluation.settings import check as check_evaluation


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingSettings:
    """How every arm is trained; equal for all."""

    base: str = "configs/tiny.yaml"
    """Value file of the family."""
    recipe: Literal["tiny", "family"] = "tiny"
    """tiny: batch, rate and schedule of `make demo` on top of the family's; family: its own."""
    steps: int = 320
    settings: tuple[str, ...] = ()
    """Further `key=value` for every training, such as optimizer.lr=2e-5."""
    ranks: int = 1
    """Processes of one training, and of its evaluation; above 1 through the deepspeed launcher."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSettings:
    """What all arms are trained on."""

    shards: str = ""
    """Folder or address of shards; empty = a synthetic world is made in the output folder."""
    clips: int = 512
    """Of the synthetic world."""
    encode_once: bool = True
    """Latents of the frozen encoders are made before training, one cache for all arms that can
    share it; false: every training encodes for itself."""
    recolourings: int = 4
    """Colourings of the entities of each clip in the caches."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CurveSettings:
    """Fig. 8: scores over steps of the arms that start from nothing."""

    every_steps: int = 80
    """A divisor of training.steps; 0 = only the end is judged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSettings:
    """How the work is done; may change from call to call."""

    jobs: int = 2
    """Trainings and evaluations side by side."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AblationConfig:
    """All of an ablation."""

    arms: tuple[str, ...] = ()
    """Names of trainings (see --list); none = all."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of training; weights, data order and noise are drawn from them. Intervals need two."""
    scores: Literal["tiny", "paper"] = "tiny"
    """Which scores fill the paper's columns: those of the tiny world's judge, or the paper's own,
    which need weights."""
    training: TrainingSettings = field(default_factory=TrainingSettings)
    data: DataSettings = field(default_factory=DataSettings)
    curve: CurveSettings = field(default_factory=CurveSettings)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """What every network is judged by, and on which prompts; equal for all."""
    run: RunSettings = field(default_factory=RunSettings)


FREE = ("arms", "seeds", "run")
"""Settings that an output folder does not bind: more of the same may be added to it."""


def load(files: Sequence[str], overrides: Sequence[str] = ()) -> AblationConfig:
    """The settings of files and `dotted.key=value` words, checked; later ones win.

    Raises:
        ConfigError: One line naming the key, what was expected, what came, and from where.
    """
    config = load_settings(AblationConfig, files, overrides)
    _check(config)
    return config


def bound(config: AblationConfig) -> dict[str, Any]:
    """The settings that one output folder can have only one of, as JSON values."""
    values = {key: value for key, value in plain(asdict(config)).items() if key not in FREE}
    # No number depends on it, either.
    del values["evaluation"]["run"]
    return values


def chosen(config: AblationConfig) -> tuple[Arm, ...]:
    """The arms to train, in the order of training."""
    return choose_arms(config.arms)


def _check(config: AblationConfig) -> None:
    choose_arms(config.arms)
    try:
        check_evaluation(config.evaluation)
    except ConfigError as error:
        raise ConfigError(f"evaluation: {error}", keys=error.keys) from None
    feeding, measures = FED_BY[config.scores], config.evaluation.measures
    if not set(feeding) & set(measures):
        raise ConfigError(
            f"evaluation.measures: expected {' or '.join(feeding)} with scores={config.scores}, "
            f"which verdicts are made of, got {', '.join(measures)}",
            keys=("evaluation.measures", "scores"),
        )
    if config.evaluation.sample.tasks:
        raise ConfigError(
            "evaluation.sample.tasks: expected none, since every arm has its own, got "
            f"{', '.join(config.evaluation.sample.tasks)}",
            keys=("evaluation.sample.tasks",),
        )
    if not config.seeds:
        raise ConfigError("seeds: expected at least one, got none", keys=("seeds",))
    if len(set(config.seeds)) < len(config.seeds) or min(config.seeds) < 0:
        raise ConfigError(
            f"seeds: expected different integers >= 0, got {list(config.seeds)}", keys=("seeds",)
        )
    for key, value, least in (
        ("training.steps", config.training.steps, 1),
        ("training.ranks", config.training.ranks, 1),
        ("data.clips", config.data.clips, 1),
        ("data.recolourings", config.data.recolourings, 1),
        ("curve.every_steps", config.curve.every_steps, 0),
        ("run.jobs", config.run.jobs, 1),
    ):
        if value < least:
            raise ConfigError(f"{key}: expected at least {least}, got {value}", keys=(key,))
    every, steps = config.curve.every_steps, config.training.steps
    if every and steps % every:
        raise ConfigError(
            f"curve.every_steps: expected a divisor of training.steps={steps}, got {every}",
            keys=("curve.every_steps", "training.steps"),
        )
