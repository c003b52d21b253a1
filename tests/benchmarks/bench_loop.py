"""What a training costs beside forward, backward and optimizer, per step and at its start.

    python tests/benchmarks/bench_loop.py [--steps 120] [--rounds 3] [--ranks 1]

The tiny world from cached latents, started as a user would, with averaged weights, every step
logged, and all that a run does by default: loss spikes, heartbeat, hang watch. Parts are
timed within one run, so that a slow moment of the machine slows both sides of a ratio; each number
is the median over steps, then over rounds. The start is from the birth of the process to the end
of the first step, of a new run and of one that resumes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
CORE = ("forward", "backward", "optimizer")
"""What every trainer does in a step, and the denominator of all shares."""
ASIDE = ("data", "example", "averaged weights", "agreeing with the other ranks")
"""Asked for by the method, or waiting; shown by themselves."""


def call(words: Sequence[object], *, ranks: int = 1) -> None:
    """Run a program of this repository to its end."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", ranks]
    command = [sys.executable, *map(str, [*(launcher if ranks > 1 else []), *words])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"status {done.returncode}: {' '.join(command)}\n{done.stderr[-2000:]}")


def train(folder: Path, run: Path, *settings: str, ranks: int) -> dict:
    """Train, or go on training; returns the times that `timed_training.py` writes."""
    result = folder / "times.json"
    call(
        [
            *("tests/benchmarks/timed_training.py", result),
            *("--base", "configs/tiny.yaml", "configs/multitask.yaml"),
            *("data.source=latents", f"data.latents={folder / 'latents'}", f"run.output={run}"),
            *("train.micro_batch_size=2", "log.every_steps=1", "ema.enabled=true", *settings),
        ],
        ranks=ranks,
    )
    return json.loads(result.read_text())


def make_latents(folder: Path) -> None:
    """A few clips of the synthetic world, encoded."""
    clips = ["-m", "data_loaders.synthetic", folder / "shards", "--clips", 32]
    call([*clips, "--world", "simple", "--size", "32x48", "--workers", 2])
    call(
        [
            *("-m", "data_loaders.latents", "--base", "configs/tiny.yaml"),
            *("configs/multitask.yaml", "--shards", folder / "shards"),
            *("--output", folder / "latents", "--recolourings", 2),
        ]
    )


def shares(step: dict[str, float]) -> dict[str, float]:
    """Of one step: seconds of the core, and every other part as a share of them."""
    core = sum(step.get(part, 0.0) for part in CORE)
    known = {part: step.get(part, 0.0) for part in ASIDE}
    loop = step["whole"] - core - sum(known.values())
    return {"core": core} | {part: s / core for part, s in (known | {"the loop": loop}).items()}


def medians(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """By part; a part that a row lacks took no time there."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: statistics.median(row.get(name, 0.0) for row in rows) for name in names}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ranks", type=int, default=1)
    options = parser.parse_args()
    per_step: list[dict[str, float]] = []
    starts: dict[str, list[dict[str, float]]] = {"new": [], "resumed": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_latents(folder)
        for number in range(options.rounds):
            run, ranks = folder / f"run-{number}", options.ranks
            times = train(folder, run, f"train.steps={options.steps}", ranks=ranks)
            per_step.append(medians([shares(step) for step in times["steps"]]))
            starts["new"].append(times["start"])
            longer = f"train.steps={options.steps + 1}"
            times = train(folder, run, longer, "run.allow_changes=[train.steps]", ranks=ranks)
            starts["resumed"].append(times["start"])
    print(
        f"python {sys.version.split()[0]}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, "
        f"{vars(options)}\n\n| part of a step | of forward, backward and optimizer |\n|---|---|"
    )
    found = medians(per_step)
    print(f"| forward, backward, optimizer | {1000 * found.pop('core'):.1f} ms |")
    for part, share in found.items():
        print(f"| {part} | {100 * share:.2f} % |")
    print("\n| part of the start | new, s | resumed, s |\n|---|---|---|")
    of_start = {kind: medians(rows) for kind, rows in starts.items()}
    for part in dict.fromkeys([*of_start["new"], *of_start["resumed"]]):
        new, resumed = (of_start[kind].get(part, 0.0) for kind in ("new", "resumed"))
        print(f"| {part} | {new:.2f} | {resumed:.2f} |")


if __name__ == "__main__":
    main()
