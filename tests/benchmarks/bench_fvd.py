"""FVD: time and memory of a video, time of a distance, and its bias by the number of videos.

    python tests/benchmarks/bench_fvd.py [--repeats 3] [--output FOLDER]

A video of noise, 49x480x720, through each protocol's preprocessing and through I3D with random
weights, in turns after one that warms up; medians with the lowest and highest, in wall seconds.
Memory is the growth of the peak of a fresh process that makes the features of one video, network
and video excluded. Distances are of 1,024 and 1,024 videos with 400 features, ours beside the
tools' root of a product of matrices.

The bias: distances between sets of one distribution, whose truth is 0, features drawn from a
Gaussian whose k-th variance is 1 / k; 3 pairs of sets. With --output also `fvd_bias.png`.
"""

import argparse
import multiprocessing
import os
import platform
import statistics
import time
from pathlib import Path

import numpy as np
import scipy.linalg
import torch

from sat_udpdiff.evaluation.fvd import frechet_distance, sample_size_bias
from sat_udpdiff.evaluation.fvd_plot import draw_size_bias
from sat_udpdiff.evaluation.i3d import I3dFeatures, preprocess
from sat_udpdiff.evaluation.i3d_network import NUM_CLASSES, InceptionI3d

SIZES = [64, 128, 256, 512, 1024, 2048, 4096]


def make_video(size):
    return np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)


def make_features(rows):
    rng = np.random.default_rng(0)
    return rng.standard_normal((rows, NUM_CLASSES)) * np.arange(1, NUM_CLASSES + 1) ** -0.5


def tools_distance(one, two):
    """StyleGAN-V's and cd-fvd's way."""
    sigma, other = np.cov(one, rowvar=False), np.cov(two, rowvar=False)
    root = scipy.linalg.sqrtm(sigma @ other)
    shift = np.square(one.mean(0) - two.mean(0)).sum()
    return float(np.real(shift + np.trace(sigma + other - 2 * root)))


@torch.no_grad()
def make_calls(size):
    video, network = make_video(size), InceptionI3d().eval()
    seen = preprocess(video, protocol="cdfvd")[None]
    features = make_features(2048)
    one, two = features[:1024], features[1024:]
    ours = frechet_distance(one, references=two, covariance="unbiased")
    apart = abs(ours / tools_distance(one, two) - 1)
    print(f"our distance / the tools' - 1: {apart:.1e}\n", flush=True)
    return {
        "preprocessing, styleganv": lambda: preprocess(video, protocol="styleganv"),
        "preprocessing, cdfvd": lambda: preprocess(video, protocol="cdfvd"),
        "I3D": lambda: network(seen),
        "distance": lambda: frechet_distance(one, references=two, covariance="unbiased"),
        "distance, the tools'": lambda: tools_distance(one, two),
    }


def measure(calls, *, repeats):
    seconds = {name: [] for name in calls}
    with torch.no_grad():
        for turn in range(repeats + 1):
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                if turn:
                    seconds[name].append(time.perf_counter() - start)
    return seconds


def resident_mib(field):
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if field in line) / 1024


def peak_growth(protocol, size, threads, answer):
    torch.set_num_threads(threads)
    features = I3dFeatures(InceptionI3d().eval(), protocol=protocol, source="random")
    video = make_video(size)
    # ru_maxrss would hold the peak of making the network; 5 resets VmHWM.
    Path("/proc/self/clear_refs").write_text("5")
    before = resident_mib("VmRSS")
    features(video)
    answer.put(resident_mib("VmHWM") - before)


def memory(protocol, size):
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    arguments = (protocol, size, torch.get_num_threads(), answer)
    process = context.Process(target=peak_growth, args=arguments)
    process.start()
    growth = answer.get()
    process.join()
    return growth


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--size", type=int, nargs=3, default=(49, 480, 720), metavar="N")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="folder for the picture of the bias")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    size = tuple(arguments.size)
    print(
        f"{platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, torch "
        f"{torch.__version__}, numpy {np.__version__}, {arguments.threads} threads, "
        f"{'x'.join(map(str, size))}"
    )
    calls = make_calls(size)
    print("| what | s | lowest .. highest |\n|---|---|---|")
    for name, seconds in measure(calls, repeats=arguments.repeats).items():
        middle = statistics.median(seconds)
        print(f"| {name} | {middle:.3f} | {min(seconds):.3f} .. {max(seconds):.3f} |", flush=True)
    print("\n| features of one video | MiB |\n|---|---|")
    for protocol in ("styleganv", "cdfvd"):
        print(f"| {protocol} | {memory(protocol, size):.0f} |", flush=True)
    rows = sample_size_bias(make_features(2 * SIZES[-1]), sizes=SIZES, covariance="unbiased")
    print("\n| N | distance (truth: 0) | lowest .. highest |\n|---|---|---|")
    for row in rows:
        print(f"| {row.size} | {row.mean:.3f} | {min(row.values):.3f} .. {max(row.values):.3f} |")
    if arguments.output is not None:
        arguments.output.mkdir(parents=True, exist_ok=True)
        title = "Frechet distance of sets of one distribution, 400 features"
        picture = draw_size_bias({"k-th variance 1 / k": rows}, title=title)
        (arguments.output / "fvd_bias.png").write_bytes(picture)


if __name__ == "__main__":
    main()
