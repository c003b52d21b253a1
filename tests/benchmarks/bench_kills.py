"""What kills cost a training run: whether it ends as an unbroken one, and the steps done again.

    python tests/benchmarks/bench_kills.py [--kills 100] [--seed 0] [--output FILE]

train.py on two ranks of the tiny world, with its reader processes, an average of the weights and
asynchronous checkpoints, is killed by SIGKILL at random instants (tests/distributed/killed_runs.py,
as the tests use it) and started again by the same command until it ends. Ends with 1 where a run
differs from the unbroken one in a single bit.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from sat_udpdiff.evaluation.machine import machine_facts

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "tests/distributed/killed_runs.py"
STEPS, EVERY = 12, 2
SETTINGS = (
    *(f"train.steps={STEPS}", f"checkpoint.every_steps={EVERY}", "checkpoint.keep_last=2"),
    *("train.micro_batch_size=1", "model.num_layers=1", "model.hidden_size=96"),
    *("init.weights=null", "ema.enabled=true", "log.every_steps=1", "log.heartbeat_seconds=0"),
    "run.hang_minutes=0.75",
)
Row = dict[str, Any]


def _call(words: Sequence[object]) -> None:
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=ROOT, env={**os.environ, **own}, check=False
    )
    if done.returncode:
        sys.exit(f"ended with status {done.returncode}: {' '.join(map(str, words))}")


def kill(folder: Path, *, options: argparse.Namespace) -> Row:
    """What killed_runs.py found."""
    clips = ["-m", "data_loaders.synthetic", folder / "shards", "--clips", 16, "--workers", 1]
    _call([*clips, "--world", "simple", "--size", "32x48"])
    base = ["--base", "configs/tiny.yaml", "configs/multitask.yaml"]
    plan = {
        "arguments": [*base, *SETTINGS, f"data.shards={folder / 'shards'}"],
        "folder": str(folder / "runs"),
        "saves": STEPS // EVERY,
        "kills": options.kills,
        "kills_per_run": 5,
        "seed": options.seed,
    }
    (folder / "plan.json").write_text(json.dumps(plan))
    _call([PROGRAM, folder / "plan.json", folder / "result.json"])
    return json.loads((folder / "result.json").read_text())


def lost(kills: Sequence[Row]) -> list[int]:
    """Steps to be done again after each."""
    return [kill["done"] - kill["kept"] for kill in kills]


def table(kills: Sequence[Row]) -> str:
    """Rows of kinds of kills."""
    kinds: dict[str, Callable[[Row], bool]] = {
        "all": lambda kill: True,
        "at a random time": lambda kill: kill["kind"] == "time",
        "before a file operation of a save": lambda kill: kill["kind"] == "operation",
        "one rank": lambda kill: len(kill["victims"]) == 1,
        "both ranks": lambda kill: len(kill["victims"]) == 2,
        "while a checkpoint was being saved": lambda kill: kill["was_saving"],
        "no step further than the start before": lambda kill: kill["kept"] == kill["resumed"],
        "before the ranks had met": lambda kill: kill["was_before_meeting"],
        "later, and before the first step": lambda kill: kill["was_starting"],
    }
    lines = [
        "| kills | number | steps lost, mean | worst | other rank's end, s, median | worst |",
        "|---|---|---|---|---|---|",
    ]
    for name, belongs in kinds.items():
        chosen = [kill for kill in kills if belongs(kill)]
        # A launcher ends the other where the ranks had not met, and so do we.
        others = [
            kill["others_seconds"]
            for kill in chosen
            if len(kill["victims"]) == 1 and not kill["was_before_meeting"]
        ]
        steps = f"{statistics.mean(lost(chosen)):.2f} | {max(lost(chosen))}" if chosen else " | "
        ends = f"{statistics.median(others):.2f} | {max(others):.2f}" if others else " | "
        lines.append(f"| {name} | {len(chosen)} | {steps} | {ends} |")
    return "\n".join(lines)


def facts(options: argparse.Namespace) -> Row:
    """Machine and versions."""
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return {
        **machine_facts(torch.device("cpu")),
        **{name: metadata.version(name) for name in ("deepspeed", "safetensors")},
        "load": round(os.getloadavg()[0], 1),
        "git_commit": commit.stdout.strip(),
        "options": {"kills": options.kills, "seed": options.seed},
        "settings": list(SETTINGS),
    }


def write(path: Path, result: Row, *, options: argparse.Namespace) -> None:
    """Write it all; each kill is a line."""
    kills = ",\n  ".join(json.dumps(kill) for kill in result["kills"])
    head = facts(options) | {key: value for key, value in result.items() if key != "kills"}
    text = json.dumps(head, indent=1).removesuffix("\n}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{text},\n "kills": [\n  {kills}\n ]\n}}\n', encoding="utf-8")


def main() -> int:
    """Print the table; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="a JSON file with every kill")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        result = kill(Path(scratch), options=options)
    if options.output:
        write(options.output, result, options=options)
    print(
        f"{len(result['kills'])} kills of {result['runs']} runs on 2 ranks in "
        f"{result['seconds'] / 60:.1f} min; a checkpoint every {EVERY} steps; an unbroken run "
        f"takes {result['unbroken_seconds']:.0f} s\n\n{table(result['kills'])}\n"
    )
    for fault in result["faults"]:
        print(f"FAULT: {fault}")
    if not result["faults"]:
        print("Weights, moments, average, counters and every logged line of all runs are those of "
              "the unbroken run, bit for bit.")  # fmt: skip
    return 1 if result["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
