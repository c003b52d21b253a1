"""VBench's measures: videos per minute and peak memory of each, on random weights.

    python tests/benchmarks/bench_vbench.py [--videos 3] [--package FOLDER/vbench]

Videos of 49x480x720 of the synthetic world, on a CPU with one thread; weights are random, which
changes no time. Each measure runs in a process of its own, on one video and then on all; a row has
the median wall and processor seconds of a video, videos per minute by the latter (others may use
the machine), and the growth of the peak memory over that of the process with its videos' source:
after the first video (weights and activations) and after the last (flat, if videos are not kept).
AMT needs the vbench package (`sh .ci/install_vbench .venv/bin .cache/vbench`); without it that row
is left out.
"""

import argparse
import itertools
import multiprocessing
import os
import platform
import resource
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from data_loaders.synthetic import make_clip
from data_loaders.synthetic_scene import WorldConfig
from sat_udpdiff.evaluation import feature_networks
from sat_udpdiff.evaluation.arrays import ArrayVideo
from sat_udpdiff.evaluation.feature_weights import FeatureWeights
from sat_udpdiff.evaluation.frame_features import NetworkFeatures, clip_pixels, dino_pixels
from sat_udpdiff.evaluation.measure import Measure
from sat_udpdiff.evaluation.motion_smoothness import (
    AmtMidFrames,
    FlowMidFrames,
    _vbench_without_init,
)
from sat_udpdiff.evaluation.vbench_measures import (
    BackgroundConsistency,
    MotionSmoothness,
    SubjectConsistency,
)

SIZE = (49, 480, 720)
NAMES = ("subject consistency", "background consistency", "motion smoothness, flow",
         "motion smoothness, AMT-S")  # fmt: skip


def _random_dino(_: FeatureWeights) -> torch.nn.Module:
    from transformers import ViTConfig, ViTModel

    vit = ViTModel(ViTConfig(layer_norm_eps=1e-6), add_pooling_layer=False)
    return feature_networks._Dino(vit.eval())


def _random_clip(_: FeatureWeights) -> torch.nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    return feature_networks._Clip(CLIPVisionModelWithProjection(CLIPVisionConfig()).eval())


def _random_amt(folder: Path, package: Path) -> FeatureWeights:
    import importlib

    with _vbench_without_init(package):
        network = importlib.import_module("vbench.third_party.amt.networks.AMT-S").Model()
    torch.save({"state_dict": network.state_dict()}, folder / "amt-s.pth")
    return FeatureWeights(network="amt", key="amt", path=folder / "amt-s.pth", sha256="random")


def make_measure(name: str, *, package: Path | None, folder: Path) -> Measure:
    """A measure with random weights."""
    none = FeatureWeights(network="dino", key="dino", path=folder, sha256="random")
    if name == NAMES[0]:
        return SubjectConsistency(NetworkFeatures(none, prepare=dino_pixels, load=_random_dino))
    if name == NAMES[1]:
        return BackgroundConsistency(NetworkFeatures(none, prepare=clip_pixels, load=_random_clip))
    if name == NAMES[2]:
        return MotionSmoothness(FlowMidFrames())
    assert package is not None
    return MotionSmoothness(AmtMidFrames(_random_amt(folder, package), package=package))


def peak_mib() -> float:
    """The largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(name: str, videos: int, package: Path | None, sender) -> None:
    """One row, sent to the parent."""
    torch.set_num_threads(1)
    frames, height, width = SIZE
    world = WorldConfig(frames=frames, height=height, width=width)
    clips = (
        ArrayVideo(name=str(i), frames=make_clip(i, seed=0, config=world).rgb)
        for i in range(videos)
    )
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        judge = make_measure(name, package=package, folder=Path(folder))
        # One clip made: what making it takes is no part of the growth.
        first = next(clips)
        before = peak_mib()
        # Networks are loaded with the first frames.
        judge.features(ArrayVideo(name="warm-up", frames=np.ascontiguousarray(first.frames[:3])))
        rows, peaks = [], []
        for clip in itertools.chain([first], clips):
            rows.append(_timed(judge, clip))
            peaks.append(peak_mib() - before)
    wall, processor = (statistics.median(row[i] for row in rows) for i in (0, 1))
    sender.send((wall, processor, 60 / processor, peaks[0], peaks[-1]))


def _timed(judge: Measure, clip: ArrayVideo) -> tuple[float, float]:
    wall, processor = time.perf_counter(), time.process_time()
    judge.features(clip)
    return time.perf_counter() - wall, time.process_time() - processor


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=3, help="of each measure")
    parser.add_argument("--package", type=Path, default=Path(".cache/vbench/vbench"))
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    has_amt = arguments.package.is_dir()
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, torch {torch.__version__}; {SIZE}")
    print("\n| measure | s | CPU s | videos/min | MiB, 1 video | MiB, all |\n" + "|---" * 6 + "|")
    spawn = multiprocessing.get_context("spawn")
    for name in NAMES if has_amt else NAMES[:3]:
        receiver, sender = spawn.Pipe(duplex=False)
        package = arguments.package.resolve() if has_amt else None
        process = spawn.Process(target=measure, args=(name, arguments.videos, package, sender))
        process.start()
        sender.close()
        wall, processor, rate, one, every = receiver.recv()
        process.join()
        print(f"| {name} | {wall:.1f} | {processor:.1f} | {rate:.2f} | {one:.0f} | {every:.0f} |")
    if not has_amt:
        print(f"\nno vbench package at {arguments.package}: AMT-S left out")


if __name__ == "__main__":
    main()
