"""Measures of evaluation: videos per minute and peak memory of each, on random weights.

    python tests/benchmarks/bench_measures.py [--videos 3] [--package FOLDER/vbench]

Videos of 49x480x720 of the synthetic world, on a CPU with one thread; weights are random, which
changes no time. Each measure runs in a process of its own, on one video and then on all; a row has
the median wall and processor seconds of a video, videos per minute by the latter (others may use
the machine), and the growth of the peak memory over that of the process with its videos' source:
after the first video (weights and activations) and after the last (flat, if videos are not kept).
Depth and entities are scored against labels that are there: the models that make them in earnest
take far longer (`python -m data_loaders.panda_dense plan`). FVD is in `bench_fvd.py`. AMT needs the
vbench package (`sh .ci/install_vbench .venv/bin .cache/vbench`); without it that row
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
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from data_loaders.synthetic import make_clip
from data_loaders.synthetic_scene import WorldConfig
from sat_udpdiff.colormaps import depth as depth_colours
from sat_udpdiff.evaluation import feature_networks
from sat_udpdiff.evaluation.arrays import ArrayVideo
from sat_udpdiff.evaluation.edge_agreement import EdgeAgreement
from sat_udpdiff.evaluation.feature_weights import FeatureWeights
from sat_udpdiff.evaluation.frame_features import NetworkFeatures, clip_pixels, dino_pixels
from sat_udpdiff.evaluation.measure import Measure
from sat_udpdiff.evaluation.motion_smoothness import (
    AmtMidFrames,
    FlowMidFrames,
    _vbench_without_init,
)
from sat_udpdiff.evaluation.truth_measures import DepthAgainstTruth, SegmentationAgainstTruth
from sat_udpdiff.evaluation.vbench_measures import (
    BackgroundConsistency,
    MotionSmoothness,
    SubjectConsistency,
)

SIZE = (49, 480, 720)
NAMES = ("subject consistency", "background consistency", "motion smoothness, flow",
         "depth against a truth", "entities against a truth", "edges",
         "motion smoothness, AMT-S")  # fmt: skip

AGAINST_LABELS = {
    "depth against a truth": DepthAgainstTruth,
    "entities against a truth": SegmentationAgainstTruth,
}


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


class Labels:
    """The truth of the clip whose turn it is: its own labels."""

    name = key = "labels of the clip"
    clip: ArrayVideo

    def depth(self, rgb: np.ndarray) -> np.ndarray | None:
        """Disparity, 0..1."""
        return self.clip.disparity

    def entities(self, rgb: np.ndarray) -> np.ndarray | None:
        """Ids."""
        return self.clip.ids


def make_measure(name: str, *, package: Path | None, folder: Path, labels: Labels) -> Measure:
    """A measure with random weights."""
    none = FeatureWeights(network="dino", key="dino", path=folder, sha256="random")
    if name == NAMES[0]:
        return SubjectConsistency(NetworkFeatures(none, prepare=dino_pixels, load=_random_dino))
    if name == NAMES[1]:
        return BackgroundConsistency(NetworkFeatures(none, prepare=clip_pixels, load=_random_clip))
    if name == NAMES[2]:
        return MotionSmoothness(FlowMidFrames())
    if name in AGAINST_LABELS:
        return AGAINST_LABELS[name](labels)
    if name == "edges":
        return EdgeAgreement()
    assert package is not None
    return MotionSmoothness(AmtMidFrames(_random_amt(folder, package), package=package))


def peak_mib() -> float:
    """The largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def make_video(index: int, *, config: WorldConfig) -> ArrayVideo:
    """A clip of the world as a sample whose maps are right."""
    clip = make_clip(index, seed=0, config=config)
    assert clip.entity_ids is not None and clip.depth is not None
    disparity = clip.depth.astype(np.float32) / np.float32(65535)
    return ArrayVideo(
        name=str(index),
        frames=clip.rgb,
        task="depth",
        colours=depth_colours.encode(disparity),
        ids=clip.entity_ids.astype(np.int32),
        disparity=disparity,
    )


def shortened(clip: ArrayVideo) -> ArrayVideo:
    """The first frames of a clip."""
    parts = {
        name: np.ascontiguousarray(getattr(clip, name)[:3])
        for name in ("frames", "colours", "ids", "disparity")
    }
    return replace(clip, **parts)


def measure(name: str, videos: int, package: Path | None, sender) -> None:
    """One row, sent to the parent."""
    torch.set_num_threads(1)
    frames, height, width = SIZE
    world = WorldConfig(frames=frames, height=height, width=width)
    clips = (make_video(i, config=world) for i in range(videos))
    labels = Labels()
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        judge = make_measure(name, package=package, folder=Path(folder), labels=labels)
        # One clip made: what making it takes is no part of the growth.
        first = next(clips)
        before = peak_mib()
        # Networks are loaded with the first frames.
        labels.clip = shortened(first)
        judge.features(labels.clip)
        rows, peaks = [], []
        for clip in itertools.chain([first], clips):
            labels.clip = clip
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
    for name in NAMES if has_amt else NAMES[:-1]:
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
