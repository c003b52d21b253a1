"""The batch scripts by themselves: a shell, and programs that play Slurm's."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from sat_udpdiff.training.stopping import STOPPED

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "launch").glob("*.slurm"))
TRAININGS = ("multitask", "segmentation", "depth", "baseline")
# srun saves FAKE_SAVES, if that is given, and ends with FAKE_STATUS; without one it runs until it
# gets SIGUSR1, and ends with FAKE_END. FAKE_JOB is what scontrol knows of the job. SIGUSR1 comes to
# the script once more while it asks to be queued again, as a preemption may bring it.
PLAYERS = {
    "srun": 'printf "%s\\n" "$@" > "$FAKE/srun"; '
    '[ -z "$FAKE_SAVES" ] || echo "$FAKE_SAVES" > "$RUN/checkpoints/latest"; '
    '[ -z "$FAKE_STATUS" ] || exit "$FAKE_STATUS"; '
    'trap \'exit "$FAKE_END"\' USR1; echo $$ > "$FAKE/pid"; while :; do sleep 0.02; done',
    "scancel": 'echo "$@" > "$FAKE/scancel"; kill -USR1 "$(cat "$FAKE/pid")"',
    "scontrol": 'if [ "$1" = show ]; then echo "$FAKE_JOB"; else echo "$@" > "$FAKE/scontrol"; '
    'kill -USR1 $PPID; exit "$FAKE_SCONTROL"; fi',
}
PREEMPTED = "JobState=RUNNING PreemptEligibleTime=2026-01-01 PreemptTime=2026-01-02T03:04:05"
NOT_PREEMPTED = "JobState=RUNNING PreemptEligibleTime=2026-01-01 PreemptTime=None"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that stopped after five steps."""
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/checkpoints/latest").write_text("step_00000005\n")
    return tmp_path / "run"


