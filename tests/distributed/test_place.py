"""Ranks under every launcher, from the words that each one puts into the environment."""

import json
import os
import shutil
import socket
import subprocess
import sys

import pytest
import torch

from sat_udpdiff.config import ConfigError
from sat_udpdiff.distributed import (
    close_distributed,
    first_node,
    init_distributed,
    is_lost_rank,
    read_launch_facts,
    spell_ranks,
)
from sat_udpdiff.free_port import free_port

TORCHRUN = {
    "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1",
    "MASTER_ADDR": "host0", "MASTER_PORT": "29400",
}  # fmt: skip
MPI = {
    "OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4", "PMIX_NAMESPACE": "prterun-1",
}  # fmt: skip
SLURM = {
    "SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "n[01-02]",
}  # fmt: skip
BATCH_SCRIPT = {
    "SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "77",
}  # fmt: skip
PROGRAM = """
import json, os, torch
from sat_udpdiff import distributed as d
place = d.init_distributed(device="cpu", timeout_minutes=1)
assert d.init_distributed(device="cpu") == place
total = torch.tensor([1.0 + place.rank, 2.0])
torch.distributed.all_reduce(total)
torch.distributed.barrier()
print(json.dumps([place.rank, place.world_size, place.local_rank, place.is_main, total.tolist()]
    + [os.environ[k] for k in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")]), flush=True)
d.tell_end("of all")
if place.rank:
    d.tell_end("of one")
torch.distributed.barrier()
d.close_distributed()
d.close_distributed()
assert not torch.distributed.is_initialized()
"""


@pytest.fixture(autouse=True)
def alone():
    """No process group is left from a test that built a network in this process."""
    close_distributed()


def ranks(environ):
    facts = read_launch_facts(environ)
    return (facts.launcher, facts.rank, facts.world_size, facts.local_rank)


def without(environ, *keys):
    return {key: value for key, value in environ.items() if key not in keys}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, ("single", 0, 1, 0)),
        (TORCHRUN, ("environment", 3, 4, 1)),
        (MPI, ("mpi", 2, 4, 2)),
        (SLURM, ("slurm", 5, 8, 1)),
        # The step may be smaller than the allocation.
        (SLURM | {"SLURM_STEP_NUM_TASKS": "6"}, ("slurm", 5, 6, 1)),
        # Launchers inside a Slurm job: the innermost one speaks.
        (SLURM | TORCHRUN, ("environment", 3, 4, 1)),
        (BATCH_SCRIPT | MPI, ("mpi", 2, 4, 2)),
        (MPI | TORCHRUN, ("environment", 3, 4, 1)),
        # Plain python in a batch script is one process, whatever the size of the job.
        (BATCH_SCRIPT, ("single", 0, 1, 0)),
        # One process needs to say no more than that.
        ({"RANK": "0", "WORLD_SIZE": "1"}, ("environment", 0, 1, 0)),
    ],
)
def test_ranks_of_every_launcher(environ, expected):
    assert ranks(environ) == expected


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (without(TORCHRUN, "RANK"), "RANK: expected a whole number in the environment, got noth"),
        (without(TORCHRUN, "WORLD_SIZE"), "WORLD_SIZE: expected a whole number"),
        (without(TORCHRUN, "LOCAL_RANK"), "LOCAL_RANK: expected a whole number"),
        (without(TORCHRUN, "MASTER_ADDR"), "MASTER_ADDR is not set, but WORLD_SIZE=4"),
        (without(TORCHRUN, "MASTER_PORT"), "MASTER_PORT: expected a whole number"),
        (TORCHRUN | {"RANK": "x"}, "RANK: expected a whole number in the environment, got 'x'"),
        (TORCHRUN | {"RANK": "-1"}, "RANK: expected a whole number in the environment, got '-1'"),
        (
            TORCHRUN | {"RANK": "4"},
            "expected a rank from 0 to below the world size, got rank 4 of 4",
        ),
        (TORCHRUN | {"WORLD_SIZE": "0", "RANK": "0"}, "got rank 0 of 0"),
        (TORCHRUN | {"LOCAL_RANK": "4"}, "expected a local rank from 0 to rank 3, got 4"),
        (without(MPI, "OMPI_COMM_WORLD_SIZE"), "OMPI_COMM_WORLD_SIZE: expected a whole number"),
        (without(SLURM, "SLURM_LOCALID"), "SLURM_LOCALID: expected a whole number"),
        (SLURM | {"SLURM_PROCID": "9"}, "slurm: expected a rank from 0"),
    ],
)
def test_contradictions_are_named(environ, message):
    with pytest.raises(ConfigError) as caught:
        read_launch_facts(environ)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_meeting_points(monkeypatch, capsys):
    known = {"n01": "10.0.0.1"}

    def lookup(host):
        if host not in known:
            raise OSError(host)
        return known[host]

    monkeypatch.setattr(socket, "gethostbyname", lookup)
    facts = read_launch_facts(SLURM)
    assert facts.master_addr == "n01"
    # The same for every rank of a step, and another one for another step.
    assert (
        facts.master_port
        == read_launch_facts(SLURM | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}).master_port
    )
    assert facts.master_port != read_launch_facts(SLURM | {"SLURM_STEP_ID": "1"}).master_port
    assert 20_000 <= facts.master_port < 32_768
    # What the user sets wins.
    given = read_launch_facts(SLURM | {"MASTER_ADDR": "login", "MASTER_PORT": "5"})
    assert (given.master_addr, given.master_port) == ("login", 5)
    # One machine, and virtual nodes whose names nobody knows, meet on the loopback.
    assert read_launch_facts(SLURM | {"SLURM_STEP_NODELIST": "n01"}).master_addr == "127.0.0.1"
    assert capsys.readouterr().err == ""
    virtual = SLURM | {"SLURM_STEP_NODELIST": "v[1-2]"}
    monkeypatch.setenv("SLURMD_NODENAME", "v2")
    assert read_launch_facts(virtual).master_addr == "127.0.0.1"
    assert capsys.readouterr().err == ""  # the first rank of each node says it
    assert read_launch_facts(virtual | {"SLURM_LOCALID": "0"}).master_addr == "127.0.0.1"
    said = "MASTER_ADDR: v2 does not know the name v1; using 127.0.0.1\n"
    assert capsys.readouterr().err == said
    assert read_launch_facts(MPI).master_addr == "127.0.0.1"
    assert (
        read_launch_facts(MPI).master_port
        != read_launch_facts(MPI | {"PMIX_NAMESPACE": "2"}).master_port
    )


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("", ""), ("n1", "n1"), ("n1,n2", "n1"), ("gpu[03-05,9],login1", "gpu03"),
        ("a[007]", "a007"), ("rack[1-2]n[3-4]", "rack1n3"), ("a-[1,3].local", "a-1.local"),
    ],
)  # fmt: skip
def test_first_node(nodes, first):
    assert first_node(nodes) == first


