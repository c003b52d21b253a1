"""Checkpoints: complete or absent, and independent of the number of ranks.

    checkpoints/step_00000100/network.safetensors      fp32 weights by parameter name
                              exp_avg.safetensors      first moments of AdamW
                              exp_avg_sq.safetensors   second moments
                              ema.safetensors          averaged weights, if any
                              config.yaml              resolved configuration
                              state.json               counters, and the size of every file
                              SHA256SUMS               of every file
    checkpoints/latest                                 name of the newest one

A folder is written under another name, flushed to disk and renamed; `latest` moves last. Nothing is
pickled. Every tensor is whole and named, so a run may resume on another number of ranks or another
ZeRO stage. Each kind of tensor is gathered to and written by a rank of its own, which takes its
sum; with `checkpoint.asynchronous` while training goes on.

With LoRA the files hold what is trained, and in their metadata a fingerprint of the rest.
"""

import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from safetensors import safe_open
from torch import Tensor

from sat_udpdiff.config import Config
from sat_udpdiff.distributed import Place
from sat_udpdiff.training import ranks
from sat_udpdiff.training.all_or_none import all_or_none, what_is_kept
from sat_udpdiff.training.checkpoint_files import (
    clear_staging,
    prune,
    publish,
    staging_of,
    write_tensors,
)
from sat_udpdiff.training.ema import EMA
from sat_udpdiff.training.engine import MASTERS, MOMENTS
from sat_udpdiff.training.host_memory import lack_of_memory
from sat_udpdiff.training.state import TrainState
from sat_udpdiff.weights.run_folder import (
    BASE_FINGERPRINT,
    EMA_FILE,
    FORMAT_VERSION,
    NETWORK_FILE,
    Checkpoint,
    CheckpointError,
    step_folder,
)

EMA_KIND = "ema"
_PACKAGES = ("torch", "deepspeed", "safetensors", "SwissArmyTransformer")


@runtime_checkable
class Tensors(Protocol):
    """What checkpoints need of `TrainEngine`, which documents it."""

    base_sha256: str

    @property
    def num_parameters(self) -> int: ...  # noqa: D102
    def masters(self) -> list[Tensor]: ...  # noqa: D102
    def gather(self, kind: str, *, keep: bool) -> dict[str, Tensor]: ...  # noqa: D102
    def scatter(self, kind: str, tensors: Mapping[str, Tensor]) -> None: ...  # noqa: D102
    def counters(self) -> dict[str, float]: ...  # noqa: D102
    def set_counters(self, counters: Mapping[str, float]) -> None: ...  # noqa: D102


@dataclass(kw_only=True, slots=True)
class _Flight:
    """A save whose files are being written, or that is published while older ones are deleted."""

    target: Path
    content: dict[str, Any]
    """Of state.json; on the first rank alone."""
    files: dict[str, Future[str]] = field(default_factory=dict)
    """Name of each file of this rank -> its sum, once it is on the disk."""
    is_published: bool = False
    deletion: Future[None] | None = None
    """Of what is not kept any more; on the first rank alone, once this save is published."""
    notes: list[str] = field(default_factory=list)
    """What is to be told of the deletion."""

    @property
    def is_busy(self) -> bool:
        """Whether the writing thread of this rank has work that the next stage needs."""
        work = [self.deletion] if self.deletion else self.files.values()
        return not all(done.done() for done in work)

    def wait(self) -> dict[str, str]:
        """Sums of this rank's files; raises what went wrong with the first that failed."""
        wait(self.files.values())  # for all, so that nobody writes where a failed save is removed
        return {name: file.result() for name, file in self.files.items()}


