"""When the watch ends a process; what it prints then is in tests/distributed/test_faults.py."""

import threading
from collections.abc import Callable

import pytest
import torch

from sat_udpdiff.distributed import Place
from sat_udpdiff.training import hang_watch
from sat_udpdiff.training.hang_watch import HUNG, HangWatch

PLACE = Place(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"), backend="gloo")
# An eighth of a second.
SOON = 0.002


@pytest.fixture
def has_ended(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], bool]:
    """Whether the watch would have ended the process, after so many seconds at most."""
    ended = threading.Event()
    monkeypatch.setattr(HangWatch, "_end", lambda self, waited: ended.set())
    return ended.wait


def test_it_ends_what_stands_still(has_ended):
    with HangWatch(minutes=SOON, place=PLACE):
        assert has_ended(60)


def test_work_of_unknown_length_is_left_alone_and_watched_again_afterwards(has_ended):
    with HangWatch(minutes=SOON, place=PLACE) as watch:
        with watch.paused():
            assert not has_ended(0.5)
        assert has_ended(60)


def test_once_it_has_told_a_lost_rank_is_no_other_end(monkeypatch, capfd):
    told, statuses = threading.Event(), []
    watch = HangWatch(minutes=SOON, place=PLACE)
    watch.last_words = told.set

    def end(status: int) -> None:
        statuses.append(status)
        watch._is_over.set()

    monkeypatch.setattr(hang_watch, "_LATER_SECONDS", 0.5)
    monkeypatch.setattr("os._exit", end)
    with pytest.raises(RuntimeError), watch:
        assert told.wait(60)
        raise RuntimeError("Connection closed by peer")
    assert statuses == [HUNG]
    said = capfd.readouterr().err
    assert "no step was done for 0.0 minutes (run.hang_minutes=0.002), 0 were before" in said
    assert "[rank 0]   File " in said


def test_work_that_ends_after_all_is_left_to_end(monkeypatch, capfd):
    told = threading.Event()
    monkeypatch.setattr("os._exit", lambda status: pytest.fail("ended"))
    watch = HangWatch(minutes=SOON, place=PLACE)
    watch.last_words = told.set
    with watch:
        assert told.wait(60)
    assert "no step was done" in capfd.readouterr().err


def test_what_is_over_is_no_longer_watched(has_ended):
    with HangWatch(minutes=60.0, place=PLACE) as watch:
        watch.beat()
    assert "hang watch" not in [thread.name for thread in threading.enumerate()]
    assert not has_ended(0.0)


def test_zero_is_never(has_ended):
    with HangWatch(minutes=0.0, place=PLACE) as watch:
        watch.beat()
        assert not has_ended(0.3)
