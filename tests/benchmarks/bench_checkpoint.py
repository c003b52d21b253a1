"""What saving costs a training loop: synchronous against asynchronous, sums, and resuming.

    python tests/benchmarks/bench_checkpoint.py [--megabytes 256] [--steps 24] [--every 8]
        [--step-seconds 0.5] [--rounds 3] [--folder DIR]

A loop of steps without saving, with synchronous and with asynchronous saves, by turns, in one
process. The steps either compute on the cores (a training on CPUs) or leave them idle (a training
on a GPU). The engine is made up: four kinds of tensor of `--megabytes` each, as training has them;
files, sums and flushing are those of training. The stall is what a loop with saves takes longer
than one without, for each save.
"""

import argparse
import hashlib
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from sat_udpdiff.config import CheckpointConfig, Config, EMAConfig, RunConfig
from sat_udpdiff.distributed import Place
from sat_udpdiff.training.checkpoint import Saver, restore
from sat_udpdiff.training.ema import EMA
from sat_udpdiff.training.resume_point import find_whole
from sat_udpdiff.training.state import TrainState
from sat_udpdiff.weights.run_folder import find_latest, sha256_of, step_folder
from sat_udpdiff.weights.stored import store_all
from sat_udpdiff.weights.write import write_safetensors

ONE = Place(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"), backend="gloo")
KINDS = ("network", "exp_avg", "exp_avg_sq")
TENSORS = 16
MODES = ("none", "synchronous", "asynchronous")


class MadeUpEngine:
    """Parameters of one size in one flat tensor for each kind."""

    base_sha256 = ""

    def __init__(self, num_bytes: int) -> None:
        self._each = max(1, num_bytes // 4 // TENSORS)
        self._flat = {kind: torch.randn(self._each * TENSORS) for kind in KINDS}

    @property
    def num_parameters(self) -> int:
        """Numbers of one kind."""
        return self._each * TENSORS

    def masters(self) -> list[Tensor]:
        """The weights."""
        return [self._flat["network"]]

    def gather(self, kind: str, *, keep: bool) -> dict[str, Tensor]:
        """Copies, as from a GPU."""
        parts = self._flat[kind].chunk(TENSORS)
        return {f"tensor_{i}": part.clone() for i, part in enumerate(parts)} if keep else {}

    def scatter(self, kind: str, tensors: Mapping[str, Tensor]) -> None:
        """Back into the flat tensor."""
        for i, part in enumerate(self._flat[kind].chunk(TENSORS)):
            part.copy_(tensors[f"tensor_{i}"])

    def counters(self) -> dict[str, float]:
        """As of AdamW."""
        return {"adam_step": 1.0}

    def set_counters(self, counters: Mapping[str, float]) -> None:
        """Nothing to go on from."""


def computing(seconds: float) -> Callable[[], None]:
    """A step that computes; always the same work."""
    a = torch.randn(384, 384)

    def multiply(times: int) -> None:
        for _ in range(times):
            torch.mm(a, a)

    multiply(20)
    start = time.perf_counter()
    multiply(50)
    times = max(1, round(50 * seconds / (time.perf_counter() - start)))
    return lambda: multiply(times)


def loop(
    step: Callable[[], None], *, engine: MadeUpEngine, mode: str, run: Path, options
) -> tuple[float, float]:
    """[seconds of the loop, seconds from the start of a save to its publication (median)]."""
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    ema = EMA(engine.masters(), config=EMAConfig(enabled=True))
    checkpoints = CheckpointConfig(keep_last=1, asynchronous=mode == "asynchronous")
    config = replace(Config(), run=RunConfig(output=str(run)), checkpoint=checkpoints)
    saver, lengths, begun, target = Saver(config, place=ONE), [], 0.0, run
    start = time.perf_counter()
    for number in range(1, options.steps + 1):
        step()
        saver.poll()
        # None in the last step, whose save a training waits for either way.
        if mode != "none" and number % options.every == 0 and number < options.steps:
            begun, target = time.perf_counter(), step_folder(run, step=number)
            saver.save(engine, ema=ema, state=TrainState(step=number))
        if begun and target.exists():
            lengths.append(time.perf_counter() - begun)
            begun = 0.0
    saver.finish()
    seconds = time.perf_counter() - start
    if begun:
        lengths.append(time.perf_counter() - begun)
    saver.close()
    return seconds, statistics.median(lengths) if lengths else 0.0


def compare_saves(folder: Path, *, engine: MadeUpEngine, options: argparse.Namespace) -> None:
    """Print what a save costs, for steps that compute and for steps that wait."""
    steps = {
        "the cores compute": computing(options.step_seconds),
        "the cores are idle": lambda: time.sleep(options.step_seconds),
    }
    saves = (options.steps - 1) // options.every
    print(
        "| while | save | stall, s | of synchronous | until it counts, s |\n|---|---|---|---|---|"
    )
    for name, step in steps.items():
        found: dict[str, list[tuple[float, float]]] = {mode: [] for mode in MODES}
        for _ in range(options.rounds):
            for mode in MODES:
                run = folder / mode
                found[mode].append(loop(step, engine=engine, mode=mode, run=run, options=options))
        plain = [seconds for seconds, _ in found["none"]]
        stalls = {
            mode: statistics.median(
                (seconds - base) / saves
                for (seconds, _), base in zip(found[mode], plain, strict=True)
            )
            for mode in MODES[1:]
        }
        for mode, stall in stalls.items():
            length = statistics.median(length for _, length in found[mode])
            ratio = stall / stalls["synchronous"]
            print(f"| {name} | {mode} | {stall:.3f} | {ratio:.2f} | {length:.3f} |")


def time_of(do: Callable[[], object], *, rounds: int) -> float:
    """Median seconds."""
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        do()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def compare_sums(folder: Path, *, engine: MadeUpEngine, rounds: int) -> None:
    """Print what the sum of a file costs when it is written and when it is read."""
    state = store_all(engine.gather("network", keep=True))
    path, gigabytes = folder / "file.safetensors", engine.num_parameters * 4 / 1e9

    def write(*, summed: bool) -> None:
        see = hashlib.sha256().update if summed else None
        write_safetensors(path, state, see=see)

    write(summed=False)
    rows = {
        "write and flush": time_of(lambda: write(summed=False), rounds=rounds),
        "write, flush and sum": time_of(lambda: write(summed=True), rounds=rounds),
        "read and sum": time_of(lambda: sha256_of(path), rounds=rounds),
    }
    print("\n| file | s per GB |\n|---|---|")
    for name, seconds in rows.items():
        print(f"| {name} | {seconds / gigabytes:.2f} |")


def compare_resuming(run: Path, *, engine: MadeUpEngine, rounds: int) -> None:
    """Print what it takes to open a checkpoint, to check its sums, and to read it."""
    ema = EMA(engine.masters(), config=EMAConfig(enabled=True))
    found = find_whole(run, place=ONE)
    if found is None:
        sys.exit(f"{run}: no checkpoint")
    gigabytes = 4 * engine.num_parameters * 4 / 1e9
    rows = {
        "sizes and headers alone": time_of(lambda: find_latest(run), rounds=rounds),
        "every sum": time_of(lambda: find_whole(run, place=ONE), rounds=rounds),
        "tensors to their place": time_of(
            lambda: restore(found, engine=engine, ema=ema), rounds=rounds
        ),
    }
    print("\n| resuming | s | s per GB |\n|---|---|---|")
    for name, seconds in rows.items():
        print(f"| {name} | {seconds:.3f} | {seconds / gigabytes:.2f} |")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=256.0, help="of each of four files")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--every", type=int, default=8)
    parser.add_argument("--step-seconds", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="on the disk to be measured")
    options = parser.parse_args()
    print(f"python {sys.version.split()[0]}, torch {torch.__version__}, {os.cpu_count()} cores, "
          f"{torch.get_num_threads()} threads, {vars(options)}\n")  # fmt: skip
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        engine = MadeUpEngine(int(options.megabytes * 1e6))
        compare_saves(Path(scratch), engine=engine, options=options)
        compare_sums(Path(scratch), engine=engine, rounds=options.rounds)
        compare_resuming(Path(scratch) / "synchronous", engine=engine, rounds=options.rounds)
    print(f"\nload {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
