"""The work of an ablation: data, trainings, scores; restartable, side by side, gaps named."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_loaders.atomic_file import write_atomically
from data_loaders.differences import difference
from sat_udpdiff.ablation import judging
from sat_udpdiff.ablation.processes import ProgramError, Programs, StoppedError
from sat_udpdiff.ablation.scores import Judged, ScoreBook
from sat_udpdiff.ablation.settings import AblationConfig, bound, chosen
from sat_udpdiff.ablation.training import (
    State,
    Training,
    caches,
    judged_steps,
    make_training,
    recolourings,
)
from sat_udpdiff.config import ConfigError
from sat_udpdiff.evaluation.measure import Fact
from sat_udpdiff.free_port import free_port
from sat_udpdiff.tiny.recipe import make_latents, make_shards
from sat_udpdiff.weights.run_folder import find_latest

SETTINGS_FILE = "ablation.json"
LOCK = ".lock"
"""File in the output that the ablation at work there holds."""
TRAIN = "train"
"""Name among the seconds of a run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """One training and the steps at which it is judged."""

    training: Training
    steps: tuple[int, ...]

    @property
    def seconds_file(self) -> Path:
        """What its parts took, for estimates and the report."""
        return self.training.folder.with_suffix(".seconds.json")

    def seconds(self) -> dict[str, float]:
        """By part, of the parts that are done."""
        try:
            return json.loads(self.seconds_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def add_seconds(self, part: str, seconds: float) -> None:
        """Time that went into a part, over all calls."""
        found = self.seconds()
        found[part] = round(found.get(part, 0.0) + seconds, 2)
        self.seconds_file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.seconds_file, json.dumps(found).encode())


