"""Clips per second from shards to batches: read, decode, resize, colour.

    python tests/benchmarks/bench_loader.py [--repeats 5] [--folder SCRATCH]

Two settings, side by side in one run: the tiny clips (9x64x96, ffv1) and the paper's (49x480x720,
h264), on 0, 1 and 2 workers. Workers 0 decodes while the consumer waits. The number is the median
over repeats of clips / wall seconds, with the lowest and highest; the first repeat warms up and is
left out. Parts are timed alone, one thread. Peak memory is the process's, so it includes all above.
"""

import argparse
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import torch

from data_loaders.loader import ExampleReader, batches, collate
from data_loaders.schema import Sample
from data_loaders.shards import write_shards
from data_loaders.synthetic import make_clip
from data_loaders.synthetic_scene import WorldConfig
from sat_udpdiff.config import Config, DataConfig, TrainConfig


def _enlarged(sample: Sample, *, frames: int, height: int, width: int) -> Sample:
    """A clip of the paper's size from a small one: rendering it would take longer than all else."""
    times = np.linspace(0, len(sample.rgb) - 1, frames).round().astype(int)
    size = (width, height)
    assert sample.entity_ids is not None and sample.depth is not None
    rgb = [cv2.resize(sample.rgb[t], size, interpolation=cv2.INTER_CUBIC) for t in times]
    noise = np.random.default_rng(0).integers(-6, 7, (height, width, 3))
    return replace(
        sample,
        # Noise keeps h264 from an easy time; real clips have about as many bits per pixel.
        rgb=np.stack([np.clip(frame + noise, 0, 255).astype(np.uint8) for frame in rgb]),
        entity_ids=np.stack(
            [cv2.resize(sample.entity_ids[t], size, interpolation=cv2.INTER_NEAREST) for t in times]
        ),
        depth=np.stack([cv2.resize(sample.depth[t], size) for t in times]),
    )


def _make(folder: Path, *, large: bool) -> Config:
    clips = 4 if large else 32
    world = WorldConfig()
    samples = (make_clip(i, seed=0, config=world) for i in range(clips))
    frames, height, width = (49, 480, 720) if large else (9, 64, 96)
    if large:
        samples = (_enlarged(s, frames=frames, height=height, width=width) for s in samples)
    write_shards(samples, folder)
    data = DataConfig(shards=str(folder), num_frames=frames, height=height, width=width)
    return Config(data=data, train=TrainConfig(micro_batch_size=1))


def _rates(run: Callable[[], int], *, repeats: int) -> str:
    rates = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        count = run()
        rates.append(count / (time.perf_counter() - begin))
    kept = sorted(rates[1:])
    return f"{statistics.median(kept):8.2f}  ({kept[0]:.2f} .. {kept[-1]:.2f})"


def _stream(config: Config, *, workers: int, clips: int) -> int:
    data = replace(config.data, num_workers=workers)
    iterator = batches(replace(config, data=data))
    for _ in islice(iterator, clips):
        pass
    iterator.close()  # type: ignore[attr-defined]
    return clips


def _parts(config: Config, *, repeats: int, clips: int) -> None:
    reader = ExampleReader.open(config)
    stored = [reader.index.sample(i) for i in range(len(reader.index))]
    example = reader.example(0)
    parts: dict[str, Callable[[int], object]] = {
        "read and decode rgb": lambda i: stored[i].rgb(),
        "read and decode ids": lambda i: stored[i].labels("entity_ids"),
        "read and decode depth": lambda i: stored[i].labels("depth"),
        "whole example (with colours)": reader.example,
        "to float tensor": lambda _: collate([example]),
    }
    for name, part in parts.items():

        def run(part: Callable[[int], object] = part) -> int:
            for i in range(clips):
                part(i % len(stored))
            return clips

        print(f"    {name:30s} {_rates(run, repeats=repeats)}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    print(
        f"python {sys.version.split()[0]}, torch {torch.__version__}, {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f}; clips/s: median (lowest .. highest) of "
        f"{arguments.repeats}"
    )
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        for large in (False, True):
            config = _make(Path(scratch) / str(large), large=large)
            clips = 4 if large else 64
            data = config.data
            print(f"{data.num_frames}x{data.height}x{data.width}")
            for workers in (0, 1, 2):
                run = partial(_stream, config, workers=workers, clips=clips)
                print(
                    f"    batches, {workers} worker(s)          "
                    f"  {_rates(run, repeats=arguments.repeats)}"
                )
            _parts(config, repeats=arguments.repeats, clips=clips)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            print(f"    peak memory so far {peak:.2f} GiB")


if __name__ == "__main__":
    main()