class Saver:
    """Saves the checkpoints of a run, one after another.

    Every rank has one and makes the same calls in the same order: all succeed or all raise. What is
    said between ranks is said here, in the thread that calls; the writing thread knows files alone.

    Args:
        config: Of the run.
        place: Of this rank.
        guard: Called on the first rank before a checkpoint is published; what it raises
            (CheckpointError) ends the save.
        tell: Called on the first rank with a line of what went wrong and ends nothing.
    """

    def __init__(
        self,
        config: Config,
        *,
        place: Place,
        guard: Callable[[], None] = lambda: None,
        tell: Callable[[str], None] = print,
    ) -> None:
        self._config, self._place, self._guard, self._tell = config, place, guard, tell
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._flight: _Flight | None = None
        self._known: set[Path] = set()
        self._has_told = False

    def save(self, engine: Tensors, *, ema: EMA | None, state: TrainState) -> None:
        """Take the state as it is now; published at once, or with `asynchronous` by `poll`.

        An earlier save that is in flight still is waited for. Asynchronous, the ranks that
        write hold what they write in their memory until it is on the disk: of n kinds of tensor
        over w ranks, n / w kinds (rounded up) of 4 bytes per trained number. A save for which a
        machine has too little memory is synchronous.

        Raises:
            CheckpointError: This save or the one before could not be written. Older checkpoints are
                as they were.
        """
        self.finish()
        place, run = self._place, Path(self._config.run.output)
        target = step_folder(run, step=state.step)
        self._check_guard(target)
        content: dict[str, Any] = {}
        with self._together(target):
            if place.is_main:
                clear_staging(target.parent, tell=self._tell, needed=staging_of(target))
                staging_of(target).mkdir(parents=True)
                _check_space(run, engine=engine, has_ema=ema is not None)
                content = _content(engine, ema=ema, state=state, place=place)
        flight = _Flight(target=target, content=content)
        facts = {"step": str(state.step)}
        if engine.base_sha256:
            facts[BASE_FINGERPRINT] = engine.base_sha256
        kinds = [MASTERS, *MOMENTS, *([EMA_KIND] if ema else [])]
        is_asynchronous = self._is_asynchronous(engine, num_kinds=len(kinds))
        for first in range(0, len(kinds), place.world_size):
            # One kind per rank at a time: gathering is joint, writing is side by side.
            for writer, kind in enumerate(kinds[first : first + place.world_size]):
                full = _gather(engine, kind=kind, ema=ema, keep=writer == place.rank)
                if full:
                    path = staging_of(target) / f"{kind}.safetensors"
                    # Its arguments are let go as soon as it is done.
                    written = self._writer.submit(write_tensors, path, full, facts=facts)
                    flight.files[path.name] = written
                del full
            if not is_asynchronous:
                with self._together(target):
                    flight.wait()
        self._flight = flight
        if not is_asynchronous:
            self._go_on()

    def poll(self) -> None:
        """Do what comes next for the save in flight, if no rank has to be waited for.

        When all have written their files it is published, and what is not kept any more is compared
        and deleted by the writing thread of the first rank; when that is done it is over.

        Raises:
            CheckpointError: As of `save`, or the save is published and not what was written.
        """
        flight = self._flight
        if flight is None:
            return
        (is_busy,) = ranks.any_rank([flight.is_busy], place=self._place)
        if not is_busy:
            self._go_on()

    def finish(self) -> None:
        """Wait for the save in flight, if any: until it is published and older ones are deleted.

        Raises:
            CheckpointError: As of `poll`.
        """
        while self._flight is not None:
            self._go_on()

    def _go_on(self) -> None:
        flight, self._flight = self._flight, None
        assert flight is not None
        if flight.is_published:
            self._end(flight)
        else:
            self._publish(flight)
            self._flight = flight

    def _publish(self, flight: _Flight) -> None:
        target, sums = flight.target, {}
        with self._together(target):
            sums = flight.wait()
        gathered = ranks.gather(sums, place=self._place)
        self._check_guard(target)
        with self._together(target):
            if self._place.is_main:
                every = {name: value for of_rank in gathered for name, value in of_rank.items()}
                publish(target, content=flight.content, sums=every, config=self._config)
                flight.deletion = self._writer.submit(
                    prune,
                    target,
                    config=self._config.checkpoint,
                    tell=flight.notes.append,
                    known=self._known,
                )
        flight.is_published = True

    def _end(self, flight: _Flight) -> None:
        with all_or_none(flight.target, place=self._place, cleans=False):
            if flight.deletion is not None:
                flight.deletion.result()
        for note in flight.notes:
            self._tell(note)

    def close(self) -> None:
        """Give up a save in flight, without a word to other ranks; for the way out of an error.

        It does not wait for a file that is being written: the disk may be what is wrong.
        """
        self._flight = None
        self._writer.shutdown(wait=False, cancel_futures=True)

    def _is_asynchronous(self, engine: Tensors, *, num_kinds: int) -> bool:
        if not self._config.checkpoint.asynchronous:
            return False
        place = self._place
        num_mine = len(range(place.rank, num_kinds, place.world_size))
        lack = lack_of_memory(4 * num_mine * engine.num_parameters, place=place)
        if lack is not None and place.is_main and not self._has_told:
            self._tell(f"note: training waits for checkpoints: going on would take {lack}")
            self._has_told = True
        return lack is None

    def _together(self, target: Path) -> all_or_none:
        return all_or_none(target, place=self._place)

    def _check_guard(self, target: Path) -> None:
        # What lies in staging may be another run's by now.
        with all_or_none(target, place=self._place, cleans=False):
            if self._place.is_main:
                self._guard()


