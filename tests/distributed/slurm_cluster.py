"""A throw-away Slurm cluster: nodes that exist in name alone, on this machine, with its daemons.

Daemons, key, spool and ports are its own; nothing of an installed cluster is touched. It needs
Slurm's and munge's programs and no root: as an ordinary user it runs the jobs of that user.

    python -m tests.distributed.slurm_cluster          # a shell beside two nodes that end with it
    python -m tests.distributed.slurm_cluster sinfo    # or a command
"""

import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

PROGRAMS = (
    "munged", "slurmctld", "slurmd", "slurmstepd", "sbatch", "srun", "scancel", "scontrol",
)  # fmt: skip
GPUS = 8
ROOT = Path(__file__).parents[2]
# Where Debian keeps daemons, which an ordinary user's PATH leaves out.
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin", "/usr/lib/slurm"])
CONFIG = """
ClusterName=throwaway
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={port}
FirstJobId={port}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmdLogFile={folder}/steps.%n.log
TmpFS={folder}/tmp.%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=1
GresTypes=gpu
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
KillWait=10
MinJobAge=3600
PropagateResourceLimits=NONE
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
"""


def missing_programs() -> list[str]:
    """Programs that a cluster needs and this machine lacks."""
    return [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def wait_until(is_true: Callable[[], object], *, what: str, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s in vain: {what}"
        time.sleep(0.1)


class SlurmCluster:
    """Daemons of a cluster of `node1`, `node2`, ..., with eight GPUs each that are none.

    Jobs of the partition `urgent` take the nodes of those of `main`, which get two minutes' grace.
    """

    def __init__(self, folder: Path, *, nodes: int, cpus: int) -> None:
        self.folder = folder
        self.nodes = [f"node{number}" for number in range(1, nodes + 1)]
        self._cpus = cpus
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        # Without the ranks, too, that tests of one process leave behind: jobs inherit all.
        of_others = re.compile(r"(SLURM|SBATCH)_.*|RANK|WORLD_SIZE|LOCAL_RANK|MASTER_(ADDR|PORT)")
        own = {key: value for key, value in os.environ.items() if not of_others.fullmatch(key)}
        self.environment = own | {"PATH": PATH, "SLURM_CONF": str(folder / "slurm.conf")}

    def start(self) -> None:
        """Bring all daemons up, and wait for the nodes."""
        self._write_config()
        files = [
            f"--{name}-file={self.folder / f'munge.{name}'}" for name in ("pid", "log", "seed")
        ]
        self._run("munged", "--foreground", "--force", *files,
                  f"--socket={self.folder / 'munge.socket'}",
                  f"--key-file={self.folder / 'munge.key'}")  # fmt: skip
        wait_until((self.folder / "munge.socket").exists, what="munged", seconds=60)
        self._run("slurmctld", "-D", "-c")
        for node in self.nodes:
            self.start_node(node)
        wait_until(
            lambda: self.call("sinfo", "-h", "-N", "-p", "main", "-o", "%T", check=False).split()
            == ["idle"] * len(self.nodes),
            what="nodes",
            seconds=60,
        )

    def logs(self) -> str:
        """The last words of every daemon."""
        files = sorted(self.folder.glob("*.log"))
        return "\n".join(f"== {file.name}\n{file.read_text()[-2000:]}" for file in files)

    def stop(self) -> None:
        """End all jobs, then all daemons."""
        if "slurmctld" in self._running:
            self.call("scancel", "--user", pwd.getpwuid(os.getuid()).pw_name, check=False)
            wait_until(lambda: not self.tasks(), what="tasks to end", seconds=60)
        for process in reversed(self._running.values()):
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()

    def start_node(self, node: str) -> None:
        self._run("slurmd", "-D", "-N", node, name=node)

    def fail_node(self, node: str) -> None:
        """Take a node down as a power cut does: its daemon and all that it ran are gone."""
        self._running[node].kill()
        self._running[node].wait()
        for pid in self.tasks(node=node):
            with suppress(ProcessLookupError):  # it went with the one before
                os.kill(pid, signal.SIGKILL)
        self.call("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")

    def call(self, *words: str, check: bool = True, **environment: str) -> str:
        """Output of one of Slurm's commands, given in the repository as a user gives it."""
        done = subprocess.run(
            words,
            cwd=ROOT,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert not check or done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout

    def would_run(self, *words: str) -> str:
        """Where `sbatch` would run a script, in Slurm's words."""
        done = subprocess.run(
            ["sbatch", "--test-only", *words],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.stderr

    def job(self, number: str) -> dict[str, str]:
        """What Slurm knows of a job, by the names of `scontrol show job`."""
        shown = self.call("scontrol", "show", "job", "--oneliner", number)
        return dict(re.findall(r"(\w+)=(\S*)", shown))

    def is_in(self, number: str, *states: str, log: Path) -> bool:
        """Whether a job is in one of `states`; fails where it can no longer come there."""
        state = self.job(number)["JobState"]
        assert state in (*states, *_PASSING), f"{state}\n{_read(log)}\n{self.logs()}"
        return state in states

    def wait_for(self, number: str, *states: str, log: Path, seconds: float = 400) -> None:
        def is_there() -> bool:
            return self.is_in(number, *states, log=log)

        wait_until(is_there, what=f"job {number}, {states}; {_read(log)}", seconds=seconds)

    def release(self, number: str) -> None:
        """Begin a job soon that was queued again; Slurm makes it wait for two minutes.

        Not at once: nodes have revoked the job's credential, and refuse one of the same second.
        """
        self.call("scontrol", "update", f"JobId={number}", "StartTime=now+2")

    def tasks(self, *, node: str | None = None) -> list[int]:
        """Processes of steps and batch scripts, of a node or of all."""
        own = f"SLURM_CONF={self.environment['SLURM_CONF']}".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                words = path.read_bytes().split(b"\0")
            except OSError:  # gone, or another user's
                continue
            names = [word for word in words if word.startswith(b"SLURMD_NODENAME=")]
            is_of_node = node is None or f"SLURMD_NODENAME={node}".encode() in names
            if own in words and names and is_of_node:
                found.append(int(path.parent.name))
        return found

    def _run(self, program: str, *words: str, name: str = "") -> None:
        path = shutil.which(program, path=PATH)
        assert path is not None
        with (self.folder / f"{name or program}.log").open("ab") as log:
            self._running[name or program] = subprocess.Popen(
                [path, *words], env=self.environment, stdout=log, stderr=log
            )

    def _write_config(self) -> None:
        # PMIx keeps its files in TmpFS, under names that the nodes of a step share.
        of_nodes = [f"{name}.{node}" for node in self.nodes for name in ("spool", "tmp")]
        for name in ("state", *of_nodes):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        host = socket.gethostname().split(".")[0]
        # Ranks meet at a port that follows from the job's number: no two clusters begin with one.
        port, *ports = free_ports(1 + len(self.nodes))
        user = pwd.getpwuid(os.getuid()).pw_name
        text = CONFIG.format(host=host, user=user, folder=self.folder, port=port)
        for node, of_node in zip(self.nodes, ports, strict=True):
            text += (
                f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={of_node} "
                f"CPUs={self._cpus} RealMemory=1000000 Gres=gpu:{GPUS}\n"
            )
        everywhere = f"Nodes={','.join(self.nodes)} MaxTime=INFINITE"
        text += f"PartitionName=main {everywhere} Default=YES PriorityTier=1 GraceTime=120\n"
        text += f"PartitionName=urgent {everywhere} PriorityTier=2 PreemptMode=OFF\n"
        (self.folder / "slurm.conf").write_text(text)
        # Slurm counts devices that are there; nobody opens these.
        for number in range(GPUS):
            (self.folder / f"gpu{number}").symlink_to("/dev/null")
        devices = f"{self.folder}/gpu[0-{GPUS - 1}]"
        (self.folder / "gres.conf").write_text(f"Name=gpu File={devices}\n")


_PASSING = (
    "PENDING", "CONFIGURING", "RUNNING", "SIGNALING", "COMPLETING", "REQUEUED", "STOPPED",
    "SUSPENDED",
)  # fmt: skip


def _read(log: Path) -> str:
    return log.read_text()[-4000:] if log.exists() else f"no {log}"


@contextmanager
def slurm_cluster(*, nodes: int = 2, cpus: int = 64) -> Iterator[SlurmCluster]:
    """A running cluster; skips the test, naming what is missing, where there can be none."""
    if missing := missing_programs():
        pytest.skip(f"no Slurm: {', '.join(missing)} missing (apt-get install slurm-wlm munge)")
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        pytest.skip(f"no Slurm: it knows users by name, and user {os.getuid()} has none")
    # Sockets have short names, pytest's folders long ones.
    folder = Path(tempfile.mkdtemp(prefix="slurm_"))
    folder.chmod(0o755)
    cluster = SlurmCluster(folder, nodes=nodes, cpus=cpus)
    try:
        try:
            cluster.start()
        except AssertionError as error:
            raise AssertionError(f"{error}\n{cluster.logs()}") from error
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


def main(words: Sequence[str]) -> int:
    """A shell, or the command in `words`, for a user who tries the scripts by hand."""
    try:
        with slurm_cluster() as cluster:
            command = list(words) or [os.environ.get("SHELL", "/bin/sh")]
            return subprocess.run(command, env=cluster.environment, check=False).returncode
    except pytest.skip.Exception as reason:
        raise SystemExit(str(reason)) from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
