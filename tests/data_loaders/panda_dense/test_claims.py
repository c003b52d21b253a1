"""Claims: one at a time, known as dead when the process is, and never lost."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from data_loaders.panda_dense import claims

STALE = 60.0


def hold(path: Path, ready) -> None:
    claim = claims.take(path, stale_seconds=STALE)
    assert claim is not None
    claim.work_on(["a", "b"])
    ready.set()
    time.sleep(60)


@pytest.fixture
def holder(tmp_path: Path):
    """A process that holds tmp_path/x.claim and works on a and b."""
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=hold, args=(tmp_path / "x.claim", ready))
    process.start()
    assert ready.wait(60)
    yield process
    process.kill()
    process.join()


def test_only_one_has_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.claim"
    with claims.take(path, stale_seconds=STALE) as claim:
        assert claim is not None and claim.orphans == ()
        assert claims.take(path, stale_seconds=STALE) is None
        assert claims.holder(path, stale_seconds=STALE).endswith(f"process {os.getpid()}")
    assert list(path.parent.iterdir()) == []
    assert claims.holder(path, stale_seconds=STALE) == ""
    assert claims.take(path, stale_seconds=STALE) is not None


def test_a_killed_process_leaves_what_it_was_at(tmp_path: Path, holder) -> None:
    path = tmp_path / "x.claim"
    assert claims.take(path, stale_seconds=STALE) is None
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    claim = claims.take(path, stale_seconds=STALE)
    assert claim is not None and claim.orphans == ("a", "b")
    # Not settled: whoever comes after us is told again.
    claim.abandon()
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "process_started": "1"}))
    heir = claims.take(path, stale_seconds=STALE)
    assert heir is not None and heir.orphans == ("a", "b")
    claims.settle_orphans(heir)
    heir.abandon()
    path.write_text(json.dumps({**json.loads(path.read_text()), "process_started": "1"}))
    assert claims.take(path, stale_seconds=STALE).orphans == ()


def test_of_another_machine_only_silence_tells(tmp_path: Path) -> None:
    path = tmp_path / "x.claim"
    claim = claims.take(path, stale_seconds=STALE)
    claim.abandon()
    path.write_text(json.dumps({**claim.record, "machine": "other", "pid": 2**22 + 1}))
    assert claims.take(path, stale_seconds=STALE) is None
    os.utime(path, (time.time() - 2 * STALE,) * 2)
    assert claims.take(path, stale_seconds=STALE) is not None


def test_signs_of_life_keep_it(tmp_path: Path) -> None:
    path = tmp_path / "x.claim"
    with claims.take(path, stale_seconds=0.6):
        os.utime(path, (0, 0))
        limit = time.monotonic() + 20
        while path.stat().st_mtime == 0:
            assert time.monotonic() < limit
            time.sleep(0.05)


def test_a_claim_that_another_took_over_is_not_released(tmp_path: Path) -> None:
    path = tmp_path / "x.claim"
    claim = claims.take(path, stale_seconds=STALE)
    path.unlink()
    other = claims.take(path, stale_seconds=STALE)
    claim.release()
    assert json.loads(path.read_text())["token"] == other.record["token"]


def test_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "x.claim"
    with claims.take(path, stale_seconds=STALE) as claim:
        assert json.loads(path.read_text()) == claim.record
        assert claims.take(path, stale_seconds=STALE) is None
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_claim_dies_of_silence(tmp_path: Path) -> None:
    path = tmp_path / "x.claim"
    path.write_text("{")
    assert claims.take(path, stale_seconds=STALE) is None
    os.utime(path, (0, 0))
    assert claims.take(path, stale_seconds=STALE).orphans == ()


def test_of_two_heirs_one_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.claim"
    dead = claims.take(path, stale_seconds=STALE)
    dead.abandon()
    path.write_text(json.dumps({**dead.record, "process_started": "1", "keys": ["a"]}))
    heirs = []
    real = os.rename

    def rename(source, target) -> None:
        # The other heir is through with it at the very moment that this one buries the dead.
        monkeypatch.setattr(os, "rename", real)
        heirs.append(claims.take(path, stale_seconds=STALE))
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    assert claims.take(path, stale_seconds=STALE) is None
    assert heirs[0].orphans == ("a",)
    assert json.loads(path.read_text())["token"] == heirs[0].record["token"]
