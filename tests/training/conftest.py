"""What the tests of checkpoints share: an engine of ten numbers, ranks in threads, faults."""

import io
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sat_udpdiff.config import CheckpointConfig, Config, RunConfig
from sat_udpdiff.distributed import Place
from sat_udpdiff.training import checkpoint, ranks
from sat_udpdiff.training.state import TrainState

KINDS = ("network", "exp_avg", "exp_avg_sq")
OPERATIONS = (
    *("open", "mkdir", "rename", "replace", "fsync", "posix_fallocate", "unlink", "rmdir"),
    *("utime", "ftruncate", "pwrite"),
)


class FlatEngine:
    """Two named parameters in one flat master, as ZeRO keeps them."""

    num_parameters = 10
    base_sha256 = ""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.flat = {kind: torch.randn(10, generator=generator) for kind in KINDS}
        self.steps = 0.0

    def masters(self):
        return [self.flat["network"]]

    def gather(self, kind, *, keep):
        if not keep:
            return {}
        return {"a": self.flat[kind][:6].view(2, 3).clone(), "b": self.flat[kind][6:].clone()}

    def scatter(self, kind, tensors):
        self.flat[kind][:6] = tensors["a"].flatten()
        self.flat[kind][6:] = tensors["b"]

    def counters(self):
        return {"adam_step": self.steps}

    def set_counters(self, counters):
        self.steps = counters["adam_step"]


def place_of(rank: int, world_size: int) -> Place:
    return Place(
        rank=rank,
        world_size=world_size,
        local_rank=rank,
        device=torch.device("cpu"),
        backend="gloo",
    )


def config_of(run: Path, **settings: Any) -> Config:
    return replace(
        Config(), run=RunConfig(output=str(run)), checkpoint=CheckpointConfig(**settings)
    )


def save_step(run, engine, *, step, ema=None, place=None, **settings) -> Path:
    """Save the engine as it is, and wait for it."""
    run.mkdir(exist_ok=True)
    engine.steps = float(step)
    state = TrainState(step=step, samples_seen=2 * step, meters=[[0.5]])
    config = config_of(run, **settings)
    place = place or place_of(0, 1)
    return checkpoint.save(engine, ema=ema, state=state, config=config, place=place)


class Faults:
    """Counts the file operations that change a disk, and does something at one of them.

    Args:
        at: Number of the operation, from 0.
        act: Called in its place; the operation is done if it returns.
        lasts: Whether every later one is treated likewise.
    """

    def __init__(self, monkeypatch, *, at: int, act: Callable[[], None], lasts: bool = False):
        self.count = 0
        self._at, self._act, self._lasts = at, act, lasts
        self._lock = threading.Lock()
        for name in OPERATIONS:
            monkeypatch.setattr(os, name, self._counted(getattr(os, name)))
        opened = io.open

        def open_file(path, mode="r", *arguments, **named):
            if "w" not in mode or isinstance(path, int):
                return opened(path, mode, *arguments, **named)
            self.step()
            return FaultyFile(opened(path, mode, *arguments, **named), self)

        monkeypatch.setattr(io, "open", open_file)

    def step(self) -> None:
        with self._lock:
            number, self.count = self.count, self.count + 1
        if number == self._at or (self._lasts and number > self._at):
            self._act()

    def _counted(self, function):
        def call(*arguments, **named):
            self.step()
            return function(*arguments, **named)

        return call


class FaultyFile:
    """A file whose writes are operations of their own; a faulty one has written its first half."""

    def __init__(self, file, faults: Faults) -> None:
        self._file, self._faults = file, faults

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def write(self, content):
        half = len(content) // 2
        self._file.write(content[:half])
        self._file.flush()
        self._faults.step()
        return half + self._file.write(content[half:])


class Team:
    """Ranks as threads: `ranks.gather` and `ranks.any_rank` meet at a barrier."""

    def __init__(self, size: int, monkeypatch) -> None:
        self.size = size
        self._barrier = threading.Barrier(size, timeout=30)
        self._words: dict[int, Any] = {}
        monkeypatch.setattr(ranks, "gather", self.gather)
        monkeypatch.setattr(
            ranks,
            "any_rank",
            lambda flags, *, place: [
                any(column) for column in zip(*self.gather(list(flags), place=place), strict=True)
            ],
        )

    def gather(self, value, *, place):
        self._words[place.rank] = value
        self._barrier.wait()
        values = [self._words[rank] for rank in range(self.size)]
        self._barrier.wait()
        return values

    def run(self, do: Callable[[Place], Any]) -> list[Any]:
        """What `do` returns on each rank, or the exception that it raises there."""
        results: list[Any] = [None] * self.size

        def call(rank: int) -> None:
            try:
                results[rank] = do(place_of(rank, self.size))
            except Exception as error:
                results[rank] = error

        threads = [threading.Thread(target=call, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


@pytest.fixture
def run(tmp_path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def engine() -> FlatEngine:
    return FlatEngine(0)


@pytest.fixture
def make_engine() -> Callable[[int], FlatEngine]:
    return FlatEngine


@pytest.fixture
def save() -> Callable[..., Path]:
    return save_step


@pytest.fixture
def make_config() -> Callable[..., Config]:
    return config_of


@pytest.fixture
def place() -> Callable[[int, int], Place]:
    return place_of


@pytest.fixture
def team(monkeypatch) -> Callable[[int], Team]:
    return lambda size: Team(size, monkeypatch)


@pytest.fixture
def faults() -> Iterator[Callable[..., Faults]]:
    """Makes faults that end with `undo` of the returned context, or with the test."""
    patches: list[pytest.MonkeyPatch] = []

    def make(**arguments) -> Faults:
        patch = pytest.MonkeyPatch()
        patches.append(patch)
        made = Faults(patch, **arguments)
        made.undo = patch.undo
        return made

    yield make
    for patch in reversed(patches):
        patch.undo()