@dataclass(kw_only=True)
class Ablation:
    """An ablation and its folder.

    Args:
        config: What is trained and judged.
        output: Absolute folder of everything that is made.
    """

    config: AblationConfig
    output: Path
    failures: dict[str, str] = field(default_factory=dict)
    """Name of a training -> what went wrong with it, in this call."""

    @property
    def shards(self) -> str:
        """What all arms are trained on."""
        return self.config.data.shards or str(self.output / "world" / "data" / "shards")

    def units(self) -> list[Unit]:
        """All trainings, seed by seed, so that every arm has its first one early.

        Raises:
            ConfigError: A value file or a setting is wrong.
        """
        return [
            Unit(
                training=make_training(
                    self.config, arm, seed=seed, output=self.output, shards=self.shards
                ),
                steps=tuple(judged_steps(self.config, arm)),
            )
            for seed in self.config.seeds
            for arm in chosen(self.config)
        ]

    def check(self, *, for_work: bool = True) -> list[Unit]:
        """Look at everything that can be wrong before anything is started; returns the units.

        Args:
            for_work: Also at what networks are judged with, which a report does not need.

        Raises:
            ValueError: A setting is wrong, the folder holds an ablation of other settings, all
                checkpoints of a training are damaged, a measure lacks its weights, or there are
                not the prompts or clips to judge with.
        """
        stored = self.output / SETTINGS_FILE
        if stored.is_file():
            try:
                before = json.loads(stored.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ConfigError(f"{stored}: expected JSON: {error}") from None
            if found := difference(before, json.loads(json.dumps(bound(self.config)))):
                raise ConfigError(
                    f"{self.output} holds an ablation of other settings: {found}; give another "
                    "--output"
                )
        elif self.output.is_dir() and any(path.name != LOCK for path in self.output.iterdir()):
            raise ConfigError(f"--output: {self.output} holds other files; give another folder")
        units = self.units()
        for unit in units:
            unit.training.state()
        # All arms have samples of one size.
        data = units[0].training.config().data
        if for_work:
            judging.check(self.config, data=data, output=self.output)
        return units

    def prepare(self) -> None:
        """Make what all trainings read: the synthetic world where no shards are given, latents.

        Raises:
            SystemExit: One of the programs failed; it has said why.
        """
        self.output.mkdir(parents=True, exist_ok=True)
        content = json.dumps(bound(self.config), indent=1) + "\n"
        write_atomically(self.output / SETTINGS_FILE, content.encode())
        judging.write_settings(self.config, output=self.output)
        if not self.config.data.shards:
            make_shards(self.output / "world", clips=self.config.data.clips)
        if self.config.data.encode_once:
            for name, files in caches(self.config, chosen(self.config)).items():
                make_latents(
                    self.output / "latents" / name,
                    shards=self.shards,
                    base=files,
                    recolourings=recolourings(self.config, files),
                    processes=self.config.training.ranks,
                )

    def run(self, units: Sequence[Unit], *, tell: Callable[[str], None] = print) -> None:
        """Train and judge what is not done yet; what fails is noted, and the others go on.

        Raises:
            KeyboardInterrupt: Of Ctrl-C, as SystemExit of SIGTERM: when trainings have saved.
        """
        waiting = [unit for unit in units if not self.is_done(unit)]
        if len(waiting) < len(units):
            tell(f"{len(units) - len(waiting)} of {len(units)} trainings were done already")
        if not waiting:
            return
        jobs = self.config.run.jobs
        programs = Programs(jobs=jobs)
        start, done = time.monotonic(), 0
        with ThreadPoolExecutor(jobs) as pool:
            try:
                running = {pool.submit(self._do, unit, programs): unit for unit in waiting}
                for future in _as_they_end(running):
                    done += 1
                    left = (time.monotonic() - start) / done * (len(waiting) - done) / 60
                    said = self._account(running[future], future)
                    tell(f"[{done}/{len(waiting)}] {said}; about {left:.0f} minutes left")
            except BaseException:
                programs.stop()
                raise

    def is_done(self, unit: Unit) -> bool:
        """Whether a training has its last step and all its scores."""
        return unit.training.state() is State.DONE and not any(self.unjudged(unit))

    def unjudged(self, unit: Unit) -> Iterator[int]:
        """Steps of a training that have no scores yet, or not those of every measure."""
        for step in unit.steps:
            found = judging.read(unit.training, step=step)
            if found is None or not found.has_all:
                yield step

    def _do(self, unit: Unit, programs: Programs) -> None:
        training = unit.training
        if training.state() is not State.DONE:
            with _timed(unit, TRAIN):
                programs.run(training.command(port=_port(training)), log=training.log)
            if training.state() is not State.DONE:
                raise ProgramError(f"ended before step {training.steps}; see {training.log}")
        for step in list(self.unjudged(unit)):
            port = _port(training)
            words = judging.command(training, step=step, output=self.output, port=port)
            log = judging.folder_of(training, step=step).with_suffix(".log")
            with _timed(unit, f"judge {step}"):
                programs.run(words, log=log)
            if judging.read(training, step=step) is None:
                raise ProgramError(f"no scores of step {step}; see {log}")

    def _account(self, unit: Unit, future: "Future[None]") -> str:
        name = unit.training.name
        try:
            future.result()
        except StoppedError:
            return f"{name}: stopped"
        except (ProgramError, ValueError, OSError) as error:
            self.failures[name] = str(error)
            return f"{name}: {error}"
        seconds = unit.seconds()
        judged = sum(seconds.values()) - seconds.get(TRAIN, 0.0)
        return f"{name}: trained in {seconds.get(TRAIN, 0.0):.0f} s, judged in {judged:.0f} s"

    def score_facts(self, units: Sequence[Unit]) -> dict[str, dict[str, Fact]]:
        """What each score depends on, where that is the same for all networks."""
        common: dict[str, dict[str, Fact]] = {}
        for unit in units:
            for step in unit.steps:
                found = judging.read(unit.training, step=step)
                for name, facts in (found.facts if found else {}).items():
                    before = common.get(name, facts)
                    common[name] = {k: v for k, v in before.items() if k in facts and facts[k] == v}
        return common

    def book(self, units: Sequence[Unit]) -> tuple[ScoreBook, dict[str, str]]:
        """All scores there are, and what is missing: name -> why."""
        book, missing = ScoreBook(), dict(self.failures)
        for unit in units:
            training = unit.training
            for step in unit.steps:
                found = judging.read(training, step=step)
                if found is None:
                    missing.setdefault(f"{training.name}, step {step}", "not judged yet")
                    continue
                for task, scores in found.scores.items():
                    judged = Judged(arm=training.arm.name, task=task, step=step)
                    book.add(judged, seed=training.seed, scores=scores)
                for what, why in found.failures.items():
                    missing[f"{training.name}, step {step}, {what}"] = why
        return book, missing

    def facts(self, units: Sequence[Unit]) -> dict[str, Any]:
        """What the numbers were made with, and how long it took."""
        seconds = [unit.seconds() for unit in units]
        revisions = {_revision(unit.training) for unit in units}
        trained = [found[TRAIN] for found in seconds if TRAIN in found]
        judged = [value for found in seconds for part, value in found.items() if part != TRAIN]
        return {
            "git revisions": ", ".join(sorted(filter(None, revisions))),
            "trainings": len(trained),
            "training hours, all": round(sum(trained) / 3600, 2),
            "judged": len(judged),
            "judging hours, all": round(sum(judged) / 3600, 2),
            "side by side": self.config.run.jobs,
        }


@contextmanager
def _timed(unit: Unit, part: str) -> Iterator[None]:
    """Add the time of a part, also of one that fails or is stopped."""
    start = time.monotonic()
    try:
        yield
    finally:
        unit.add_seconds(part, time.monotonic() - start)


def _revision(training: Training) -> str | None:
    """Commit of the code that made the last checkpoint."""
    latest = find_latest(training.folder, tell=lambda _: None)
    return None if latest is None else latest.content.get("git_commit")


def _port(training: Training) -> int | None:
    return free_port() if training.ranks > 1 else None


def _as_they_end(futures: "dict[Future[None], Unit]") -> "Iterator[Future[None]]":
    """As concurrent.futures.as_completed, but awake often enough to hear a signal."""
    left = set(futures)
    while left:
        done, left = wait(left, timeout=1.0, return_when=FIRST_COMPLETED)
        yield from done
