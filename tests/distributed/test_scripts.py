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
# srun ends with FAKE_STATUS; without one it runs until it gets SIGUSR1, and ends with FAKE_END.
PLAYERS = {
    "srun": 'printf "%s\\n" "$@" > "$FAKE/srun"; [ -z "$FAKE_STATUS" ] || exit "$FAKE_STATUS"; '
    'trap \'exit "$FAKE_END"\' USR1; echo $$ > "$FAKE/pid"; while :; do sleep 0.02; done',
    "scancel": 'echo "$@" > "$FAKE/scancel"; kill -USR1 "$(cat "$FAKE/pid")"',
    "scontrol": 'echo "$@" > "$FAKE/scontrol"; exit "$FAKE_SCONTROL"',
}


@pytest.fixture
def play(tmp_path: Path):
    """Start a script as Slurm would; send it SIGUSR1 when the step runs, if it has no status."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, text in PLAYERS.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}\n")
        (programs / name).chmod(0o755)

    def call(script: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        given = {
            "FAKE": str(tmp_path), "FAKE_STATUS": "", "FAKE_END": "0", "FAKE_SCONTROL": "0",
            "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_CPUS_PER_TASK": "3",
            "SLURM_SUBMIT_DIR": str(ROOT), "SHARDS": "/s", "RUN": "/r",
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
    done = play("multitask", FAKE_END=str(STOPPED), SLURM_RESTART_COUNT="2")
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "scancel").read_text() == "--signal=USR1 7\n"
    assert (tmp_path / "scontrol").read_text() == "requeue 7\n"
    assert "job 7 on n[1-2], restart 2" in done.stdout
    assert "SIGUSR1: the ranks are asked to save and to end" in done.stdout


def test_a_run_that_ends_in_that_very_moment_is_over(play, tmp_path):
    done = play("multitask", FAKE_END="0")
    assert done.returncode == 0
    assert (tmp_path / "scancel").exists()
    assert not (tmp_path / "scontrol").exists()


def test_where_no_requeue_is_allowed_the_command_is_printed(play):
    done = play("depth", "train.steps=9", "seed=1", FAKE_END=str(STOPPED), FAKE_SCONTROL="1")
    assert done.returncode == STOPPED
    assert done.stdout.splitlines()[-1] == (
        "    SHARDS=/s RUN=/r sbatch launch/depth.slurm train.steps=9 seed=1"
    )


@pytest.mark.parametrize("status", [1, STOPPED, 137])
def test_what_no_time_limit_ended_is_not_queued_again(status, play, tmp_path):
    done = play("multitask", FAKE_STATUS=str(status))
    assert done.returncode == status
    assert f"the step ended with status {status}" in done.stdout
    assert not (tmp_path / "scontrol").exists()


def test_a_failure_after_the_signal_is_not_queued_again(play, tmp_path):
    assert play("multitask", FAKE_END="1").returncode == 1
    assert not (tmp_path / "scontrol").exists()


@pytest.mark.parametrize("task", TRAININGS)
def test_trainings_differ_in_their_value_files_alone(task, play, tmp_path):
    assert play(task, "train.global_batch=8", FAKE_STATUS="0").returncode == 0
    words = (tmp_path / "srun").read_text().splitlines()
    assert words == [
        *("--kill-on-bad-exit=0", "--wait=60", ".venv/bin/python", "sat_udpdiff/train.py"),
        *("--base", "configs/5b.yaml", f"configs/{task}.yaml"),
        *("data.shards=/s", "run.output=/r", "train.global_batch=8"),
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


def test_each_task_of_the_array_samples_its_own_seed(play, tmp_path):
    environment = {"PROMPTS": "p.txt", "SAMPLES": "/o", "TASK": "depth", "SLURM_ARRAY_TASK_ID": "3"}
    assert play("sample", "--steps", "2", FAKE_STATUS="0", **environment).returncode == 0
    words = (tmp_path / "srun").read_text().splitlines()
    assert words[1:] == [
        *("sat_udpdiff/sample.py", "--load", "/r", "--prompts", "p.txt", "--output", "/o"),
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


def test_a_run_is_judged_by_the_paper_unless_told_otherwise(play, tmp_path):
    given = {"FAKE_STATUS": "0", "REFERENCE": "/p", "SCORES": "/o"}
    for environment, config in (
        ({}, "paper"),
        ({"CONFIG": "configs/evaluation/tiny.yaml"}, "tiny"),
    ):
        assert play("evaluate", "prompts.count=3", **given, **environment).returncode == 0
        words = (tmp_path / "srun").read_text().splitlines()
        assert words == [
            *("--kill-on-bad-exit=1", ".venv/bin/python", "sat_udpdiff/evaluate.py"),
            *("--load", "/r", "--config", f"configs/evaluation/{config}.yaml"),
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
