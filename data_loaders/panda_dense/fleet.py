"""Several processes of one command on one machine, each with a GPU where there are some."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_log = logging.getLogger(__name__)

NEW_PROCESS = 75
"""Exit status that asks for a new process: the GPU no longer works in this one (EX_TEMPFAIL)."""

_MOST_RESTARTS = 100
"""Of one place. A clip that kills its process is flagged after `run.deaths` of them."""
_SECONDS_TO_END = 30.0
_LOOK_SECONDS = 0.2
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(kw_only=True)
class _Worker:
    number: int
    process: subprocess.Popen[bytes]
    restarts: int = 0


def run_fleet(command: Sequence[str], *, workers: int) -> int:
    """Run a command several times at once until all have ended.

    A process that is killed, as by the kernel when memory is short, or that asks for a new one,
    is started again. Ctrl-C and SIGTERM are handed on.

    Args:
        command: Program and arguments; its processes find out themselves who does what.
        workers: How many, >= 1.

    Returns:
        The highest exit status; 128 + signal of one that was killed too often.
    """
    asked: list[int] = []

    def ask_to_end(number: int, _: object) -> None:
        asked.append(number)

    before = {number: signal.signal(number, ask_to_end) for number in _SIGNALS}
    team = [_Worker(number=n, process=_start(command, n)) for n in range(workers)]
    status = 0
    try:
        while team and not asked:
            time.sleep(_LOOK_SECONDS)
            for worker in list(team):
                code = worker.process.poll()
                if code is None:
                    continue
                if (code < 0 or code == NEW_PROCESS) and worker.restarts < _MOST_RESTARTS:
                    _log.warning("worker %d ended with %d: started again", worker.number, code)
                    worker.process = _start(command, worker.number)
                    worker.restarts += 1
                    continue
                team.remove(worker)
                status = max(status, code if code >= 0 else 128 - code)
    finally:
        _end(team)
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 + asked[0] if asked else status


def _start(command: Sequence[str], number: int) -> subprocess.Popen[bytes]:
    environment = {**os.environ, **_own_device(number, environment=os.environ)}
    # A group of its own: Ctrl-C comes from us, once.
    return subprocess.Popen(  # noqa: S603 - this very program
        list(command), env=environment, start_new_session=True
    )


def _own_device(number: int, *, environment: Mapping[str, str]) -> dict[str, str]:
    """The one GPU that a process sees; {} without GPUs."""
    import torch

    count = torch.cuda.device_count()
    if count == 0:
        return {}
    listed = environment.get("CUDA_VISIBLE_DEVICES")
    names = listed.split(",") if listed else [str(device) for device in range(count)]
    return {"CUDA_VISIBLE_DEVICES": names[number % len(names)]}


def _end(team: Sequence[_Worker]) -> None:
    for worker in team:
        worker.process.terminate()
    give_up = time.monotonic() + _SECONDS_TO_END
    for worker in team:
        try:
            worker.process.wait(max(0.0, give_up - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()


def python_command(arguments: Sequence[str]) -> list[str]:
    """The command line that runs this program again."""
    return [sys.executable, "-m", "data_loaders.panda_dense", *arguments]
