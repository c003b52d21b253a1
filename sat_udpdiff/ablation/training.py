"""The trainings of an ablation as commands of train.py, and where each of them stands."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path

from data_loaders.differences import difference
from data_loaders.latent_cache import cache_settings
from sat_udpdiff.ablation.processes import launcher
from sat_udpdiff.ablation.recipes import ARMS, CURVES, Arm
from sat_udpdiff.ablation.settings import AblationConfig
from sat_udpdiff.config import Config, ConfigError
from sat_udpdiff.config_io import load_config, to_values
from sat_udpdiff.tiny.recipe import REPOSITORY, training_settings
from sat_udpdiff.weights.run_folder import CONFIG_FILE, find_latest, step_folder

SHARED = "shared"
"""Name of the cache that most arms read."""
# Nothing of these changes what is learned.
_HARMLESS = ("run", "log", "validation", "sample")


class State(Enum):
    """Where a training stands."""

    NEW = "new"
    BEGUN = "begun"
    DONE = "done"


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """One arm with one seed."""

    arm: Arm
    seed: int
    folder: Path
    base: tuple[str, ...]
    """Value files."""
    overrides: tuple[str, ...]
    steps: int
    ranks: int

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.arm.name} seed {self.seed}"

    @property
    def log(self) -> Path:
        """What train.py says."""
        return self.folder / "train.log"

    def command(self, *, port: int | None) -> list[str]:
        """As a user would type it; `port` is needed for more than one rank."""
        start = [*launcher(ranks=self.ranks, port=port), "sat_udpdiff/train.py"]
        return [*start, "--base", *self.base, *self.overrides]

    def config(self) -> Config:
        """The resolved configuration.

        Raises:
            ConfigError: A file or a setting is wrong; says which.
        """
        return _load(self.base, self.overrides)

    def state(self) -> State:
        """Where it stands, by its complete checkpoints.

        Raises:
            ConfigError: The folder holds a training of other settings; names the first of them.
            CheckpointError: All its checkpoints are damaged.
        """
        stored = self.folder / CONFIG_FILE
        if not stored.is_file():
            return State.NEW
        if found := difference(_kept(load_config([str(stored)])), _kept(self.config())):
            raise ConfigError(
                f"{self.folder} holds a training of other settings: {found}; give another --output"
            )
        latest = find_latest(self.folder, tell=lambda _: None)
        if latest is None:
            return State.BEGUN
        return State.DONE if latest.step >= self.steps else State.BEGUN

    def checkpoint(self, step: int) -> Path:
        """Folder of a checkpoint."""
        return step_folder(self.folder, step=step)


@cache  # read again for every look at a state otherwise, which takes longer than the look
def _load(base: tuple[str, ...], overrides: tuple[str, ...] = ()) -> Config:
    return load_config([str(REPOSITORY / file) for file in base], overrides)


def _kept(config: Config) -> dict[str, object]:
    values = to_values(config)
    for section in _HARMLESS:
        del values[section]
    # A folder that was moved is still itself; other shards are refused by the ablation's settings.
    for key in ("shards", "latents"):
        del values["data"][key]
    return values


def judged_steps(config: AblationConfig, arm: Arm) -> list[int]:
    """Steps at which an arm is judged: the last one, and those of Fig. 8 where it is in it."""
    steps, every = config.training.steps, config.curve.every_steps
    in_curve = any(arm.name == row.arm for row in CURVES)
    return list(range(every, steps + 1, every)) if every and in_curve else [steps]


def caches(config: AblationConfig, arms: Sequence[Arm]) -> Mapping[str, tuple[str, ...]]:
    """The caches of latents that arms need: name -> value files to make it with.

    Arms whose captions, colours and sizes are those of multitask.yaml, which has the maps of both
    tasks, share one; any other arm has its own.
    """
    family = config.training.base
    needed: dict[str, tuple[str, ...]] = {}
    for arm in arms:
        name = cache_name(config, arm)
        files = ARMS["multitask"].paths if name == SHARED else arm.paths
        needed[name] = (family, *files)
    return needed


def cache_name(config: AblationConfig, arm: Arm) -> str:
    """Of the cache that an arm reads."""
    shared, own = (
        _cache_key(config.training.base, files) for files in (ARMS["multitask"].paths, arm.paths)
    )
    return SHARED if own == shared else arm.name


@cache
def _cache_key(family: str, files: tuple[str, ...]) -> dict[str, object]:
    config = _load((family, *files))
    settings = cache_settings(config, recolourings=1)
    # Which maps are needed is no matter: the shared cache has all.
    return {key: value for key, value in settings.items() if key != "tasks"}


def recolourings(config: AblationConfig, files: Sequence[str]) -> int:
    """Colourings per clip of a cache; colours by place are the same each time."""
    colormap = _load(tuple(files)).colormap
    return 1 if colormap.segmentation == "location_aware" else config.data.recolourings


def make_training(
    config: AblationConfig, arm: Arm, *, seed: int, output: Path, shards: str
) -> Training:
    """The training of an arm with a seed; nothing is started.

    Args:
        config: Of the ablation.
        arm: What it trains.
        seed: Of training.
        output: Folder of the ablation.
        shards: What it is trained on, should latents not be made beforehand.

    Raises:
        ConfigError: A file or setting of the training is wrong.
    """
    settings, folder = config.training, output / "runs" / f"{arm.name}_seed{seed}"
    in_curve = len(judged_steps(config, arm)) > 1
    if config.data.encode_once:
        latents = output / "latents" / cache_name(config, arm)
        data = ["data.source=latents", f"data.latents={latents}"]
    else:
        data = [f"data.shards={shards}"]
    overrides = [
        *data,
        f"run.output={folder}",
        f"seed={seed}",
        f"train.steps={settings.steps}",
        *(training_settings(ranks=settings.ranks) if settings.recipe == "tiny" else ()),
        f"checkpoint.every_steps={config.curve.every_steps or settings.steps}",
        f"checkpoint.keep_last={0 if in_curve else 1}",
        *settings.settings,
    ]
    training = Training(
        arm=arm,
        seed=seed,
        folder=folder,
        base=(settings.base, *arm.paths),
        overrides=tuple(overrides),
        steps=settings.steps,
        ranks=settings.ranks,
    )
    training.config()
    return training
