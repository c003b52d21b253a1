"""Which process this is, whoever started it.

The deepspeed launcher, torchrun, srun, mpirun and plain `python` each tell a process its rank in
their own words. `init_distributed` reads them, fills in the words that torch and deepspeed read
(RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT), waits for the others, whom it names if
they do not come, and joins the process group.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
import time
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist

from sat_udpdiff.config import ConfigError
from sat_udpdiff.free_port import LOOPBACK, free_port

# Derived ports lie below 32768, where Linux begins to hand out ports to outgoing connections.
_FIRST_PORT, _NUM_PORTS = 20_000, 12_000
_MEETING_MINUTES = 10.0
"""For all ranks to start: a large cluster may read Python from one disk."""


_FIRST_WORD_SECONDS, _LAST_WORD_SECONDS = 0.5, 5.0
"""By which the first rank comes before the others, where all have the same to say, and waits."""

_LOST_RANK = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Timed out waiting",
    "Socket Timeout",
)
"""What gloo says when another rank is gone; NCCL's errors have a class of their own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """This process among all of the run."""

    rank: int
    """0 .. world_size - 1 over all machines."""
    world_size: int
    local_rank: int
    """0 .. on this machine."""
    device: torch.device
    backend: Literal["nccl", "gloo"]

    @property
    def is_main(self) -> bool:
        """Whether this is the one process that prints and writes what is written once."""
        return self.rank == 0


@dataclass(frozen=True, kw_only=True, slots=True)
class LaunchFacts:
    """What a launcher says about this process."""

    launcher: Literal["environment", "mpi", "slurm", "single"]
    rank: int
    world_size: int
    local_rank: int
    master_addr: str
    """Where rank 0 listens; empty where MPI has yet to be asked."""
    master_port: int


def init_distributed(
    *,
    device: str | None = None,
    timeout_minutes: float = 30.0,
    meeting_minutes: float = _MEETING_MINUTES,
) -> Place:
    """Join the process group; a second call returns the same place.

    Args:
        device: "cpu" or "cuda"; None takes CUDA where there is one.
        timeout_minutes: A rank that waits longer than this for the others gives up.
        meeting_minutes: The same, until all have started.

    Raises:
        ConfigError: What the launcher says is incomplete or contradicts itself, or ranks are
            missing; names them.
    """
    place, facts = find_place(device=device)
    if dist.is_initialized():
        return place
    if facts.launcher == "mpi" and facts.world_size > 1 and not os.environ.get("MASTER_ADDR"):
        facts = _agree_by_mpi(facts)
    is_gpu = place.device.type != "cpu"
    # deepspeed moves to the GPU that LOCAL_RANK names, hence the index and not our own rank.
    _fill_environment(facts, local_rank=(place.device.index or 0) if is_gpu else facts.local_rank)
    if is_gpu:
        torch.cuda.set_device(place.device)
    timeout = timedelta(minutes=timeout_minutes)
    if place.world_size == 1:
        # One process needs no port, so that many can be started side by side.
        store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
    else:
        store = _meet(facts, minutes=meeting_minutes)
        store.set_timeout(timeout)
    dist.init_process_group(
        place.backend,
        store=store,
        rank=place.rank,
        world_size=place.world_size,
        timeout=timeout,
        device_id=place.device if is_gpu else None,
    )
    # Groups that are made later, ours, deepspeed's and SAT's, wait as long. Those of NCCL would
    # give up after 10 minutes, which is less than `run.hang_minutes`.
    c10d: Any = dist.distributed_c10d
    c10d.default_pg_timeout = c10d.default_pg_nccl_timeout = timeout
    return place


def find_place(*, device: str | None = None) -> tuple[Place, LaunchFacts]:
    """This process among all of the run, without meeting the others.

    For programs whose processes have nothing to tell each other.

    Raises:
        ConfigError: What the launcher says is incomplete or contradicts itself.
    """
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    facts = read_launch_facts(os.environ)
    index = _device_index(facts, kind=kind)
    place = Place(
        rank=facts.rank,
        world_size=facts.world_size,
        local_rank=facts.local_rank,
        device=torch.device("cpu") if kind == "cpu" else torch.device(kind, index),
        backend="gloo" if kind == "cpu" else "nccl",
    )
    return place, facts


