"""All settings of an evaluation: its value files and the words of the command line."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import yaml

from sat_udpdiff.config import ConfigError
from sat_udpdiff.config_io import plain
from sat_udpdiff.config_sources import Setting, build, read_file, read_override

MeasureName = Literal["consistency", "agreement", "entities"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptSettings:
    """What a network is asked for (`--load`)."""

    source: Literal["reference", "world", "file"] = "reference"
    """reference: captions of the reference shards; world: of held-out clips of the synthetic world;
    file: lines of a text file."""
    file: str = ""
    """source file: UTF-8 text, a prompt per line."""
    count: int = 1024
    """The paper's 1024; of a file at most all its lines."""
    caption: Literal["long", "short"] = "long"


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleSettings:
    """How a network is sampled (`--load`)."""

    seed: int = 0
    """Prompt number k is sampled with seed + k, for every task and network alike."""
    num_steps: int | None = None
    """null = those of the network's configuration."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceSettings:
    """Real videos to compare with."""

    source: Literal["none", "shards", "world"] = "shards"
    """shards: `--reference` or `shards`; world: the clips of the prompts, rendered."""
    shards: str = ""
    """Folder of shards, its address, or the output of the data set pipeline, whose held-out split
    is taken then. Empty: no reference set, and no score that needs one."""
    count: int = 1024
    """Clips; fewer are taken where there are fewer."""
    world: Literal["simple", "full"] = "simple"
    """source world, here or of the prompts: which one."""
    world_seed: int = 0
    """source world, here or of the prompts: its seed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSettings:
    """How the work is done; no number depends on it."""

    cache: str = ""
    """Folder of features; empty = `features` in the output."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    shown: int = 1
    """Samples that the page shows of each score: so many of the best, the middle and the worst."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """Which videos, judged by what."""

    measures: tuple[MeasureName, ...] = ("consistency", "agreement", "entities")
    """In the order of the report."""
    prompts: PromptSettings = field(default_factory=PromptSettings)
    sample: SampleSettings = field(default_factory=SampleSettings)
    reference: ReferenceSettings = field(default_factory=ReferenceSettings)
    run: RunSettings = field(default_factory=RunSettings)


def load(files: Sequence[str], overrides: Sequence[str] = ()) -> EvaluationConfig:
    """The settings of files and `dotted.key=value` words; later ones win.

    Raises:
        ConfigError: One line naming the key, what was expected, what came, and from where.
    """
    settings: dict[str, Setting] = {}
    for path in files:
        settings |= read_file(Path(path), cls=EvaluationConfig)
    for override in overrides:
        settings |= read_override(override, cls=EvaluationConfig)
    config = build(EvaluationConfig, {key: setting.value for key, setting in settings.items()})
    check(config)
    return config


def dump(config: EvaluationConfig) -> str:
    """Every value as YAML text, which `load` reads again."""
    head = "# Settings of this evaluation. To use them again: --config evaluation.yaml\n"
    return head + yaml.safe_dump(
        plain(asdict(config)), sort_keys=False, allow_unicode=True, width=100
    )


def check(config: EvaluationConfig) -> None:
    """See that values are possible, and go together.

    Raises:
        ConfigError: One is not; names the key.
    """
    least = {
        "prompts.count": (config.prompts.count, 1),
        "sample.seed": (config.sample.seed, 0),
        "sample.num_steps": (1 if config.sample.num_steps is None else config.sample.num_steps, 1),
        "reference.count": (config.reference.count, 1),
        "reference.world_seed": (config.reference.world_seed, 0),
        "run.shown": (config.run.shown, 1),
    }
    for key, (value, minimum) in least.items():
        if value < minimum:
            raise ConfigError(f"{key}: expected at least {minimum}, got {value}", keys=(key,))
    if not config.measures:
        raise ConfigError("measures: expected one or more, got none", keys=("measures",))
    if len(set(config.measures)) < len(config.measures):
        raise ConfigError(
            f"measures: expected each once, got {', '.join(config.measures)}", keys=("measures",)
        )
    if (config.prompts.source == "file") != bool(config.prompts.file):
        raise ConfigError(
            "prompts.file: expected a file with prompts.source=file and nothing else, "
            f"got {config.prompts.file!r} with source {config.prompts.source}",
            keys=("prompts.file", "prompts.source"),
        )
