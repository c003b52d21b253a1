"""Colormaps: how fast they are, and how much memory they take.

    python tests/benchmarks/bench_colormaps.py [--repeats 5]

One clip of 49x480x720 with 20 entities, every function once per round, medians over the
rounds with the lowest and highest, in wall seconds; the first round warms up (tables are filled)
and is shown apart. Memory is the growth of the peak of a fresh process that calls the function
once, input excluded.
"""

import argparse
import importlib.util
import multiprocessing
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import torch

from sat_udpdiff.colormaps import depth, location_aware, pixelplanes, tensors


def _noisy_clips():
    path = Path(__file__).parents[1] / "colormaps" / "noisy_clips.py"
    spec = importlib.util.spec_from_file_location("noisy_clips", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["noisy_clips"] = module
    spec.loader.exec_module(module)
    return module


def _inputs():
    noisy, rng = _noisy_clips(), np.random.default_rng(0)
    ids = noisy.make_ids(num_entities=20, shape=(7, 480, 720), rng=rng, radius=(0.08, 0.3))
    colors = pixelplanes.draw_colors(20, generator=rng)
    painted = noisy.degrade(pixelplanes.encode(ids, colors=colors), sigma=5, rng=rng)
    smooth = [cv2.GaussianBlur(rng.random((480, 720)), (0, 0), 30) for _ in range(7)]
    disparity = np.stack(smooth).astype(np.float32)
    disparity = (disparity - disparity.min()) / np.ptp(disparity)
    noise = rng.normal(0, 5, (7, 480, 720, 3))
    depth_rgb = np.clip(depth.encode(disparity) + noise, 0, 255).astype(np.uint8)
    # Noise for 49 frames would take longer to draw than all that is measured.
    return {
        name: np.concatenate([value] * 7) if len(value) == 7 else value
        for name, value in {
            "ids": ids.astype(np.int32),
            "colors": colors,
            "painted": painted,
            "disparity": disparity,
            "depth_rgb": depth_rgb,
        }.items()
    }


def _calls(data):
    ids, colors = torch.from_numpy(data["ids"]), torch.from_numpy(data["colors"])
    disparity = torch.from_numpy(data["disparity"])
    return {
        "pixelplanes encode": lambda: pixelplanes.encode(data["ids"], colors=data["colors"]),
        "pixelplanes encode_torch": lambda: tensors.encode_pixelplanes(ids, colors=colors),
        "pixelplanes decode": lambda: pixelplanes.decode(data["painted"]),
        "location_aware encode": lambda: location_aware.encode(data["ids"]),
        "depth encode": lambda: depth.encode(data["disparity"]),
        "depth encode_torch": lambda: tensors.encode_depth(disparity),
        "depth decode": lambda: depth.decode(data["depth_rgb"]),
        "depth decode, reject 25": lambda: depth.decode(data["depth_rgb"], reject_distance=25.0),
        "depth decode_torch": lambda: tensors.decode_depth(
            torch.from_numpy(data["depth_rgb"]).permute(0, 3, 1, 2) / 127.5 - 1
        ),
        "depth distance_to_map": lambda: depth.distance_to_map(data["depth_rgb"]),
    }


def _peak_growth(name, data, answer):
    call = _calls(data)[name]
    # ru_maxrss would hold the peak of the parent and of unpickling; 5 resets VmHWM.
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident_mib("VmRSS")
    call()
    answer.put(_resident_mib("VmHWM") - before)


def _resident_mib(field):
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if field in line) / 1024


def _memory(name, data):
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=_peak_growth, args=(name, data, answer))
    process.start()
    growth = answer.get()
    process.join()
    return growth


def speed(repeats):
    """Print the table of times and memory."""
    data = _inputs()
    calls = _calls(data)
    seconds = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():  # interleaved: a busy moment hits all alike
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    print(f"49x480x720, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"{platform.processor() or platform.machine()}, numpy {np.__version__}")
    print(f"{'':26}{'median':>8}{'lowest':>8}{'highest':>8}{'first':>8}{'MiB':>8}")
    for name, (first, *rest) in seconds.items():
        numbers = (statistics.median(rest), min(rest), max(rest), first)
        row = "".join(f"{n:8.2f}" for n in numbers)
        print(f"{name:26}{row}{_memory(name, data):8.0f}", flush=True)


def main():
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    speed(parser.parse_args().repeats)


if __name__ == "__main__":
    main()
