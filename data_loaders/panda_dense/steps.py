"""Stages as the program sees them: what is there to do now, and is it all done."""

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_loaders.atomic_file import write_atomically
from data_loaders.differences import difference
from data_loaders.panda_dense import claims
from data_loaders.panda_dense.licences import licence_notice
from data_loaders.panda_dense.models import ModelFacts
from data_loaders.panda_dense.patience import patiently
from data_loaders.panda_dense.runner import RunSettings, StageRunner
from data_loaders.panda_dense.stage import Stage
from data_loaders.panda_dense.store import Row, Store
from data_loaders.schema import DataError

_log = logging.getLogger(__name__)

_SETTINGS, _FACTS = "settings.json", "made_by.json"


class Step(ABC):
    """One stage of the pipeline, done by clips or as a whole.

    Args:
        store: The data set in the making.
        settings: How the work is done.
    """

    name: str
    reads: tuple[str, ...] = ()
    """Stages whose outcome decides what this one writes."""

    def __init__(self, store: Store, *, settings: RunSettings) -> None:
        self.store, self.run_settings = store, settings

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """All settings that decide what is written: JSON values."""

    @abstractmethod
    def is_complete(self) -> bool:
        """Whether nothing is left to do, now that the stages before are where they are."""

    @abstractmethod
    def is_ready(self) -> bool:
        """Whether there is anything that could be done now, by this process or another."""

    @abstractmethod
    def advance(self) -> bool:
        """Do what can be done now; returns whether anything was.

        Raises:
            DataError: What is there was made with other settings, or is damaged.
            ValueError: Weights are missing.
            OSError: The disk is full or not writable.
        """

    def forget(self) -> None:
        """Remove all that it has done."""
        self.store.remove(self.name)

    def look_again(self) -> None:  # noqa: B027 - most look each time
        """What was there may have been taken back."""

    def check(self) -> None:  # noqa: B027 - most have nothing to check
        """Refuse what cannot work; before anything is done.

        Raises:
            DataError: A setting is wrong.
            ValueError: Weights are missing; names the setting and where they are to be had.
        """

    def reconsider(self, *, retry: Sequence[str], again: bool) -> int:
        """Open again what is done, so that a run does it anew.

        Args:
            retry: Reasons for which clips were left out that are to be tried again; 'failed' stands
                for all that could not be done.
            again: List the videos again.

        Returns:
            Clips that will be tried again.
        """
        return 0

    def count_for(self, reasons: Sequence[str]) -> int:
        """Clips that `reconsider` would try again for these reasons."""
        return 0

    @abstractmethod
    def outlook(self) -> Iterator[str]:
        """What a run would do, as lines; nothing is written."""

    def check_settings(self) -> None:
        """Refuse to go on with other settings than the stage began with.

        Raises:
            DataError: They differ, and not only in what `adopt_settings` takes over; names them.
        """
        stored, wanted = self._both_settings()
        reason = difference(stored, wanted)
        if reason and not self.can_adopt(stored, wanted):
            raise DataError(
                f"{self.store.folder(self.name)} was made with other settings: {reason}; take the "
                f"old ones, or have it made anew: --redo {self.name}"
            )

    def can_adopt(self, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
        """Whether what was made with some settings serves for others, but for a few clips."""
        return False

    def has_changed(self) -> bool:
        """Whether its settings are others than it began with."""
        return bool(difference(*self._both_settings()))

    def adopt_settings(self) -> None:
        """Take over other settings than the stage began with, after `check_settings`."""
        self.forget_outdated()
        (self.store.folder(self.name) / _SETTINGS).unlink(missing_ok=True)
        self.note_settings()

    def forget_outdated(self) -> None:  # noqa: B027 - of those that can adopt
        """Forget what other settings may decide otherwise."""

    def _both_settings(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Those the stage began with, and those it has now; twice the latter where it has not."""
        wanted = _as_json(self.settings())
        stored = _read_json(self.store.folder(self.name) / _SETTINGS)
        return (wanted if stored is None else stored), wanted

    def note_settings(self) -> None:
        """Write the settings down, to be held against those of later runs."""
        path = self.store.folder(self.name) / _SETTINGS
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(self.settings(), indent=1, sort_keys=True).encode())


class PartStep(Step):
    """A stage that goes clip by clip.

    Args:
        store: The data set in the making.
        stage: What it does.
        before: All stages before it, in their order.
        after: Names of the stages behind it.
        settings: How the work is done.
    """

    def __init__(
        self,
        store: Store,
        stage: Stage,
        *,
        before: Sequence[Step],
        after: Sequence[str],
        settings: RunSettings,
    ) -> None:
        super().__init__(store, settings=settings)
        self.name, self.reads = stage.name, stage.reads
        self._stage, self._before, self._after = stage, before[-1], tuple(after)
        self._is_done = False
        names = [step.name for step in before]
        self._runner = StageRunner(
            store, stage, before=names, settings=settings, loaded=self._check_facts
        )

    def settings(self) -> dict[str, Any]:
        """Of the stage."""
        return self._stage.settings()

    def check(self) -> None:
        """By the stage."""
        self._stage.check()

    def can_adopt(self, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
        """Where the stage says so."""
        return self._stage.judges_again(stored, wanted) is not None

    def forget_outdated(self) -> None:
        """Clips that the stage left out for reasons that may no longer hold."""
        reasons = self._stage.judges_again(*self._both_settings())
        self.reconsider(retry=reasons or (), again=False)
        self.look_again()

    def is_complete(self) -> bool:
        """All parts are done, and no more will come."""
        # Once found so it is not looked at again: listing many thousand parts takes time.
        if not self._is_done:
            self._is_done = self._before.is_complete() and not self._runner.parts_left()
        return self._is_done

    def is_ready(self) -> bool:
        """There are parts that the stage before has done."""
        return bool(self._runner.parts_left())

    def advance(self) -> bool:
        """Do the parts that are ready and that no other process has."""
        self.check_settings()
        if not self._runner.parts_left():
            return False
        self.note_settings()
        return self._runner.run() > 0

    def reconsider(self, *, retry: Sequence[str], again: bool) -> int:
        """Forget the outcome of clips that were left out for one of the reasons."""
        count = 0
        for part in self.store.begun_parts(self.name) if retry else ():
            rows = self.store.read(self.name, part)
            keys = [key for key, row in rows.items() if _is_to_retry(row, retry=retry)]
            if keys:
                self.store.forget(self.name, part, keys)
                for stage in self._after:
                    self.store.reopen(stage, part)
                count += len(keys)
        return count

    def count_for(self, reasons: Sequence[str]) -> int:
        """Clips that were left out for one of the reasons."""
        return sum(
            _is_to_retry(row, retry=reasons)
            for part in self.store.begun_parts(self.name)
            for row in self.store.read(self.name, part).values()
        )

    def look_again(self) -> None:
        """Ask the folder whether all is done."""
        self._is_done = False

    def outlook(self) -> Iterator[str]:
        """How many clips are left."""
        parts = self._runner.parts_left()
        clips = sum(self._runner.clips_left(part) for part in parts)
        yield f"{clips:,} clips are ready in {len(parts):,} part(s)"
        if not self._before.is_complete():
            yield f"more will come: {self._before.name} is not complete"

    def _check_facts(self) -> None:
        """Refuse to mix the labels of two models; called when the model is loaded."""
        facts = self._stage.facts
        if facts is None:
            return
        path = self.store.folder(self.name) / _FACTS
        stored = _read_json(path)
        if stored is None:
            if facts.license:
                _log.info("%s: %s", self.name, licence_notice(facts))
            write_atomically(path, json.dumps(facts.as_row(), indent=1).encode())
            return
        for name in ("backend", "model", "revision"):
            if stored.get(name) != getattr(facts, name):
                raise DataError(
                    f"{path}: the labels that are there were made by {name} {stored.get(name)!r}, "
                    f"now it is {getattr(facts, name)!r}; have them made anew: --redo {self.name}"
                )


class WholeStep(Step):
    """A stage that one process does for all clips at once, while the others wait."""

    @abstractmethod
    def do(self) -> None:
        """Do it."""

    def advance(self) -> bool:
        """Do it, unless another process is at it."""
        self.check_settings()
        if self.is_complete() or not self.is_ready():
            return False
        path = self.store.claim_file(self.name)
        claim = claims.take(path, stale_seconds=self.run_settings.claim_seconds)
        if claim is None:
            return False
        with claim:
            if not self.is_complete():
                seconds = self.run_settings.disk_full_seconds
                patiently(self.do, where=self.store.root, seconds=seconds)
                self.note_settings()
        return True


def _is_to_retry(row: Row, *, retry: Sequence[str]) -> bool:
    return row.reason in retry or (row.status == "failed" and "failed" in retry)


def made_by(store: Store, stage: str) -> ModelFacts | None:
    """What made the labels of a stage; None where it makes none, or has not begun."""
    record = _read_json(store.folder(stage) / _FACTS)
    return None if record is None else ModelFacts(**record)


def redo(store: Store, steps: Sequence[Step], *, name: str) -> list[str]:
    """Forget what a stage has done, and all that was made from it.

    Args:
        store: The data set in the making.
        steps: All stages, in their order.
        name: Of the stage.

    Returns:
        Names of the stages that were forgotten.

    Raises:
        DataError: A process is at work on one of them.
    """
    refuse_beside_others(store, steps)
    forgotten = forgotten_with(steps, name=name)
    behind = False
    for step in steps:
        step.look_again()
        if step.name in forgotten:
            step.forget()
            behind = True
        elif behind:
            # Which clips come through may change; what was found of each stays true.
            for part in store.whole_parts(step.name):
                store.reopen(step.name, part)
    return forgotten


def forgotten_with(steps: Sequence[Step], *, name: str) -> list[str]:
    """A stage and all that is made from what it made, in their order."""
    forgotten: list[str] = []
    for step in steps:
        if step.name == name or any(read in forgotten for read in step.reads):
            forgotten.append(step.name)
    return forgotten


def refuse_beside_others(store: Store, steps: Sequence[Step]) -> None:
    """Refuse to take back work while other processes are doing some.

    Raises:
        DataError: Names a process and what it is at.
    """
    for step in steps:
        for path in sorted(store.folder(step.name).glob("*.claim")):
            if who := claims.holder(path, stale_seconds=step.run_settings.claim_seconds):
                raise DataError(f"{path}: {who} is at work here; end it before work is taken back")


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    return record
