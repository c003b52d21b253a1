"""Seconds per training step: clips encoded while training against cached latents.

    python tests/benchmarks/bench_latents.py [--rounds 3] [--steps 60] [--ranks 1]

The tiny world as the demonstration trains it (micro-batch 2), started as a user would, the two
sources by turns; of each run the median of the logged intervals after the first, which warms up.
Also printed: what the cache took to make, the wait for data, and the peak memory (proportional set
size) of each run with all its processes.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from process_tree import PeakMemory

from sat_udpdiff.training.run_log import read_metrics

ROOT = Path(__file__).parents[2]
SOURCES = ("video", "latents")


def _call(words: Sequence[object]) -> float:
    """Run to the end; returns the peak memory of the process and all below it, MiB."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, *map(str, words)], cwd=ROOT, env=environment, stderr=subprocess.DEVNULL
    )
    with PeakMemory(process.pid, every_seconds=0.5) as peak:
        process.wait()
    if process.returncode:
        sys.exit(f"ended with status {process.returncode}: {' '.join(map(str, words))}")
    return peak.bytes / 2**20


def _train(folder: Path, *, source: str, number: int, options: argparse.Namespace) -> list[float]:
    """[seconds per step, seconds of waiting per step, MiB]."""
    run = folder / f"{source}-{number}"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", options.ranks]
    every = max(1, options.steps // 6)
    peak = _call(
        [
            *(launcher if options.ranks > 1 else []),
            *("sat_udpdiff/train.py", "--base", "configs/tiny.yaml", "configs/multitask.yaml"),
            *(f"data.source={source}", f"data.shards={folder / 'shards'}"),
            *(f"data.latents={folder / 'latents'}", f"run.output={run}"),
            *(f"train.steps={options.steps}", "train.micro_batch_size=2"),
            *(f"log.every_steps={every}", f"checkpoint.every_steps={options.steps}"),
        ]
    )
    lines = read_metrics(run, kind="training")[1:]
    seconds = statistics.median(line["step_seconds"] for line in lines)
    return [seconds, statistics.median(line["data_wait_seconds"] for line in lines), peak]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--ranks", type=int, default=1)
    options = parser.parse_args()
    print(f"python {sys.version.split()[0]}, {os.cpu_count()} cores, {options.ranks} rank(s)")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        clips = ["-m", "data_loaders.synthetic", folder / "shards", "--clips", 64]
        _call([*clips, "--world", "simple", "--size", "32x48", "--workers", 2])
        begin = time.perf_counter()
        _call(
            [
                *("-m", "data_loaders.latents", "--base", "configs/tiny.yaml"),
                *("configs/multitask.yaml", "--shards", folder / "shards"),
                *("--output", folder / "latents", "--recolourings", 2),
            ]
        )
        print(
            f"cache of 64 clips, 2 colourings: {time.perf_counter() - begin:.0f} s with the start"
        )
        rows: dict[str, list[list[float]]] = {source: [] for source in SOURCES}
        for number in range(options.rounds):
            for source in SOURCES:
                rows[source].append(_train(folder, source=source, number=number, options=options))
    print(f"\nload {os.getloadavg()[0]:.1f}\n\n| source | s per step | waiting for data, s | MiB |")
    print("|---|---|---|---|")
    medians = {s: [statistics.median(c) for c in zip(*rows[s], strict=True)] for s in SOURCES}
    for source, (seconds, waiting, peak) in medians.items():
        print(f"| {source} | {seconds:.3f} | {waiting:.4f} | {peak:.0f} |")
    print(f"\nvideo / latents: {medians['video'][0] / medians['latents'][0]:.2f}")


if __name__ == "__main__":
    main()