def save(
    engine: Tensors, *, ema: EMA | None, state: TrainState, config: Config, place: Place
) -> Path:
    """Write one checkpoint and wait for it; every rank calls it, and all succeed or all raise.

    Raises:
        CheckpointError: It could not be written. Older checkpoints are as they were.
    """
    saver = Saver(config, place=place)
    try:
        saver.save(engine, ema=ema, state=state)
        saver.finish()
    finally:
        saver.close()
    return step_folder(Path(config.run.output), step=state.step)


def _content(
    engine: Tensors, *, ema: EMA | None, state: TrainState, place: Place
) -> dict[str, Any]:
    return {
        "version": FORMAT_VERSION,
        "state": state.to_values(),
        "counters": engine.counters(),
        "ema_updates": ema.num_updates if ema else 0,
        "world_size": place.world_size,
        **_what_runs(),
    }


@cache  # what this process has loaded, whatever becomes of the files
def _what_runs() -> dict[str, Any]:
    packages = {name: metadata.version(name) for name in _PACKAGES}
    return {"packages": packages, "git_commit": _git_commit()}


def _git_commit() -> str | None:
    """Of the checkout that this file lies in; None where it is installed otherwise."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    except OSError:  # no git
        return None
    return done.stdout.strip() or None


def _check_space(run: Path, *, engine: Tensors, has_ema: bool) -> None:
    num_kinds = 1 + len(MOMENTS) + has_ema
    need = 4 * num_kinds * engine.num_parameters
    free = shutil.disk_usage(run).free
    if need > free:
        raise CheckpointError(
            f"{run}: no space left for a checkpoint: needs {need:,} bytes, {free:,} are free; "
            f"{what_is_kept(run)}; free some space or lower checkpoint.keep_last"
        )


def _gather(engine: Tensors, *, kind: str, ema: EMA | None, keep: bool) -> dict[str, Tensor]:
    if kind != EMA_KIND or ema is None:
        return engine.gather(kind, keep=keep)
    ema.swap(engine.masters())
    try:
        return engine.gather(MASTERS, keep=keep)
    finally:
        ema.swap(engine.masters())


def restore(found: Checkpoint, *, engine: Tensors, ema: EMA | None) -> TrainState:
    """Give engine and EMA the tensors of a checkpoint, bit for bit; returns the counters."""
    content, folder = found.content, found.folder
    if ema is not None and EMA_FILE in content["files"]:
        engine.scatter(MASTERS, _Lazy(folder / EMA_FILE))
        ema.restore(engine.masters(), num_updates=content["ema_updates"])
    engine.scatter(MASTERS, _Lazy(folder / NETWORK_FILE))
    if ema is not None and EMA_FILE not in content["files"]:
        ema.restore(engine.masters(), num_updates=0)  # switched on after this checkpoint
    for kind in MOMENTS:
        engine.scatter(kind, _Lazy(folder / f"{kind}.safetensors"))
    engine.set_counters(content["counters"])
    return TrainState(**content["state"])


class _Lazy(Mapping[str, Tensor]):
    """Tensors of a safetensors file, each read when asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = safe_open(path, framework="pt")
        self._names = set(self._file.keys())

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise CheckpointError(f"{self._path}: no tensor {name}")
        return self._file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