def node_name() -> str:
    """This machine as the run's owner knows it: Slurm's name for the node, or its own."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def spell_ranks(ranks: Iterable[int]) -> str:
    """`rank 3`, or `ranks 0-3, 7`."""
    spans: list[list[int]] = []
    for rank in sorted(ranks):
        if spans and rank == spans[-1][-1] + 1:
            spans[-1][1:] = [rank]
        else:
            spans.append([rank])
    spelled = ", ".join("-".join(map(str, span)) for span in spans)
    return f"rank{'s' if len(spans) > 1 or len(spans[0]) > 1 else ''} {spelled}"


def is_lost_rank(error: Exception) -> bool:
    """Whether a collective failed because another rank is gone or no longer answers."""
    if not isinstance(error, RuntimeError):
        return False
    return isinstance(error, dist.DistError) or any(sign in str(error) for sign in _LOST_RANK)


def tell_end(message: str) -> None:
    """Write to stderr why this process ends: what several ranks have to say, one of them says.

    A rank other than the first begins its line with its name. The first one, which the others ask
    through its store, waits for them a moment.
    """
    rank, world_size = 0, 1
    if dist.is_initialized():
        rank, world_size = dist.get_rank(), dist.get_world_size()
    if world_size == 1:
        sys.stderr.write(f"{message}\n")
    elif rank == 0:
        _come_with(message)
        sys.stderr.write(f"{message}\n")
        _wait_for_the_others(message)
    else:
        time.sleep(_FIRST_WORD_SECONDS)
        if _come_with(message):
            sys.stderr.write(f"[rank {rank} of {world_size} on {node_name()}] {message}\n")


def _come_with(message: str) -> bool:
    """Tell the store; whether this rank is the first to come with it, True where it is gone."""
    try:
        return _store().add(_key(message), 1) == 1
    except RuntimeError:
        return True


def _wait_for_the_others(message: str) -> None:
    deadline = time.monotonic() + _LAST_WORD_SECONDS
    with contextlib.suppress(RuntimeError):
        while _store().add(_key(message), 0) < dist.get_world_size():
            if time.monotonic() > deadline:
                return
            time.sleep(0.05)


def _store() -> Any:
    c10d: Any = dist.distributed_c10d
    return c10d._get_default_store()


def _key(message: str) -> str:
    return f"said/{zlib.crc32(message.encode())}"


def close_distributed() -> None:
    """Leave the process group; nothing happens where there is none."""
    if dist.is_initialized():
        dist.destroy_process_group()


def leave(status: int) -> int:
    """Leave a run that did not come to its end, and return `status`.

    One of several ranks ends here and now: in good order it would wait for those that are still in
    a collective, which wait for it.
    """
    if dist.is_initialized() and dist.get_world_size() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    close_distributed()
    return status


def _meet(facts: LaunchFacts, *, minutes: float) -> Any:
    """The store (a TCPStore) that all ranks share, once each of them has signed in there."""
    timeout = timedelta(minutes=minutes)
    where = f"{facts.master_addr}:{facts.master_port}"
    # torchrun keeps the store itself, for all ranks.
    is_kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    own = f"rank {facts.rank} on {node_name()}"
    try:
        store = dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
            facts.master_addr,
            facts.master_port,
            facts.world_size,
            is_master=facts.rank == 0 and not is_kept,
            timeout=timeout,
            wait_for_workers=False,
        )
        store.set(f"here/{facts.rank}", node_name())
    except RuntimeError as error:
        what = "listen" if facts.rank == 0 and not is_kept else "reach rank 0"
        raise ConfigError(f"{own}: cannot {what} at {where}: {_first_line(error)}") from None
    keys = [f"here/{rank}" for rank in range(facts.world_size)]
    try:
        store.wait(keys, timeout)
    except RuntimeError as error:
        try:
            missing = [rank for rank, key in enumerate(keys) if not store.check([key])]
        except RuntimeError:  # rank 0 has given up already, and said why
            missing = [0]
        if not missing:
            raise ConfigError(f"{own}: {where}: {_first_line(error)}") from None
        nodes = os.environ.get("SLURM_STEP_NODELIST")
        raise ConfigError(
            f"{own}: {spell_ranks(missing)} of {facts.world_size} did not come to {where} within "
            f"{minutes:g} minutes{f' (the nodes are {nodes})' if nodes else ''}; look for their "
            "messages, and whether their machines reach that address"
        ) from None
    return store


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _agree_by_mpi(facts: LaunchFacts) -> LaunchFacts:
    """Address and a free port of rank 0, told to all by MPI, which knows every machine."""
    try:
        # Imported for its effect, which is to initialise MPI, and only where mpirun is at work.
        from mpi4py import MPI  # pyright: ignore[reportMissingImports]
    except (ImportError, RuntimeError):
        world = None
    else:
        world = MPI.COMM_WORLD
    # An mpi4py that found another MPI than mpirun's is alone in its world.
    if world is None or world.Get_size() != facts.world_size:
        if facts.master_addr:
            return facts
        raise ConfigError(
            "MASTER_ADDR is not set, and mpirun spans several machines: install mpi4py "
            "(pip install 'udpdiff[mpi]'), or add `-x MASTER_ADDR=<host of rank 0>` to mpirun"
        )
    own = (facts.master_addr or _own_address(), free_port())
    address, port = world.bcast(own, root=0)
    # MPI has done its work; still up, it would wait at the exit for ranks that are gone.
    MPI.Finalize()
    given = os.environ.get("MASTER_PORT")
    return replace(facts, master_addr=address, master_port=facts.master_port if given else port)


def _own_address() -> str:
    """Address under which other machines reach this one."""
    host = socket.gethostname()
    try:
        address = socket.gethostbyname(host)
    except OSError:
        address = LOOPBACK
    if not address.startswith("127."):
        return address
    # Debian knows a machine by its own name as 127.0.1.1. The way to anywhere else begins at an
    # address that others see; nothing is sent to this one, which nobody has (RFC 5737).
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return host
        return probe.getsockname()[0]


def read_launch_facts(environ: Mapping[str, str]) -> LaunchFacts:
    """What the launcher of this process says in its environment.

    RANK and WORLD_SIZE win, as torchrun and the deepspeed launcher may run inside a Slurm job.
    mpirun goes before Slurm for the same reason.

    Raises:
        ConfigError: A fact is missing, is no number, or contradicts another.
    """
    if "RANK" in environ or "WORLD_SIZE" in environ:
        facts = _from_environment(environ)
    elif "OMPI_COMM_WORLD_RANK" in environ:
        facts = _from_open_mpi(environ)
    elif _is_slurm_step(environ):
        facts = _from_slurm(environ)
    else:
        facts = LaunchFacts(
            launcher="single",
            rank=0,
            world_size=1,
            local_rank=0,
            master_addr=LOOPBACK,
            master_port=free_port(),
        )
    _check_facts(facts)
    return facts


def _from_environment(environ: Mapping[str, str]) -> LaunchFacts:
    rank, world_size = _number(environ, "RANK"), _number(environ, "WORLD_SIZE")
    if world_size == 1:
        port = environ.get("MASTER_PORT") or str(free_port())
        environ = {"LOCAL_RANK": "0", "MASTER_ADDR": LOOPBACK, **environ, "MASTER_PORT": port}
    if not environ.get("MASTER_ADDR"):
        raise ConfigError(
            f"MASTER_ADDR is not set, but WORLD_SIZE={world_size}: set it to the host of rank 0, "
            "or start with torchrun or deepspeed"
        )
    return LaunchFacts(
        launcher="environment",
        rank=rank,
        world_size=world_size,
        local_rank=_number(environ, "LOCAL_RANK"),
        master_addr=environ["MASTER_ADDR"],
        master_port=_number(environ, "MASTER_PORT"),
    )


def _from_open_mpi(environ: Mapping[str, str]) -> LaunchFacts:
    world_size = _number(environ, "OMPI_COMM_WORLD_SIZE")
    is_one_machine = environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") == str(world_size)
    address = environ.get("MASTER_ADDR") or (LOOPBACK if is_one_machine else "")
    # The same for all ranks of one mpirun, and different for another one beside it.
    job = environ.get("PMIX_NAMESPACE") or environ.get("OMPI_MCA_ess_base_jobid") or ""
    return LaunchFacts(
        launcher="mpi",
        rank=_number(environ, "OMPI_COMM_WORLD_RANK"),
        world_size=world_size,
        local_rank=_number(environ, "OMPI_COMM_WORLD_LOCAL_RANK"),
        master_addr=address,
        master_port=_port(environ, job=job),
    )


def _is_slurm_step(environ: Mapping[str, str]) -> bool:
    """Whether srun started this process; a batch script has a SLURM_PROCID too, but no step."""
    is_batch_script = "SLURM_JOB_ID" in environ and "SLURM_STEP_ID" not in environ
    return "SLURM_PROCID" in environ and not is_batch_script


def _from_slurm(environ: Mapping[str, str]) -> LaunchFacts:
    key = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environ else "SLURM_NTASKS"
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST") or ""
    job = f"{environ.get('SLURM_JOB_ID', '')}.{environ.get('SLURM_STEP_ID', '')}"
    local_rank = _number(environ, "SLURM_LOCALID")
    first = environ.get("MASTER_ADDR") or _first_node_address(nodes, local_rank=local_rank)
    return LaunchFacts(
        launcher="slurm",
        rank=_number(environ, "SLURM_PROCID"),
        world_size=_number(environ, key),
        local_rank=local_rank,
        master_addr=first,
        master_port=_port(environ, job=job),
    )


def first_node(nodes: str) -> str:
    """The first host of a Slurm node list: `gpu[03-05,9],login1` -> `gpu03`."""
    entry = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    return re.sub(r"\[([0-9]+)[^\]]*\]", r"\1", entry[0]) if entry else ""


def _first_node_address(nodes: str, *, local_rank: int) -> str:
    """Where rank 0 listens: Slurm puts it on the first node of the step."""
    host = first_node(nodes)
    if not host or nodes == host:
        return LOOPBACK
    try:
        socket.gethostbyname(host)
    except OSError:
        # Virtual nodes share one machine, and their names are known to Slurm alone.
        if local_rank == 0:
            message = f"{node_name()} does not know the name {host}; using {LOOPBACK}\n"
            sys.stderr.write(f"MASTER_ADDR: {message}")
        return LOOPBACK
    return host


def _check_facts(facts: LaunchFacts) -> None:
    if facts.world_size < 1 or not 0 <= facts.rank < facts.world_size:
        raise ConfigError(
            f"{facts.launcher}: expected a rank from 0 to below the world size, "
            f"got rank {facts.rank} of {facts.world_size}"
        )
    if not 0 <= facts.local_rank <= facts.rank:
        raise ConfigError(
            f"{facts.launcher}: expected a local rank from 0 to rank {facts.rank}, "
            f"got {facts.local_rank}"
        )


def _device_index(facts: LaunchFacts, *, kind: str) -> int:
    """The GPU of this process among those it can see."""
    if kind == "cpu":
        return facts.local_rank
    num_devices = torch.cuda.device_count()
    # With --gpus-per-task every Slurm task sees its own GPU alone, as number 0.
    if facts.launcher == "slurm" and num_devices == 1:
        return 0
    if facts.local_rank >= num_devices:
        raise ConfigError(
            f"LOCAL_RANK={facts.local_rank}, but this machine shows {num_devices} CUDA devices: "
            "start at most one process per device, or check CUDA_VISIBLE_DEVICES"
        )
    return facts.local_rank


def _fill_environment(facts: LaunchFacts, *, local_rank: int) -> None:
    os.environ |= {
        "RANK": str(facts.rank),
        "WORLD_SIZE": str(facts.world_size),
        "LOCAL_RANK": str(local_rank),
        "MASTER_ADDR": facts.master_addr,
        "MASTER_PORT": str(facts.master_port),
    }


def _number(environ: Mapping[str, str], key: str) -> int:
    text = environ.get(key)
    if text is None or not re.fullmatch(r"[0-9]+", text):
        got = "nothing" if text is None else repr(text)
        raise ConfigError(f"{key}: expected a whole number in the environment, got {got}")
    return int(text)


def _port(environ: Mapping[str, str], *, job: str) -> int:
    if environ.get("MASTER_PORT"):
        return _number(environ, "MASTER_PORT")
    return _FIRST_PORT + zlib.crc32(job.encode()) % _NUM_PORTS