@pytest.mark.parametrize(
    ("ranks", "spelled"),
    [([3], "rank 3"), ([1, 0], "ranks 0-1"), ([7, 0, 1, 2, 9], "ranks 0-2, 7, 9")],
)
def test_ranks_are_spelled_short(ranks, spelled):
    assert spell_ranks(ranks) == spelled


def test_an_error_of_a_collective_is_told_from_a_bug():
    assert is_lost_rank(RuntimeError("[pair.cc:547] Connection closed by peer [127.0.0.1]:33"))
    assert is_lost_rank(torch.distributed.DistBackendError("NCCL error: remote process exited"))
    assert not is_lost_rank(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_lost_rank(KeyError("Connection closed by peer"))


def test_ranks_that_do_not_come_are_named(monkeypatch):
    launch(monkeypatch, SLURM | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"})
    monkeypatch.setenv("SLURMD_NODENAME", "n01")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    port = str(free_port())
    monkeypatch.setenv("MASTER_PORT", port)
    with pytest.raises(ConfigError) as caught:
        init_distributed(device="cpu", meeting_minutes=0.005)
    assert str(caught.value).startswith(
        f"rank 0 on n01: ranks 1-7 of 8 did not come to 127.0.0.1:{port} within 0.005 minutes "
        "(the nodes are n[01-02])"
    )
    assert not torch.distributed.is_initialized()


def test_a_rank_without_the_first_one_says_so(monkeypatch):
    launch(monkeypatch, TORCHRUN | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"})
    monkeypatch.setenv("SLURMD_NODENAME", "n02")
    with pytest.raises(ConfigError, match=r"rank 3 on n02: cannot reach rank 0 at 127\.0\.0\.1:1"):
        init_distributed(device="cpu", meeting_minutes=0.005)


def test_several_machines_without_mpi4py(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    launch(monkeypatch, MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2"})
    with pytest.raises(
        ConfigError, match=r"mpirun spans several machines: install mpi4py .* or ad"
    ):
        init_distributed(device="cpu")


def fake_gpus(monkeypatch, *, count):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)


def launch(monkeypatch, environ):
    for key in list(os.environ):
        if key.startswith(("SLURM_", "OMPI_")):
            monkeypatch.delenv(key)
    for key in TORCHRUN:  # `init_distributed` fills them in; so each is as before in the end
        monkeypatch.setenv(key, "")
        monkeypatch.delenv(key)
    for key, value in environ.items():
        monkeypatch.setenv(key, value)


def test_device_is_the_local_rank(monkeypatch):
    fake_gpus(monkeypatch, count=2)
    launch(monkeypatch, TORCHRUN)
    place = init_distributed()
    assert (place.device, place.backend, place.is_main) == (torch.device("cuda:1"), "nccl", False)
    assert init_distributed(device="cpu").backend == "gloo"


def test_more_processes_than_gpus(monkeypatch):
    fake_gpus(monkeypatch, count=1)
    launch(monkeypatch, TORCHRUN)
    with pytest.raises(ConfigError, match=r"LOCAL_RANK=1, but this machine shows 1 CUDA devices"):
        init_distributed()


def test_slurm_task_that_sees_only_its_own_gpu(monkeypatch):
    fake_gpus(monkeypatch, count=1)
    launch(monkeypatch, SLURM | {"SLURM_STEP_NODELIST": "n01"})
    place = init_distributed()
    assert (place.device, place.local_rank) == (torch.device("cuda:0"), 1)


def start(environ):
    base = {key: value for key, value in os.environ.items() if key not in TORCHRUN}
    base |= {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PROGRAM],
        env=base | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_processes_meet_under_mpi_names():
    environ = MPI | {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
    # Given, so that there is nothing to ask MPI for: no mpirun stands behind these names.
    environ |= {"MASTER_ADDR": "127.0.0.1", "PMIX_NAMESPACE": f"test-{os.getpid()}"}
    running = [
        start(
            environ
            | {"OMPI_COMM_WORLD_RANK": rank, "OMPI_COMM_WORLD_LOCAL_RANK": rank}
            | {"SLURMD_NODENAME": f"n{rank}"}
        )
        for rank in "01"
    ]
    try:
        said = [process.communicate(timeout=240) for process in running]
    finally:
        for process in running:
            process.kill()
    assert [errors for _, errors in said] == ["of all\n", "[rank 1 of 2 on n1] of one\n"]
    printed = [json.loads(text) for text, _ in said]
    assert printed[0] == [0, 2, 0, True, [3.0, 4.0], "0", "2", "0", "127.0.0.1"]
    assert printed[1] == [1, 2, 1, False, [3.0, 4.0], "1", "2", "1", "127.0.0.1"]


@pytest.mark.parametrize("machines", [1, 2])
def test_mpi_tells_ranks_where_to_meet(machines):
    pytest.importorskip("mpi4py", reason="no mpi4py (pip install 'udpdiff[mpi]')")
    if shutil.which("mpirun") is None:
        pytest.skip("no mpirun (apt-get install openmpi-bin)")
    # Ranks that are told to be alone on their machine do not know where the first one is.
    local_size = f"OMPI_COMM_WORLD_LOCAL_SIZE={2 // machines}"
    done = subprocess.run(
        [
            *("mpirun", "--allow-run-as-root", "--oversubscribe", "-np", "2"),
            *("env", local_size, sys.executable, "-W", "error", "-c", PROGRAM),
        ],
        env={key: value for key, value in os.environ.items() if key not in TORCHRUN},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    first, second = sorted(read_lists(done.stdout))
    assert first[:5] == [0, 2, 0, True, [3.0, 4.0]]
    assert second[:5] == [1, 2, 1, False, [3.0, 4.0]]
    assert first[8] == second[8]
    assert (first[8] == "127.0.0.1") == (machines == 1)


def read_lists(text: str) -> list[list]:
    """Lists that processes wrote, whose line ends mpirun may mix."""
    found, decoder = [], json.JSONDecoder()
    while text := text.strip():
        value, end = decoder.raw_decode(text)
        found.append(value)
        text = text[end:]
    return found


def test_plain_python_is_one_process():
    process = start({})
    printed = json.loads(process.communicate(timeout=240)[0])
    assert process.returncode == 0
    assert printed == [0, 1, 0, True, [1.0, 2.0], "0", "1", "0", "127.0.0.1"]
