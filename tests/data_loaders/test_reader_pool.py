"""Processes that crash or hang cost their task and nothing else."""

import errno
import os
import signal
import time

import numpy as np
import pytest

from data_loaders import reader_pool
from data_loaders.reader_pool import ClosedPoolError, LostReaderError, ReaderPool, ReaderStartError
from data_loaders.schema import DataError


class Work:
    """What a task asks for; travels to the process as a module and a name."""

    def __call__(self, task):
        kind, value = task
        if kind == "square":
            return value * value, os.getpid()
        if kind == "error":
            raise DataError(value)
        if kind == "no way":
            raise NoWayError(value, value)
        if kind == "strange":
            raise StrangeError(lambda: None)
        if kind == "exit":
            os._exit(value)
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGSEGV)
        if kind == "hang":
            # What a decoder in C does: no signal that Python handles would reach it.
            signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))
            while True:
                time.sleep(60)
        if kind == "arrays":
            return [np.full(shape, i, np.uint16) for i, shape in enumerate(value)]
        return b"x" * value


class StrangeError(Exception):
    """Cannot travel between processes."""


class Broken:
    def __call__(self, task): ...

    def __reduce__(self):
        return os._exit, (3,)


@pytest.fixture
def pool():
    # The module travels by name, so it has to be found under it.
    made = ReaderPool(Work(), num_workers=2, deadline_seconds=1.0)
    yield made
    made.close()


def test_results_errors_and_lost_processes_come_back_to_their_own_task(pool):
    tasks = [
        ("square", 3), ("error", "clip-7: damaged"), ("exit", 5), ("kill", 0), ("strange", 0),
        ("hang", 0), ("bytes", 3_000_000), ("square", 4),
    ]  # fmt: skip
    futures = [pool.submit(task) for task in tasks]
    assert futures[0].result()[0] == 9
    with pytest.raises(DataError, match="clip-7: damaged"):
        futures[1].result()
    with pytest.raises(LostReaderError, match="exit status 5"):
        futures[2].result()
    with pytest.raises(LostReaderError, match="SIGSEGV"):
        futures[3].result()
    with pytest.raises(RuntimeError, match="StrangeError"):
        futures[4].result()
    with pytest.raises(LostReaderError, match=r"did not end within 1 seconds and was stopped"):
        futures[5].result()
    assert len(futures[6].result()) == 3_000_000
    square, process = futures[7].result()
    assert square == 16 and process != os.getpid()


@pytest.mark.parametrize("shapes", [[(3, 5), (0, 4), (700, 1000), (1,)], [(0,)], []])
def test_arrays_come_whole_and_can_be_written_to(pool, shapes):
    found = pool.submit(("arrays", shapes)).result()
    assert [array.shape for array in found] == shapes
    for i, array in enumerate(found):
        assert array.dtype == np.uint16 and (array == i).all()
        array += 1
    assert all((array == i + 1).all() for i, array in enumerate(found))


def test_arrays_leave_no_file_open(pool):
    pool.submit(("arrays", [(100,)])).result()
    before = len(os.listdir("/proc/self/fd"))
    kept = [pool.submit(("arrays", [(100_000,)])).result() for _ in range(5)]
    # A mapping keeps a descriptor of its own as long as its arrays live.
    assert len(os.listdir("/proc/self/fd")) == before + len(kept)
    del kept
    assert len(os.listdir("/proc/self/fd")) == before


def test_closing_ends_processes_that_hang(pool):
    hanging = pool.submit(("hang", 0))
    waiting = [pool.submit(("hang", 0)) for _ in range(4)]
    pool.submit(("square", 2))
    while len(pool.process_ids()) < 2 or not hanging.running():
        time.sleep(0.01)
    processes = pool.process_ids()
    pool.close()
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)
    with pytest.raises(ClosedPoolError, match="the pool was closed"):
        hanging.result(timeout=0)
    with pytest.raises(ClosedPoolError, match="the pool was closed"):
        waiting[-1].result(timeout=0)
    with pytest.raises(ClosedPoolError, match="the pool was closed"):
        pool.submit(("square", 1))


def test_processes_outlive_signals_to_the_group_and_die_with_their_parent(pool):
    assert pool.submit(("square", 2)).result()[0] == 4
    for process in pool.process_ids():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            os.kill(process, number)
    answers = [pool.submit(("square", i)) for i in range(4)]
    assert [answer.result()[0] for answer in answers] == [0, 1, 4, 9]


def test_processes_that_never_start_are_not_tried_for_ever():
    pool = ReaderPool(Broken(), num_workers=1, deadline_seconds=5.0)
    try:
        with pytest.raises(
            ReaderStartError, match="3 data processes in a row ended while they start"
        ):
            pool.submit(("square", 1)).result(timeout=30)
    finally:
        pool.close()


class NoWayError(Exception):
    """Goes into a pickle and does not come out."""

    def __init__(self, one, two):
        super().__init__(one)


def test_errors_that_cannot_be_unpickled_cost_their_task_alone(pool):
    with pytest.raises(RuntimeError, match="NoWayError: first"):
        pool.submit(("no way", "first")).result(timeout=30)
    assert pool.submit(("square", 3)).result(timeout=30)[0] == 9


def test_a_fault_on_our_own_side_is_no_wait_for_ever(pool, monkeypatch):
    def fail(connection):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    assert pool.submit(("square", 2)).result(timeout=30)[0] == 4
    monkeypatch.setattr(reader_pool, "receive_answer", fail)
    with pytest.raises(LostReaderError, match=r"could not be read from \(.*Too many open files"):
        pool.submit(("bytes", 100)).result(timeout=30)
    monkeypatch.undo()
    assert pool.submit(("square", 3)).result(timeout=30)[0] == 9


def test_a_machine_that_gives_no_process_is_named(monkeypatch):
    def fail(*_, **__):
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(reader_pool.subprocess, "Popen", fail)
    pool = ReaderPool(Work(), num_workers=1, deadline_seconds=5.0)
    with pytest.raises(ReaderStartError, match="Resource temporarily unavailable"):
        pool.submit(("square", 1)).result(timeout=30)
    pool.close()
