"""Stages in a row: their order, what is refused, what is forgotten, what is tried again."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from data_loaders.panda_dense import claims, pipeline
from data_loaders.panda_dense.models import ModelFacts
from data_loaders.panda_dense.runner import RunSettings
from data_loaders.panda_dense.stage import Clip, Dropped, Kept, Outcome, Stage
from data_loaders.panda_dense.steps import PartStep, Step, WholeStep, made_by, redo
from data_loaders.panda_dense.store import Row, Store
from data_loaders.schema import DataError

RUN = RunSettings()


class List(WholeStep):
    """Four clips in two parts."""

    name = "list"

    def settings(self) -> dict:
        return {}

    def is_ready(self) -> bool:
        return True

    def is_complete(self) -> bool:
        return self.store.whole_parts(self.name) == [0, 1]

    def outlook(self) -> Iterator[str]:
        yield "lists"

    def do(self) -> None:
        for part, keys in enumerate((["a", "b"], ["c", "d"])):
            rows = [Row(key=key, status="kept") for key in keys]
            self.store.write(self.name, part, rows, is_whole=True)


class Fake(Stage):
    """Notes its calls; `outcome` decides."""

    def __init__(self, name: str, *, reads: tuple[str, ...], log: list[str]) -> None:
        self.name, self.reads, self.log = name, reads, log
        self.values: dict = {"threshold": 1}
        self.outcome: Callable[[str], Outcome] = lambda key: Kept(files={"txt": key.encode()})
        self.revision = "r1"

    def settings(self) -> dict:
        return self.values

    @property
    def facts(self) -> ModelFacts:
        return ModelFacts(backend="model", model="m", revision=self.revision)

    def work(self, clips: Sequence[Clip]) -> list[Outcome]:
        self.log += [f"{self.name} {clip.key}" for clip in clips]
        return [self.outcome(clip.key) for clip in clips]


class World:
    """list -> cut -> depth and caption, which both look at what was cut."""

    def __init__(self, root: Path) -> None:
        self.store = Store(root=root)
        self.log: list[str] = []
        names = {"cut": ("list",), "depth": ("cut",), "caption": ("cut",)}
        self.stages = {n: Fake(n, reads=reads, log=self.log) for n, reads in names.items()}
        self.steps: list[Step] = [List(self.store, settings=RUN)]
        for place, stage in enumerate(self.stages.values()):
            after = list(names)[place + 1 :]
            step = PartStep(self.store, stage, before=self.steps, after=after, settings=RUN)
            self.steps.append(step)

    def run(self, *names: str) -> bool:
        self.log.clear()
        chosen = names or ("list", "cut", "depth", "caption")
        return pipeline.run(self.steps, names=chosen, wait_seconds=0.01)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_all_stages_in_their_order(world: World) -> None:
    assert world.run()
    assert world.log == [f"{stage} {key}" for stage in world.stages for key in "abcd"]
    assert world.run()
    assert world.log == []
    assert made_by(world.store, "depth").revision == "r1"


def test_one_stage_does_what_those_before_it_have_done(world: World) -> None:
    assert not world.run("depth")
    assert world.run("list")
    assert not world.run("depth")
    world.run("cut")
    assert world.run("depth")
    assert world.log == ["depth a", "depth b", "depth c", "depth d"]


def test_a_clip_that_is_dropped_goes_no_further(world: World) -> None:
    world.stages["cut"].outcome = lambda key: Dropped(reason="b") if key == "b" else Kept()
    world.run()
    assert "depth b" not in world.log and "caption c" in world.log


def test_other_settings_are_refused_by_name(world: World, tmp_path: Path) -> None:
    world.run()
    world.stages["depth"].values = {"threshold": 2}
    with pytest.raises(DataError, match=r"threshold was 1, now 2; .*--redo depth"):
        world.run()


def test_another_model_is_refused(world: World) -> None:
    world.run("list")
    world.run("cut")
    world.run("depth")
    world.store.reopen("depth", 0)
    path = world.store.rows_file("depth", 0, is_whole=False)
    path.write_text("")
    world = World(world.store.root)
    world.stages["depth"].revision = "r2"
    with pytest.raises(DataError, match="made by revision 'r1', now it is 'r2'"):
        world.run()


def test_redoing_forgets_what_was_made_from_it_and_nothing_else(world: World) -> None:
    world.run()
    assert redo(world.store, world.steps, name="depth") == ["depth"]
    world.run()
    assert world.log == [f"depth {key}" for key in "abcd"]
    assert redo(world.store, world.steps, name="cut") == ["cut", "depth", "caption"]
    world.run()
    assert len(world.log) == 12


def test_trying_again_by_reason(world: World) -> None:
    def outcome(key: str) -> Outcome:
        if key == "a":
            raise RuntimeError("no luck")
        return Dropped(reason="odd") if key == "c" else Kept()

    world.stages["cut"].outcome = outcome
    world.run()
    world.stages["cut"].outcome = lambda key: Kept()
    for step in world.steps:
        step.reconsider(retry=["failed"], again=False)
        step.look_again()
    world.run()
    assert world.log == ["cut a", "depth a", "caption a"]
    for step in world.steps:
        step.reconsider(retry=["odd"], again=False)
        step.look_again()
    world.run()
    assert world.log == ["cut c", "depth c", "caption c"]


def test_a_process_goes_on_with_parts_that_are_through(world: World) -> None:
    world.run("list")
    path = world.store.claim_file("cut", 0)
    with claims.take(path, stale_seconds=60.0) as other:
        assert other is not None
        steps = [step for step in world.steps if step.name != "list"]
        while any(step.advance() for step in steps):
            pass
        assert world.log == [f"{stage} {key}" for stage in world.stages for key in "cd"]
        assert all(not step.is_complete() for step in steps)
    assert world.run()
    assert world.log == [f"{stage} {key}" for stage in world.stages for key in "ab"]


def test_what_would_be_done(world: World) -> None:
    world.run("list")
    assert list(world.steps[1].outlook()) == ["4 clips are ready in 2 part(s)"]
    assert next(world.steps[2].outlook()) == "0 clips are ready in 0 part(s)"
    assert "cut is not complete" in list(world.steps[2].outlook())[1]


def test_settings_lie_beside_the_rows(world: World) -> None:
    world.run()
    path = world.store.folder("depth") / "settings.json"
    assert json.loads(path.read_text()) == {"threshold": 1}
    path.write_text("{")
    with pytest.raises(DataError, match=r"settings.json: cannot be read"):
        world.run()


def test_nothing_is_taken_back_while_another_is_at_work(world: World) -> None:
    world.run()
    with claims.take(world.store.claim_file("caption", 0), stale_seconds=60.0):
        with pytest.raises(DataError, match=r"part-000000.claim: .* is at work here"):
            redo(world.store, world.steps, name="depth")
    assert world.store.whole_parts("depth") == [0, 1]


def test_what_failed_in_an_open_part_is_tried_again_too(world: World) -> None:
    world.run("list")
    rows = [Row(key="a", status="failed", reason="error")]
    world.store.write("cut", 0, rows, is_whole=False)
    assert sum(step.reconsider(retry=["failed"], again=False) for step in world.steps) == 1
    world.run()
    assert "cut a" in world.log
