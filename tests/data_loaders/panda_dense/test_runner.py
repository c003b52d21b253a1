"""A stage's work: nothing is lost, nothing ends the run, and accidents are counted."""

import errno
import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from data_loaders.panda_dense import claims, patience
from data_loaders.panda_dense.models import Pieces
from data_loaders.panda_dense.runner import (
    LostDeviceError,
    RunSettings,
    StageRunner,
    TooManyFailuresError,
)
from data_loaders.panda_dense.stage import Clip, Dropped, Kept, Outcome, Stage
from data_loaders.panda_dense.stopping import heeding_signals
from data_loaders.panda_dense.store import Row, Store

SETTINGS = RunSettings(disk_full_seconds=0.2)


class Fake(Stage):
    """Writes the key; `trouble` may raise for a group."""

    name, reads = "fake", ("ingest",)

    def __init__(self, trouble: Callable[[list[str]], None] = lambda keys: None) -> None:
        self.trouble, self.batch_size = trouble, 2
        self.calls: list[list[str]] = []
        self._pieces = Pieces(4)

    def settings(self) -> dict:
        return {}

    def work(self, clips: Sequence[Clip]) -> list[Outcome]:
        keys = [clip.key for clip in clips]
        self.calls.append(keys)
        self.trouble(keys)
        return [
            Dropped(reason="odd", detail=key) if key.startswith("odd")
            else Kept(columns={"n": len(key)}, files={"txt": key.encode()})
            for key in keys
        ]  # fmt: skip

    @property
    def pieces(self) -> Sequence[Pieces]:
        return [self._pieces]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    found = Store(root=tmp_path)
    for part, keys in enumerate((["a", "b", "odd1", "c", "d"], ["e", "gone"])):
        rows = [Row(key=key, status="dropped" if key == "gone" else "kept") for key in keys]
        found.write("ingest", part, rows, is_whole=True)
    return found


def run(store: Store, stage: Stage, settings: RunSettings = SETTINGS) -> int:
    return StageRunner(store, stage, before=["ingest"], settings=settings).run()


def statuses(store: Store, part: int = 0) -> dict[str, tuple[str, str]]:
    return {key: (row.status, row.reason) for key, row in store.read("fake", part).items()}


def test_what_is_done(store: Store) -> None:
    stage = Fake()
    assert run(store, stage) == 2
    # Groups within a part, of clips that the stage before kept.
    assert stage.calls == [["a", "b"], ["odd1", "c"], ["d"], ["e"]]
    assert store.whole_parts("fake") == [0, 1]
    assert statuses(store)["odd1"] == ("dropped", "odd")
    assert store.read("fake", 0)["a"].columns == {"n": 1}
    assert store.file("fake", 0, "c.txt").read_bytes() == b"c"
    assert not store.file("fake", 0, "odd1.txt").exists()
    assert run(store, Fake()) == 0
    assert not list(store.folder("fake").glob("*.claim*"))


def test_goes_on_where_it_was(store: Store) -> None:
    def stop(keys: list[str]) -> None:
        if "d" in keys:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(store, Fake(stop))
    assert store.whole_parts("fake") == []
    stage = Fake()
    run(store, stage)
    assert stage.calls == [["d"], ["e"]]
    # An interruption is nobody's fault.
    assert store.read("fake", 0)["d"].deaths == 0


def test_an_error_is_tried_again_alone_and_then_flagged(store: Store) -> None:
    def trouble(keys: list[str]) -> None:
        if "b" in keys:
            raise RuntimeError("cannot\ndo it")

    stage = Fake(trouble)
    run(store, stage)
    assert statuses(store)["b"] == ("failed", "error")
    assert store.read("fake", 0)["b"].detail == "RuntimeError: cannot"
    assert statuses(store)["a"] == ("kept", "")
    # In the group, alone, and twice more.
    assert [call for call in stage.calls if "b" in call] == [["a", "b"], ["b"], ["b"], ["b"]]


def test_a_passing_error_costs_nothing(store: Store) -> None:
    failed: list[str] = []

    def trouble(keys: list[str]) -> None:
        if "c" in keys and len(failed) < 2:
            failed.append("c")
            raise OSError(errno.EIO, "Input/output error")

    run(store, Fake(trouble))
    assert statuses(store)["c"] == ("kept", "")
    assert store.read("fake", 0)["c"].attempts == 0


def test_a_full_device_halves_the_group_then_the_pieces_then_flags(store: Store) -> None:
    def trouble(keys: list[str]) -> None:
        if "a" in keys:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\nmore")

    stage = Fake(trouble)
    run(store, stage)
    assert statuses(store)["a"] == ("failed", "out of GPU memory")
    assert store.read("fake", 0)["a"].detail == "CUDA out of memory. Tried to allocate"
    assert statuses(store)["b"] == ("kept", "")
    assert stage.calls[:5] == [["a", "b"], ["a"], ["a"], ["a"], ["b"]]


