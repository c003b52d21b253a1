"""What is worked on here comes from the standard library: a spawned process must import it."""

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from data_loaders.schema import DataError
from data_loaders.worker_pool import _portable, ordered_map


def no_children_left():
    return not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 2])
def test_results_come_in_order(workers):
    assert list(ordered_map(partial(pow, 2), range(12), workers=workers)) == [
        2**i for i in range(12)
    ]
    assert no_children_left()


def test_few_items_are_in_flight():
    drawn = []
    results = ordered_map(abs, (drawn.append(i) or -i for i in range(100)), workers=2)
    for taken in range(1, 20):
        next(results)
        # Of what was drawn, at most 2 per worker are not yet yielded, but for one just yielded.
        assert len(drawn) <= taken + 4
    results.close()
    assert no_children_left()


def test_the_first_error_of_the_order_comes_to_the_front_with_its_message():
    results = ordered_map(int, ["1", "x", "y"], workers=2)
    assert next(results) == 1
    with pytest.raises(ValueError, match=r"invalid literal for int.*'x'"):
        next(results)
    assert no_children_left()


def test_an_error_that_cannot_travel_keeps_its_text():
    class LocalError(Exception):
        pass

    carried = _portable(LocalError("lost its way"))
    assert isinstance(carried, DataError) and str(carried) == "LocalError: lost its way"
    known = DataError("as it is")
    assert _portable(known) is known


@pytest.mark.parametrize(
    ("work", "item", "how"),
    [
        (signal.raise_signal, signal.SIGKILL, "was killed by SIGKILL"),
        (os._exit, 3, "exited with 3"),
    ],
)
def test_a_worker_that_dies_is_named_with_its_work(work, item, how):
    with pytest.raises(DataError, match=rf"worker process \d+ {how} while it worked on clip 7"):
        list(ordered_map(work, [item], workers=1, describe=lambda _: "clip 7"))
    assert no_children_left()


def test_a_worker_killed_in_the_middle_of_a_large_result_does_not_hang(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(b"done")
    # The second worker gets its bytes only when the first result is here: the main process could
    # otherwise take both at once.
    os.mkfifo(second)
    results = ordered_map(Path.read_bytes, [first, second], workers=2)
    assert next(results) == b"done"
    # Far more than a pipe holds: the worker stands in the middle of its result.
    second.write_bytes(bytes(50_000_000))
    time.sleep(0.3)
    for process in multiprocessing.active_children():
        os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(DataError, match=r"was killed by SIGKILL while it worked on .*/second"):
        next(results)


def test_closing_ends_workers_that_are_busy():
    results = ordered_map(time.sleep, [0, 100, 100], workers=2)
    next(results)
    started = time.monotonic()
    results.close()
    assert time.monotonic() - started < 5
    assert no_children_left()


def test_log_lines_of_workers_are_logged_here(caplog):
    work = logging.getLogger("data_loaders.test").warning
    with caplog.at_level(logging.WARNING):
        list(ordered_map(work, ["left out a", "left out b"], workers=2))
    assert caplog.messages == ["left out a", "left out b"]


def test_a_negative_number_is_refused():
    with pytest.raises(DataError, match="workers: expected an integer >= 0, got -1"):
        list(ordered_map(abs, [1], workers=-1))


def start_endless_synthetic(out):
    command = [sys.executable, "-m", "data_loaders.synthetic", str(out), "--clips", "100000"]
    options = ["--workers", "2", "--samples-per-shard", "2"]
    process = subprocess.Popen(
        [*command, *options],
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
        # A job in the background of a shell ignores Ctrl-C, and so would all that it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not (out / "shard-000001.tar").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    return process


def wait_for_the_end_of_all(group):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    os.killpg(group, signal.SIGKILL)
    raise AssertionError("processes are left")


def test_ctrl_c_ends_cleanly(tmp_path):
    process = start_endless_synthetic(tmp_path / "out")
    # As a terminal does: to every process of the group.
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted: no shards were left" in errors and "Traceback" not in errors
    assert list((tmp_path / "out").iterdir()) == []
    wait_for_the_end_of_all(process.pid)


def test_workers_end_when_the_main_process_is_killed(tmp_path):
    process = start_endless_synthetic(tmp_path / "out")
    process.kill()
    process.communicate()
    wait_for_the_end_of_all(process.pid)
    # What it left does not claim to be whole.
    assert not (tmp_path / "out" / "manifest.json").exists()


HANG = (
    "import time; from data_loaders.worker_pool import ordered_map; "
    "list(ordered_map(time.sleep, [0, 600], workers=1))"
)


def test_a_worker_that_hangs_ends_with_the_main_process():
    process = subprocess.Popen([sys.executable, "-c", HANG], start_new_session=True)
    deadline = time.monotonic() + 60
    # It is at work when it waits in the sleep.
    while not sleeping_children(process.pid):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    wait_for_the_end_of_all(process.pid)


def sleeping_children(pid):
    """Children of a process that wait in a sleep, by what the kernel says."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    # 35: nanosleep, 230: clock_nanosleep of x86-64; 101 and 115 of aarch64.
    calls = [Path(f"/proc/{child}/syscall").read_text().split()[0] for child in children]
    return [call for call in calls if call in ("35", "230", "101", "115")]
