"""Several processes of one command: started again when killed, ended together."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from data_loaders.panda_dense import fleet
from data_loaders.panda_dense.fleet import NEW_PROCESS, run_fleet


def command(code: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", code, *map(str, arguments)]


NOTE = "import os, pathlib, sys; pathlib.Path(sys.argv[1], str(os.getpid())).touch();"


def test_all_run_and_the_highest_status_is_told(tmp_path: Path) -> None:
    code = NOTE + "sys.exit(3 if len(os.listdir(sys.argv[1])) == 1 else 0)"
    assert run_fleet(command(code, tmp_path), workers=1) == 3
    assert run_fleet(command(NOTE, tmp_path), workers=2) == 0
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("end", [f"sys.exit({NEW_PROCESS})", "os.kill(os.getpid(), 9)"])
def test_one_that_is_gone_is_started_again(tmp_path: Path, end: str) -> None:
    code = NOTE + f"if len(os.listdir(sys.argv[1])) < 3: {end}"
    assert run_fleet(command(code.replace(";if", "\nif"), tmp_path), workers=1) == 0
    assert len(list(tmp_path.iterdir())) == 3


def test_one_that_is_always_gone_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "_MOST_RESTARTS", 2)
    code = NOTE + "os.kill(os.getpid(), 9)"
    assert run_fleet(command(code, tmp_path), workers=1) == 128 + 9
    assert len(list(tmp_path.iterdir())) == 3


def test_being_asked_to_end_ends_all(tmp_path: Path) -> None:
    def ask() -> None:
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=ask)
    thread.start()
    started = time.monotonic()
    status = run_fleet(command(NOTE + "import time; time.sleep(600)", tmp_path), workers=2)
    thread.join()
    assert status == 128 + signal.SIGTERM
    assert time.monotonic() - started < 300
    for path in tmp_path.iterdir():
        assert not Path("/proc", path.name).exists()


def test_each_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    own = fleet._own_device
    assert own(3, environment={}) == {"CUDA_VISIBLE_DEVICES": "1"}
    assert own(1, environment={"CUDA_VISIBLE_DEVICES": "5,7"}) == {"CUDA_VISIBLE_DEVICES": "7"}
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert own(0, environment={}) == {}
