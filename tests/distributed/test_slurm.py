"""Real jobs on a throw-away cluster: time limit, a node that fails, an array, srun with PMIx."""

import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distributed.slurm_cluster import SlurmCluster, slurm_cluster, wait_until

ROOT = Path(__file__).parents[2]
SEEN = ("step", "loss", "grad_norm", "lr", "samples_seen", "loss_t_quartile_1")
STEPS = 12
SETTINGS = (
    *(f"train.steps={STEPS}", "train.micro_batch_size=1", "model.num_layers=1"),
    *("data.num_workers=0", "ema.enabled=false", "checkpoint.every_steps=5"),
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    with slurm_cluster(nodes=2) as found:
        yield found


class Job:
    """A training by launch/multitask.slurm as it is: one rank on each of two nodes.

    Only what the tiny network needs of Slurm differs: one rank and GPU per node instead of eight.
    """

    def __init__(self, cluster: SlurmCluster, run: Path, *, world, words=SETTINGS) -> None:
        self.cluster, self.run, self.log = cluster, run, run.parent / f"{run.name}.log"
        options = ["--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=1"]
        script = str(ROOT / "launch/multitask.slurm")
        submit = ["sbatch", "--parsable", *options, f"--output={self.log}"]
        self.number = cluster.call(
            *submit,
            script,
            *words,
            BASE=str(world.base),
            SHARDS=str(world.folder / "shards"),
            RUN=str(run),
            PYTHON=sys.executable,
            PYTHONPATH=str(ROOT),
        ).strip()

    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def metrics(self) -> list[dict]:
        lines = (self.run / "metrics.jsonl").read_text().splitlines()
        return [{key: line[key] for key in SEEN} for line in map(json.loads, lines)]

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
            assert "Traceback" not in self.text(), self.text()
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
    job = Job(cluster, tmp_path_factory.mktemp("slurm") / "unbroken", world=small_world)
    job.finish()
    return job


@pytest.mark.slow
def test_a_job_trains_on_two_nodes(unbroken):
    assert [line["step"] for line in unbroken.metrics()] == [*range(1, STEPS + 1)]
    text = unbroken.text()
    assert re.search(r"job \d+ on node\[1-2\], restart 0", text)
    assert "preflight: 2 ranks on 2 nodes (CPU); global batch 2 = 1 x 1 x 2" in text


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
    assert "asking Slurm to queue the job again" in job.text()
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


@pytest.mark.slow
def test_srun_with_pmix_gives_the_same_run(unbroken, cluster, small_world, tmp_path):
    if "pmix" not in cluster.call("srun", "--mpi=list", check=False):
        pytest.skip("this Slurm has no PMIx (apt-get install libpmix-dev)")
    job = Job(cluster, tmp_path / "pmix", world=small_world, words=(*SETTINGS, "train.steps=3"))
    job.finish()
    assert job.metrics() == unbroken.metrics()[:3]


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