def test_smaller_pieces_may_fit(store: Store) -> None:
    stage = Fake()

    def trouble(keys: list[str]) -> None:
        if "a" in keys and stage.pieces[0].size > 1:
            raise torch.OutOfMemoryError("full")

    stage.trouble = trouble
    run(store, stage)
    assert statuses(store)["a"] == ("kept", "")


def test_a_process_that_is_gone_is_counted_and_the_clip_flagged_in_the_end(store: Store) -> None:
    class GoneError(BaseException):
        pass

    def trouble(keys: list[str]) -> None:
        if "c" in keys:
            raise GoneError

    path = store.claim_file("fake", 0)
    alone = 0
    for _ in range(20):
        stage = Fake(trouble)
        with pytest.MonkeyPatch.context() as patch:
            # As kill -9 leaves it: the claim is there, its process is not.
            patch.setattr(claims.Claim, "release", claims.Claim.abandon)
            try:
                run(store, stage)
                break
            except GoneError:
                alone += stage.calls[-1] == ["c"]
        path.write_text(json.dumps({**json.loads(path.read_text()), "process_started": "1"}))
    assert statuses(store)["c"] == ("failed", "killed the process")
    assert statuses(store)["odd1"] == ("dropped", "odd")
    assert alone >= 2
    assert store.whole_parts("fake") == [0, 1]


def test_a_lost_device_ends_the_process_and_leaves_its_claim(store: Store) -> None:
    def trouble(keys: list[str]) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(LostDeviceError, match="illegal"):
        run(store, Fake(trouble))
    assert json.loads(store.claim_file("fake", 0).read_text())["keys"] == ["a", "b"]


def test_when_everything_fails_it_is_not_the_clips(store: Store) -> None:
    def trouble(keys: list[str]) -> None:
        raise RuntimeError("no kernel image")

    settings = RunSettings(most_failures_in_a_row=4, attempts=1)
    with pytest.raises(TooManyFailuresError, match=r"4 clips failed in a row.*no kernel image"):
        run(store, Fake(trouble), settings)


def test_a_full_disk_is_waited_for(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Store.write_file
    full = [True, True]

    def write(self: Store, stage: str, part: int, name: str, content: bytes) -> None:
        if name.startswith("b") and full:
            full.pop()
            raise OSError(errno.ENOSPC, "No space left on device", name)
        real(self, stage, part, name, content)

    monkeypatch.setattr(Store, "write_file", write)
    monkeypatch.setattr(patience, "_LOOK_AGAIN_SECONDS", 0.01)
    run(store, Fake(), RunSettings(disk_full_seconds=30.0))
    assert statuses(store)["b"] == ("kept", "")


def test_a_disk_that_stays_full_flags_the_clip(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Store.write_file

    def write(self: Store, stage: str, part: int, name: str, content: bytes) -> None:
        if name.startswith("b"):
            raise OSError(errno.ENOSPC, "No space left on device", name)
        real(self, stage, part, name, content)

    monkeypatch.setattr(Store, "write_file", write)
    run(store, Fake())
    assert statuses(store)["b"] == ("failed", "disk full")
    assert "No space left" in store.read("fake", 0)["b"].detail
    assert statuses(store)["a"] == ("kept", "")


def test_a_part_of_another_process_is_left_alone(store: Store) -> None:
    with claims.take(store.claim_file("fake", 0), stale_seconds=60.0):
        stage = Fake()
        assert run(store, stage) == 1
        assert stage.calls == [["e"]]


def test_rows_of_clips_no_longer_wanted_stay(store: Store) -> None:
    run(store, Fake())
    rows = store.read("ingest", 0)
    rows["b"] = Row(key="b", status="dropped", reason="new threshold")
    store.write("ingest", 0, rows.values(), is_whole=True)
    store.reopen("fake", 0)
    stage = Fake()
    run(store, stage)
    assert stage.calls == []
    assert [*store.read("fake", 0)] == ["a", "odd1", "c", "d", "b"]


def test_what_no_row_can_hold_is_flagged(store: Store) -> None:
    class Odd(Fake):
        def work(self, clips: Sequence[Clip]) -> list[Outcome]:
            return [Kept(columns={"motion": float("nan")}) for _ in clips]

    run(store, Odd(), RunSettings(most_failures_in_a_row=99))
    assert statuses(store)["a"] == ("failed", "not a number")


def test_what_a_signal_cut_short_does_not_count(store: Store) -> None:
    """A library swallowed the exception and took the clip for damaged."""

    class Deaf(Fake):
        def work(self, clips: Sequence[Clip]) -> list[Outcome]:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(60)
            except SystemExit:
                pass
            return [Dropped(reason="unreadable") for _ in clips]

    with heeding_signals(), pytest.raises(SystemExit, match="143"):
        run(store, Deaf())
    assert store.read("fake", 0) == {}
    assert not list(store.folder("fake").glob("*.claim"))
    run(store, Fake())
    assert statuses(store)["a"] == ("kept", "")
