"""Converting weights: seconds, and the memory that the process needs at its peak.

    python tests/benchmarks/bench_convert.py --families tiny 2b 5b

A release with random numbers is written for SAT, then converted SAT -> ours -> diffusers -> ours ->
SAT, each by a process of its own, and the first and the last file are compared tensor by tensor.
Memory is what cannot be dropped (RssAnon of /proc); pages of the files themselves lie in the cache
of the disk and are given back when others need room. `--dry-run` of the same conversion is the
memory of Python with torch and SAT. The last row puts the weights into a network on the CPU, whose
own size is not counted.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from sat_udpdiff.config_io import load_config  # noqa: E402
from sat_udpdiff.weights.pickles import load_pickle  # noqa: E402
from tests.weights.synthetic_release import network_state, write_release  # noqa: E402

LOAD = """
import sys, torch
from sat_udpdiff.config_io import load_config
from sat_udpdiff.encoders.source import DTYPES
from sat_udpdiff.model.transformer import build_network
from sat_udpdiff.weights.load import load_network_weights
config = load_config(sys.argv[3:])
network = build_network(config.model, dtype=getattr(torch, sys.argv[2]), device="cpu")
load_network_weights(network, config, weights=sys.argv[1])
"""
CONVERT = ROOT / "sat_udpdiff" / "convert.py"
DTYPES = {"tiny": torch.bfloat16, "2b": torch.float16, "5b": torch.bfloat16}
POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Cost:
    seconds: float
    peak: int
    """Bytes."""


def convert(*words: object) -> Cost:
    """Cost of a conversion."""
    return measure([sys.executable, CONVERT, *words])


def measure(words: Sequence[object]) -> Cost:
    """Run a program; ends the benchmark where it fails."""
    start, peak = time.perf_counter(), 0
    with subprocess.Popen(
        [str(word) for word in words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            for line in status.read_text().splitlines():
                if line.startswith("RssAnon:"):
                    peak = max(peak, int(line.split()[1]) * 1024)
            time.sleep(POLL_SECONDS)
        assert process.stderr is not None
        if process.returncode:
            sys.exit(process.stderr.read().decode())
    return Cost(seconds=time.perf_counter() - start, peak=peak)


def bench(family: str, folder: Path) -> None:
    """One family, there and back."""
    base = [ROOT / "configs" / f"{family}.yaml", ROOT / "configs" / "baseline.yaml"]
    config = load_config([str(file) for file in base])
    first = write_release(folder / "release", config, DTYPES[family])
    size = first.stat().st_size
    options = ("--base", *base)
    idle = convert(folder / "release", folder / "none", "--to", "udpdiff", *options, "--dry-run")
    state = load_pickle(first)["module"]
    largest = max(tensor.nbytes for tensor in state.values())
    del state
    print(
        f"{family}: {size / 1e9:.2f} GB, largest tensor {largest / 1e6:.0f} MB; "
        f"the converter at rest {idle.peak / 1e6:.0f} MB"
    )
    source = folder / "release"
    for step, form in enumerate(("udpdiff", "diffusers", "udpdiff", "sat")):
        target = folder / f"{step}_{form}"
        cost = convert(source, target, "--to", form, *options)
        print(
            f"| {family} | {source.name.split('_')[-1]} -> {form} | {cost.seconds:.1f} | "
            f"{size / 1e6 / cost.seconds:.0f} | {(cost.peak - idle.peak) / 1e6:.0f} |"
        )
        if source.name != "release":
            shutil.rmtree(source)
        source = target
    dtype = str(DTYPES[family]).removeprefix("torch.")
    cost = measure([sys.executable, "-c", LOAD, source, dtype, *base])
    own = sum(v.num_bytes for v in network_state(config, DTYPES[family]).values())
    print(
        f"| {family} | sat -> network | {cost.seconds:.1f} | {size / 1e6 / cost.seconds:.0f} | "
        f"{(cost.peak - own - idle.peak) / 1e6:.0f} |"
    )
    last = source / "transformer" / "1" / first.name
    before, after = load_pickle(first)["module"], load_pickle(last)["module"]
    assert before.keys() == after.keys()
    wrong = [name for name in before if not same_bits(before[name], after[name])]
    print(f"{family}: {len(before)} tensors, {len(wrong)} differ after the round trip")
    shutil.rmtree(folder)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal dtype and bits: random bits are NaN now and then."""
    return a.dtype == b.dtype and torch.equal(a.view(torch.int16), b.view(torch.int16))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--families", nargs="+", default=["tiny"], choices=tuple(DTYPES))
    parser.add_argument("--folder", type=Path, help="where to; needs three times the release")
    options = parser.parse_args()
    print("| family | conversion | s | MB/s | memory above rest, MB |\n|---|---|---|---|---|")
    for family in options.families:
        bench(family, Path(tempfile.mkdtemp(dir=options.folder)))


if __name__ == "__main__":
    main()
