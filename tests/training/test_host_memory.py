"""How much memory there is for copies, by what the kernel and a job's control group say."""

import pytest

from sat_udpdiff.training import host_memory
from sat_udpdiff.training.host_memory import available_bytes, lack_of_memory
from sat_udpdiff.training.state import TrainState
from sat_udpdiff.weights.run_folder import find_latest


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def machine(tmp_path):
    write(tmp_path / "proc/meminfo", "MemTotal: 9000 kB\nMemAvailable: 1000 kB\n")
    write(tmp_path / "proc/self/cgroup", "1:cpu:/x\n0::/job/step\n")
    return tmp_path


def test_without_limits_it_is_what_the_kernel_says(machine):
    assert available_bytes(root=machine) == 1000 * 1024
    write(machine / "sys/fs/cgroup/job/step/memory.max", "max\n")
    write(machine / "sys/fs/cgroup/job/step/memory.current", "5\n")
    assert available_bytes(root=machine) == 1000 * 1024


@pytest.mark.parametrize("group", ["job", "job/step"])
def test_a_group_limits_all_below_it(group, machine):
    folder = machine / "sys/fs/cgroup" / group
    write(folder / "memory.max", "1000\n")
    write(folder / "memory.current", "900\n")
    assert available_bytes(root=machine) == 100
    write(folder / "memory.stat", "anon 600\ninactive_file 250\n")
    assert available_bytes(root=machine) == 350


def test_a_system_that_says_nothing_limits_nothing(tmp_path, monkeypatch, place):
    assert available_bytes(root=tmp_path) is None
    monkeypatch.setattr(host_memory, "available_bytes", lambda: None)
    assert lack_of_memory(10**18, place=place(0, 1)) is None


def test_ranks_of_one_machine_share_its_memory(team, monkeypatch):
    monkeypatch.setattr(host_memory, "available_bytes", lambda: 10 * 10**9)
    monkeypatch.setattr(host_memory.socket, "gethostname", lambda: "node1")
    ranks = team(3)
    assert ranks.run(lambda place: lack_of_memory(2 * 10**9, place=place)) == [None] * 3
    expected = "9.0 GB of memory on node1, where 10.0 GB are free"
    assert ranks.run(lambda place: lack_of_memory(3 * 10**9, place=place)) == [expected] * 3


def test_a_save_waits_where_memory_is_short(run, engine, make_config, place, monkeypatch):
    from sat_udpdiff.training.checkpoint import Saver

    monkeypatch.setattr(host_memory, "available_bytes", lambda: 10)
    run.mkdir()
    said = []
    saver = Saver(make_config(run, asynchronous=True), place=place(0, 1), tell=said.append)
    for step in (1, 2):
        saver.save(engine, ema=None, state=TrainState(step=step))
        assert find_latest(run, verify=True).step == step
    saver.close()
    assert len(said) == 1
    assert "training waits for checkpoints" in said[0]