@pytest.fixture
def play(tmp_path: Path, run: Path):
    """Start a script as Slurm would; send it SIGUSR1 when the step runs, if it has no status."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, text in PLAYERS.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}\n")
        (programs / name).chmod(0o755)

    def call(script: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        given = {
            "FAKE": str(tmp_path), "FAKE_STATUS": "", "FAKE_END": "0", "FAKE_SCONTROL": "0",
            "FAKE_SAVES": "", "FAKE_JOB": NOT_PREEMPTED,
            "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_CPUS_PER_TASK": "3",
            "SLURM_SUBMIT_DIR": str(ROOT), "SHARDS": "/s", "RUN": str(run),
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        }  # fmt: skip
        with subprocess.Popen(
            ["bash", f"launch/{script}.slurm", *words],
            cwd=tmp_path,
            env={key: value for key, value in (given | environment).items() if value != "unset"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as shell:
            if not (given | environment)["FAKE_STATUS"]:
                deadline = time.monotonic() + 60
                while not (tmp_path / "pid").exists():
                    assert shell.poll() is None and time.monotonic() < deadline
                    time.sleep(0.01)
                shell.send_signal(signal.SIGUSR1)
            out, _ = shell.communicate(timeout=60)
        return subprocess.CompletedProcess(shell.args, shell.returncode, out)

    (tmp_path / "launch").symlink_to(ROOT / "launch")
    return call


def test_the_time_limit_becomes_a_save_and_another_turn(play, tmp_path):
    given = {"FAKE_END": str(STOPPED), "FAKE_SAVES": "step_00000007"}
    done = play("multitask", SLURM_RESTART_COUNT="2", **given)
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "scancel").read_text() == "--signal=USR1 7\n"
    assert (tmp_path / "scontrol").read_text() == "requeue Incomplete 7\n"
    assert "job 7 on n[1-2], restart 2" in done.stdout
    assert "SIGUSR1: the ranks are asked to save and to end" in done.stdout
    assert "stopped by SIGUSR1; saved as step_00000007; asking Slurm to queue" in done.stdout


def test_the_first_checkpoint_of_a_run_is_reason_enough(play, tmp_path, run):
    (run / "checkpoints/latest").unlink()
    assert play("depth", FAKE_END=str(STOPPED), FAKE_SAVES="step_00000001").returncode == 0
    assert (tmp_path / "scontrol").exists()


@pytest.mark.parametrize("is_new", [False, True])
@pytest.mark.parametrize(
    ("status", "when"),
    [(STOPPED, "before the first step"), (138, "before Python had imported what answers it")],
)
def test_a_turn_that_saved_nothing_is_the_last(status, when, is_new, play, tmp_path, run):
    if is_new:
        (run / "checkpoints/latest").unlink()
    done = play("multitask", FAKE_END=str(status))
    assert done.returncode == status
    assert f"SIGUSR1 came {when} (status {status}): {run}/checkpoints/latest is as" in done.stdout
    assert "Not queued again: --time has to be longer" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("launch/multitask.slurm")
    assert not (tmp_path / "scontrol").exists()


def test_a_run_that_ends_in_that_very_moment_is_over(play, tmp_path):
    done = play("multitask", FAKE_END="0", FAKE_SAVES="step_00000007")
    assert done.returncode == 0
    assert (tmp_path / "scancel").exists()
    assert not (tmp_path / "scontrol").exists()


@pytest.mark.parametrize(
    ("environment", "begin"),
    [
        ({}, "sbatch"),
        (
            {
                **{"BASE": "configs/tiny.yaml configs/depth.yaml", "PYTHON": "/p/python"},
                **{"SLURM_JOB_NUM_NODES": "4", "SLURM_GPUS_PER_NODE": "8"},
                **{"SLURM_NTASKS_PER_NODE": "2", "SLURM_CPUS_PER_TASK": "8"},
            },
            "BASE='configs/tiny.yaml configs/depth.yaml' PYTHON='/p/python' "
            "sbatch --nodes=4 --ntasks-per-node=2",
        ),
    ],
)
def test_where_no_requeue_is_allowed_the_command_is_printed(environment, begin, play, run):
    given = {"FAKE_END": str(STOPPED), "FAKE_SCONTROL": "1", "FAKE_SAVES": "step_00000007"}
    words = ("train.steps=9", "seed=1", "run.name=a b")
    done = play("depth", *words, **({"SLURM_CPUS_PER_TASK": "8"} | given | environment))
    assert done.returncode == STOPPED
    assert "Slurm does not queue it again (sbatch --requeue" in done.stdout
    assert done.stdout.splitlines()[-1] == (
        f"    SHARDS=/s RUN={run} {begin} launch/depth.slurm train.steps=9 seed=1 run.name=a\\ b"
    )


@pytest.mark.parametrize("status", [1, 137, 138, 143])
def test_a_failure_is_not_queued_again(status, play, run, tmp_path):
    (run / "checkpoints/latest").unlink()
    done = play("multitask", FAKE_STATUS=str(status))
    assert done.returncode == status
    assert f"the step ended with status {status}; there is no checkpoint yet" in done.stdout
    done = play("multitask", FAKE_STATUS=str(status), FAKE_SAVES="step_00000007")
    assert done.returncode == status
    assert f"the step ended with status {status}; the last whole checkpoint is kept" in done.stdout
    assert not (tmp_path / "scontrol").exists()


def test_a_failure_after_the_signal_is_not_queued_again(play, tmp_path):
    assert play("multitask", FAKE_END="1", FAKE_SAVES="step_00000007").returncode == 1
    assert not (tmp_path / "scontrol").exists()


@pytest.mark.parametrize(
    ("status", "state"), [(STOPPED, "RUNNING"), (138, "RUNNING"), (143, "SIGNALING")]
)
def test_a_job_that_makes_room_for_another_is_queued_again(status, state, play, tmp_path):
    # Also without a new checkpoint: how often it has to make room is not of its own making.
    facts = PREEMPTED.replace("RUNNING", state)
    done = play("multitask", FAKE_STATUS=str(status), FAKE_JOB=facts)
    assert done.returncode == 0
    assert "Slurm takes the nodes for another job; nothing was saved in this turn" in done.stdout
    assert (tmp_path / "scontrol").read_text() == "requeue Incomplete 7\n"


@pytest.mark.parametrize(
    ("status", "facts"),
    [
        (STOPPED, NOT_PREEMPTED),  # scancel --signal=TERM: Slurm's own records say nothing of it
        (STOPPED, PREEMPTED.replace("RUNNING", "CANCELLED")),
        (STOPPED, ""),
        (1, PREEMPTED),
        (137, PREEMPTED),
    ],
)
def test_what_a_user_or_a_fault_ended_is_not_queued_again(status, facts, play, tmp_path):
    done = play("multitask", FAKE_STATUS=str(status), FAKE_SAVES="step_00000007", FAKE_JOB=facts)
    assert done.returncode == status
    if status == STOPPED:
        assert "a signal that was sent by hand ended the step (status 75)" in done.stdout
        assert "saved as step_00000007. Not queued again" in done.stdout
        assert " sbatch " in done.stdout.splitlines()[-1]
    assert not (tmp_path / "scontrol").exists()


@pytest.mark.parametrize("task", TRAININGS)
def test_trainings_differ_in_their_value_files_alone(task, play, tmp_path, run):
    assert play(task, "train.global_batch=8", FAKE_STATUS="0").returncode == 0
    words = (tmp_path / "srun").read_text().splitlines()
    assert words == [
        *("--kill-on-bad-exit=0", "--wait=60", ".venv/bin/python", "sat_udpdiff/train.py"),
        *("--base", "configs/5b.yaml", f"configs/{task}.yaml"),
        *("data.shards=/s", f"run.output={run}", "train.global_batch=8"),
    ]
    assert (ROOT / f"configs/{task}.yaml").is_file()
    bodies = {
        re.sub(rf"\b{name}\b", "TASK", script_of(name).split("set -euo pipefail")[1])
        for name in TRAININGS
    }
    assert len(bodies) == 1
    options = {re.sub(rf"-{name}\b", "-TASK", options_of(name)) for name in TRAININGS}
    assert len(options) == 1


def test_other_value_files_and_python_come_from_the_environment(play, tmp_path):
    environment = {"BASE": "configs/tiny.yaml configs/depth.yaml", "PYTHON": "/p/python"}
    assert play("multitask", FAKE_STATUS="0", **environment).returncode == 0
    words = (tmp_path / "srun").read_text().splitlines()
    assert words[2:7] == [
        *("/p/python", "sat_udpdiff/train.py", "--base", "configs/tiny.yaml", "configs/depth.yaml")
    ]


@pytest.mark.parametrize(
    ("script", "name"), [("baseline", "SHARDS"), ("multitask", "RUN"), ("sample", "PROMPTS")]
)
def test_what_is_missing_is_named(script, name, play, tmp_path):
    done = play(script, FAKE_STATUS="0", **{name: "unset"})
    assert done.returncode == 1
    assert f"{name}: set {name} to" in done.stdout
    assert not (tmp_path / "srun").exists()


def test_each_task_of_the_array_samples_its_own_seed(play, tmp_path, run):
    environment = {"PROMPTS": "p.txt", "SAMPLES": "/o", "TASK": "depth", "SLURM_ARRAY_TASK_ID": "3"}
    assert play("sample", "--steps", "2", FAKE_STATUS="0", **environment).returncode == 0
    words = (tmp_path / "srun").read_text().splitlines()
    assert words[1:] == [
        *("sat_udpdiff/sample.py", "--load", str(run), "--prompts", "p.txt", "--output", "/o"),
        *("--seed", "3", "--task", "depth", "--steps", "2"),
    ]


def test_latents_are_made_by_any_value_files(play, tmp_path):
    given = {"FAKE_STATUS": "0", "LATENTS": "/l"}
    for environment, base in (
        ({}, ["configs/5b.yaml", "configs/multitask.yaml"]),
        ({"BASE": "configs/tiny.yaml", "RECOLOURINGS": "2"}, ["configs/tiny.yaml"]),
    ):
        assert play("latents", "seed=1", **given, **environment).returncode == 0
        words = (tmp_path / "srun").read_text().splitlines()
        recolourings = environment.get("RECOLOURINGS", "1")
        assert words == [
            *(".venv/bin/python", "-m", "data_loaders.latents", "--base", *base),
            *("--shards", "/s", "--output", "/l", "--recolourings", recolourings, "seed=1"),
        ]


def test_a_run_is_judged_by_the_paper_unless_told_otherwise(play, tmp_path, run):
    given = {"FAKE_STATUS": "0", "REFERENCE": "/p", "SCORES": "/o"}
    for environment, config in (
        ({}, "paper"),
        ({"CONFIG": "configs/evaluation/tiny.yaml"}, "tiny"),
    ):
        assert play("evaluate", "prompts.count=3", **given, **environment).returncode == 0
        words = (tmp_path / "srun").read_text().splitlines()
        assert words == [
            *("--kill-on-bad-exit=1", ".venv/bin/python", "sat_udpdiff/evaluate.py"),
            *("--load", str(run), "--config", f"configs/evaluation/{config}.yaml"),
            *("--reference", "/p", "--output", "/o", "prompts.count=3"),
        ]
        assert (ROOT / f"configs/evaluation/{config}.yaml").is_file()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_every_script_says_what_it_is(path):
    text = path.read_text()
    for word in ("Hardware:", "Time:", "Expect:", "Command:"):
        assert f"\n# {word} " in text
    assert f"sbatch launch/{path.name}" in text.replace("sbatch --array=0-7 ", "sbatch ")
    assert f"#SBATCH --job-name=udpdiff-{path.stem.replace('_', '-')}\n" in text
    assert "\nsource launch/env.sh\n" in text
    subprocess.run(["bash", "-n", str(path)], check=True)


def test_every_variable_says_why():
    lines = (ROOT / "launch/env.sh").read_text().splitlines()
    variables = [
        number for number, line in enumerate(lines) if re.match(r"(export )?[A-Z_]+=", line)
    ]
    assert len(variables) >= 8
    for number in variables:
        assert lines[number - 1].startswith("# "), lines[number]


def test_the_shell_and_the_program_mean_the_same_status():
    assert f"\nSTOPPED={STOPPED}\n" in (ROOT / "launch/env.sh").read_text()


def script_of(name: str) -> str:
    return (ROOT / f"launch/{name}.slurm").read_text()


def options_of(name: str) -> str:
    return "\n".join(line for line in script_of(name).splitlines() if line.startswith("#SBATCH"))
