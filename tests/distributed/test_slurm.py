"""Real jobs on a throw-away cluster: time limit, preemption, a lost node, an array, PMIx."""

import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distributed.slurm_cluster import SlurmCluster, main, slurm_cluster, wait_until

ROOT = Path(__file__).parents[2]
SEEN = ("step", "loss", "grad_norm", "lr", "samples_seen", "loss_t_quartile_1")
STEPS = 12
SETTINGS = (
    *(f"train.steps={STEPS}", "train.micro_batch_size=1", "model.num_layers=1"),
    *("data.num_workers=1", "ema.enabled=false", "checkpoint.every_steps=5"),
)
# Plays a rank without importing anything: it saves and ends when it is asked to.
RANK = """#!/bin/bash
trap 'echo "turn_${SLURM_RESTART_COUNT:-0}" > "$RUN/checkpoints/latest"; exit 75' TERM
mkdir -p "$RUN/checkpoints"
echo "turn ${SLURM_RESTART_COUNT:-0}" >> "$RUN/turns"
while :; do sleep 0.05; done
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    with slurm_cluster(nodes=2) as found:
        yield found


def read_metrics(run: Path) -> list[dict]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{key: line[key] for key in SEEN} for line in map(json.loads, lines)]


class Job:
    """A training by launch/multitask.slurm as it is: one rank on each of two nodes.

    Only what the tiny network needs of Slurm differs: one rank and GPU per node instead of eight.
    """

    def __init__(self, cluster: SlurmCluster, run: Path, *, world, mpi: str = "none") -> None:
        self.cluster, self.run, self.log = cluster, run, run.parent / f"{run.name}.log"
        options = ["--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=1"]
        script = str(ROOT / "launch/multitask.slurm")
        submit = ["sbatch", "--parsable", *options, f"--output={self.log}"]
        self.number = cluster.call(
            *submit,
            script,
            *SETTINGS,
            BASE=str(world.base),
            SHARDS=str(world.folder / "shards"),
            RUN=str(run),
            PYTHON=sys.executable,
            PYTHONPATH=str(ROOT),
            SLURM_MPI_TYPE=mpi,
        ).strip()

    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def metrics(self) -> list[dict]:
        return read_metrics(self.run)

    def finish(self) -> None:
        self.cluster.wait_for(self.number, "COMPLETED", log=self.log)

    def ranks(self) -> list[int]:
        """Processes of the two ranks, and of nothing else."""
        found = []
        for pid in self.cluster.tasks():
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if b"sat_udpdiff/train.py" in words and words[0].endswith(b"python"):
                found.append(pid)
        return found

    def hold_after_step(self, step: int) -> list[int]:
        """Stop the ranks (as a debugger does) once `step` is logged, long before the last."""
        path = self.run / "metrics.jsonl"

        def has_come() -> bool:
            self.cluster.is_in(self.number, "RUNNING", log=self.log)
            return path.exists() and f'"step": {step},' in path.read_text()

        wait_until(has_come, what=f"step {step}", seconds=500)
        held = self.ranks()
        for pid in held:
            os.kill(pid, signal.SIGSTOP)
        assert len(held) == 2
        assert len(path.read_text().splitlines()) < STEPS
        return held

    def again(self) -> None:
        """Wait until Slurm has the job back in its queue, and begin it at once."""
        self.cluster.wait_for(self.number, "PENDING", log=self.log)
        self.cluster.release(self.number)


@pytest.fixture(scope="module")
def unbroken(cluster, small_world, tmp_path_factory) -> Job:
    """Begun with PMIx, where there is one; what is compared with it goes without."""
    mpi = "pmix" if has_pmix(cluster) else "none"
    job = Job(cluster, tmp_path_factory.mktemp("slurm") / "unbroken", world=small_world, mpi=mpi)
    job.finish()
    return job


def has_pmix(cluster: SlurmCluster) -> bool:
    return "pmix" in cluster.call("srun", "--mpi=list", check=False)


def test_slurm_takes_every_script(cluster):
    for name in ("multitask", "segmentation", "depth", "baseline", "latents", "evaluate"):
        script = f"launch/{name}.slurm"
        # Eight ranks of eight cores, and all eight GPUs of a node.
        assert "using 64 processors on nodes node1 " in cluster.would_run(script), script
        on_two = cluster.would_run("--nodes=2", script, "train.global_batch=8")
        assert "using 128 processors on nodes node[1-2] " in on_two, script
        assert "not available" in cluster.would_run("--gpus-per-node=9", script), script
    for name in ("panda_dense", "sample"):
        script = f"launch/{name}.slurm"
        assert "using 8 processors on nodes node1 " in cluster.would_run(script), script


@pytest.mark.slow
def test_a_job_on_two_nodes_is_the_run_of_one_process(unbroken, small_world, launch, tmp_path):
    text = unbroken.text()
    assert re.search(r"job \d+ on node\[1-2\], restart 0", text)
    assert "preflight: 2 ranks on 2 nodes (CPU); global batch 2 = 1 x 1 x 2" in text
    words = (*SETTINGS, "train.micro_batch_size=2")
    done = launch([sys.executable, *small_world.train_command(tmp_path, *words)])
    assert done.returncode == 0, done.stderr
    alone = read_metrics(tmp_path)
    assert [line["step"] for line in alone] == [*range(1, STEPS + 1)]
    for line, expected in zip(unbroken.metrics(), alone, strict=True):
        assert line["samples_seen"] == expected["samples_seen"]
        # The order of fp32 sums differs; 6e-8 relative was measured.
        for name in ("loss", "grad_norm"):
            assert line[name] == pytest.approx(expected[name], rel=3e-5)


def test_srun_with_pmix_tells_ranks_of_each_other(cluster):
    if not has_pmix(cluster):
        pytest.skip("this Slurm has no PMIx (apt-get install libpmix-dev)")
    pytest.importorskip("mpi4py", reason="no mpi4py (pip install 'udpdiff[mpi]')")
    if shutil.which("mpirun") is None:
        pytest.skip("no MPI (apt-get install openmpi-bin)")
    program = "from mpi4py.MPI import COMM_WORLD as w; print(w.rank, w.size, w.allreduce(w.rank))"
    out = cluster.call(
        *("srun", "--nodes=2", "--ntasks-per-node=1", sys.executable, "-c", program),
        SLURM_MPI_TYPE="pmix",
        # Both nodes are this machine, which the other transports find out.
        OMPI_MCA_btl="self,tcp",
    )
    assert sorted(out.splitlines()) == ["0 2 1", "1 2 1"]


@pytest.mark.slow
def test_time_limit_and_lost_node_leave_the_run_as_it_was(unbroken, cluster, small_world, tmp_path):
    job = Job(cluster, tmp_path / "broken", world=small_world)
    held = job.hold_after_step(2)
    # The script asks for SIGUSR1 ten minutes before the end. Slurm looks every half minute.
    *_, hours, minutes, _ = map(int, re.split("[-:]", cluster.job(job.number)["RunTime"]))
    limit = 60 * hours + minutes + 10
    cluster.call("scontrol", "update", f"JobId={job.number}", f"TimeLimit={limit}")
    wait_until(lambda: "SIGUSR1: the ranks are asked" in job.text(), what=job.text())
    for pid in held:
        os.kill(pid, signal.SIGCONT)
    job.again()
    stopped = re.search(r"stopped by a signal after step (\d+) and saved", job.text())
    assert stopped is not None, job.text()
    assert 2 <= int(stopped[1]) < 5, "between two checkpoints that are due anyway"
    saved = f"saved as step_{int(stopped[1]):08d}"
    assert f"stopped by SIGUSR1; {saved}; asking Slurm to queue the job again" in job.text()
    # A job that is queued again keeps its time limit.
    cluster.call("scontrol", "update", f"JobId={job.number}", "TimeLimit=1440")

    held = job.hold_after_step(7)
    assert "restart 1" in job.text()
    assert f"resuming after step {stopped[1]}" in job.text()
    cluster.fail_node("node2")
    for pid in held:
        if Path(f"/proc/{pid}").exists():
            os.kill(pid, signal.SIGCONT)
    cluster.wait_for(job.number, "PENDING", log=job.log)
    cluster.start_node("node2")
    cluster.call("scontrol", "update", "NodeName=node2", "State=RESUME")
    job.again()
    job.finish()
    assert "restart 2" in job.text()
    # Of the steps after the last checkpoint nothing is left but their cost.
    assert "resuming after step 5" in job.text()
    assert job.metrics() == unbroken.metrics()


def test_a_job_that_makes_room_goes_on_and_one_that_its_user_ends_does_not(cluster, tmp_path):
    rank, run, log = tmp_path / "rank", tmp_path / "run", tmp_path / "log"
    rank.write_text(RANK)
    rank.chmod(0o755)
    options = ("--ntasks-per-node=1", "--gpus-per-node=8", "--cpus-per-task=1", f"--output={log}")
    given = {"SHARDS": "/s", "RUN": str(run), "PYTHON": str(rank)}

    def begin() -> str:
        words = ("sbatch", "--parsable", *options, str(ROOT / "launch/multitask.slurm"))
        return cluster.call(*words, **given).strip()

    def wait_for_turns(count: int) -> None:
        turns = run / "turns"
        wait_until(
            lambda: turns.exists() and len(turns.read_text().splitlines()) == count,
            what=log.read_text() if log.exists() else f"turn {count}",
        )

    number = begin()
    wait_for_turns(1)
    urgent = ("--nodes=2", "--gpus-per-node=8", "--output=/dev/null", "--wrap=sleep 1")
    other = cluster.call("sbatch", "--parsable", "--partition=urgent", *urgent).strip()
    cluster.wait_for(number, "PENDING", log=log)
    assert "Slurm takes the nodes for another job; saved as turn_0; asking" in log.read_text()
    cluster.wait_for(other, "COMPLETED", log=log)
    cluster.release(number)
    wait_for_turns(2)
    # What made room once is not taken to do so again.
    cluster.call("scancel", "--signal=TERM", number)
    cluster.wait_for(number, "FAILED", log=log)
    assert "a signal that was sent by hand ended the step (status 75)" in log.read_text()
    assert "saved as turn_1. Not queued again" in log.read_text()

    number = begin()
    wait_for_turns(3)
    cluster.call("scancel", number)
    cluster.wait_for(number, "CANCELLED", log=log)
    wait_until(lambda: not cluster.tasks(), what="the last words of the job")
    assert cluster.job(number)["JobState"] == "CANCELLED"
    assert log.read_text().count("asking Slurm to queue") == 1


@pytest.mark.slow
def test_an_array_makes_a_data_set(cluster, tmp_path):
    from data_loaders.shards import write_shards
    from data_loaders.synthetic import WorldConfig, make_clip

    world = WorldConfig(frames=9, height=32, width=48, world="simple")
    write_shards((make_clip(i, seed=0, config=world) for i in range(4)), tmp_path / "source")
    log = tmp_path / "%a.log"
    number = cluster.call(
        *("sbatch", "--parsable", "--array=0-1", "--cpus-per-task=1", f"--output={log}"),
        str(ROOT / "launch/panda_dense.slurm"),
        OUT=str(tmp_path / "out"),
        VIDEOS=str(tmp_path / "source"),
        CONFIG="configs/panda_dense/synthetic.yaml",
        PYTHON=sys.executable,
        PYTHONPATH=str(ROOT),
    ).strip()
    for task in ("0", "1"):
        cluster.wait_for(f"{number}_{task}", "COMPLETED", log=tmp_path / f"{task}.log")
    manifest = json.loads((tmp_path / "out/shards/manifest.json").read_text())
    assert sum(shard["num_samples"] for shard in manifest["shards"]) == 4


@pytest.mark.usefixtures("cluster")  # which knows what is missing
def test_a_user_may_have_such_a_cluster_for_a_command(capfd):
    assert main(["sinfo", "--noheader", "--format=%P %D %T"]) == 0
    assert capfd.readouterr().out == "main* 2 idle\nurgent 2 idle\n"
    assert main(["sinfo", "--no-such-option"]) != 0
