"""Start-up, resuming and memory of the sample order with 300,000 samples in 1,000 shards.

    python tests/benchmarks/bench_order.py [--shards 1000] [--samples-per-shard 300] [--repeats 5]

The data set is a real shard of tiny clips, linked under a thousand names in one real manifest: it
opens and reads as any other, except that keys repeat and its files are one in the disk's cache.

Every figure is the median over fresh processes, ours and the plain way in turns. The plain way is
what a map-style dataset and torch's RandomSampler do: parse every index into one list, draw
`torch.randperm` of an epoch as a list, and skip what was consumed. Memory is the growth of the
proportional set size from before opening (imports excluded; PSS by /proc/self/smaps_rollup).
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
from process_tree import memory

from data_loaders.examples import ExampleMaker
from data_loaders.order import draws
from data_loaders.shard_format import MANIFEST
from data_loaders.shards import write_shards
from data_loaders.synthetic import make_clip
from data_loaders.synthetic_scene import WorldConfig
from sat_udpdiff.config import Config, DataConfig

_FAR = 10**9
_READ = 10_000
_SKIPPED = 10**6
_MOST_SECONDS = 2.0
_MOST_MEGABYTES = 200.0


def _make(folder: Path, *, shards: int, samples_per_shard: int) -> None:
    clip = make_clip(0, seed=0, config=WorldConfig(frames=1, height=16, width=16))
    samples = (replace(clip, key=f"clip-{i:08d}-0001") for i in range(samples_per_shard))
    write_shards(samples, folder, samples_per_shard=samples_per_shard, rgb_codec="ffv1")
    path = folder / MANIFEST
    manifest = json.loads(path.read_bytes())
    (shard,) = manifest["shards"]
    first = shard["name"]
    manifest["shards"] = [shard | {"name": f"shard-{i:06d}.tar"} for i in range(shards)]
    manifest["num_samples"] = shards * samples_per_shard
    path.write_text(json.dumps(manifest))
    for other in manifest["shards"][1:]:
        for suffix in (".tar", ".index.json"):
            source = folder / first.replace(".tar", suffix)
            os.link(source, folder / other["name"].replace(".tar", suffix))


def _timed(call: Callable[[], object]) -> tuple[float, object]:
    begin = time.perf_counter()
    result = call()
    return time.perf_counter() - begin, result


def _ours(folder: Path) -> dict[str, float]:
    config = Config(data=DataConfig(shards=str(folder)))
    before = memory(os.getpid())
    maker = ExampleMaker(config)
    seconds, _ = _timed(lambda: maker.index.sample(maker.order.at(0).index))
    figures = {"start": seconds, "opened": memory(os.getpid()) - before}
    order, count = maker.order, len(maker.order)
    for name, n in {"0": 0, "middle": count // 2, "far": _FAR}.items():
        order._epoch.cache_clear()  # so that every first call makes its epoch
        order._windows.cache_clear()
        figures[f"first {name}"], _ = _timed(lambda n=n: order.at(n))
        seconds, _ = _timed(lambda n=n: [order.at(n + i) for i in range(1000)])
        figures[f"next {name}"] = seconds / 1000
    data = config.data
    seconds, _ = _timed(lambda: [draws(_FAR + i, seed=0, data=data) for i in range(1000)])
    figures["draws"] = seconds / 1000
    seconds, _ = _timed(lambda: [maker.index.sample(order.at(n).index) for n in range(_READ)])
    figures["read"] = seconds / _READ
    figures["after"] = memory(os.getpid()) - before
    return figures


def _plain(folder: Path) -> dict[str, float]:
    import torch  # the sampler's; ours is measured without, as its processes run

    before = memory(os.getpid())
    count = sum(shard["num_samples"] for shard in _shards(folder))

    def start() -> tuple[list, list]:
        samples = []
        for shard in _shards(folder):
            index = folder / shard["name"].replace(".tar", ".index.json")
            entries = json.loads(index.read_bytes())["samples"]
            samples += [(shard["name"], entry) for entry in entries]
        return samples, permutation(0)

    def permutation(epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(epoch)
        return torch.randperm(count, generator=generator).tolist()

    seconds, (samples, places) = _timed(start)
    figures = {"start": seconds, "opened": memory(os.getpid()) - before}
    for name, n in {"0": 0, "middle": count // 2, "far": _FAR}.items():
        figures[f"first {name}"], places = _timed(lambda n=n: permutation(n // count))
        at = n % count
        seconds, _ = _timed(lambda at=at, places=places: [places[at + i] for i in range(1000)])
        figures[f"next {name}"] = seconds / 1000

    def endless():
        epoch = 0
        while True:
            yield from permutation(epoch)
            epoch += 1

    seconds, _ = _timed(lambda: next(islice(endless(), _SKIPPED, None)))
    figures["skip"] = seconds / _SKIPPED * _FAR
    rng = random.Random(0)
    seconds, _ = _timed(lambda: [(rng.random(), rng.random(), rng.random()) for _ in range(1000)])
    figures["draws"] = seconds / 1000
    seconds, _ = _timed(
        lambda: [np.random.default_rng([0, _FAR + i]).random(3) for i in range(1000)]
    )
    figures["seeded draws"] = seconds / 1000
    seconds, _ = _timed(lambda: [samples[places[n]] for n in range(_READ)])
    figures["read"] = seconds / _READ
    figures["after"] = memory(os.getpid()) - before
    return figures


def _shards(folder: Path) -> list[dict]:
    return json.loads((folder / MANIFEST).read_bytes())["shards"]


def _measure(way: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--way", way, "--folder", str(folder)]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


def _print(ours: dict[str, float], plain: dict[str, float]) -> None:
    rows = [
        ("start-up: opening and the first clip's place and entry, s", "start", 1, "start"),
        ("place of n = 0, first call, ms", "first 0", 1e3, "first 0"),
        ("place of n in the middle of the epoch, first call, ms", "first middle", 1e3, ""),
        ("place of n = 10^9, first call (resuming), ms", "first far", 1e3, "first far"),
        ("the same where the plain way skips, ms (from 10^6)", "first far", 1e3, "skip"),
        ("place of the numbers after 0, us", "next 0", 1e6, "next 0"),
        ("place of the numbers after 10^9, us", "next far", 1e6, "next far"),
        ("draws of a number; plain: one stream, us", "draws", 1e6, "draws"),
        ("draws of a number; plain: a generator per number, us", "draws", 1e6, "seeded draws"),
        (f"place and index entry, mean of {_READ:,} numbers, us", "read", 1e6, "read"),
        ("memory after opening, MB", "opened", 1e-6, "opened"),
        (f"memory after {_READ:,} entries, MB", "after", 1e-6, "after"),
    ]
    print("| what | ours | plain |\n|---|---|---|")
    for what, key, unit, theirs in rows:
        print(f"| {what} | {ours[key] * unit:.3g} | {plain[theirs or key] * unit:.3g} |")
    for what, value, most in (
        ("start-up, s", ours["start"], _MOST_SECONDS),
        ("memory, MB", ours["after"] * 1e-6, _MOST_MEGABYTES),
    ):
        print(f"{what}: {value:.2f} of at most {most:g}: {'met' if value < most else 'MISSED'}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--samples-per-shard", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None, help="for the data; default /tmp")
    parser.add_argument("--way", choices=("ours", "plain"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        ways = {"ours": _ours, "plain": _plain}
        print(json.dumps(ways[arguments.way](arguments.folder)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        folder = Path(scratch) / "shards"
        _make(folder, shards=arguments.shards, samples_per_shard=arguments.samples_per_shard)
        found: dict[str, list[dict[str, float]]] = {"ours": [], "plain": []}
        for _ in range(arguments.repeats + 1):
            for way, figures in found.items():
                figures.append(_measure(way, folder))
        # The first of each warms the disk's cache.
        medians = {
            way: {key: statistics.median(one[key] for one in figures[1:]) for key in figures[0]}
            for way, figures in found.items()
        }
    print(
        f"{arguments.shards * arguments.samples_per_shard:,} samples in {arguments.shards:,} "
        f"shards; python {platform.python_version()}, numpy {np.__version__}, "
        f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; medians of {arguments.repeats}\n"
    )
    _print(medians["ours"], medians["plain"])


if __name__ == "__main__":
    main()
