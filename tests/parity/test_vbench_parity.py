"""Our measures against the vbench package, on random weights, from mp4 files to JSON files.

sh .ci/install_vbench .venv/bin .cache/vbench
UDPDIFF_VBENCH=.cache/vbench pytest tests/parity/test_vbench_parity.py
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from data_loaders.decode import decode_as_vbench, encode_rgb
from data_loaders.synthetic import WorldConfig, make_clip
from sat_udpdiff.evaluation.arrays import ArrayVideo
from sat_udpdiff.evaluation.feature_networks import load_dino
from sat_udpdiff.evaluation.feature_weights import find_feature_weights
from sat_udpdiff.evaluation.frame_features import (
    clip_features,
    clip_pixels,
    dino_features,
    dino_pixels,
)
from sat_udpdiff.evaluation.measure import Measure, Score
from sat_udpdiff.evaluation.motion_smoothness import AmtMidFrames
from sat_udpdiff.evaluation.vbench_files import JudgedVideo, eval_results, full_info
from sat_udpdiff.evaluation.vbench_measures import (
    BackgroundConsistency,
    MotionSmoothness,
    SubjectConsistency,
)

ORACLE = Path(__file__).with_name("vbench_oracle.py")
# Frames, height, width. 132 wide: 224 x 231 for DINO, as many patches as trained on but not square.
# 8 frames: the last has no successor. 5 frames, 113 high: AMT pads to 128.
SIZES = {
    "a dog-0": (9, 128, 176),
    "wide": (8, 130, 242),
    "near square": (5, 128, 132),
    "low-12": (5, 114, 148),
}


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What VBench made of a folder of videos, and what it was given."""

    folder: Path
    results: dict
    info: list
    features: dict[str, np.ndarray]

    @property
    def videos(self) -> list[Path]:
        return sorted((self.folder / "videos").glob("*.mp4"))


@pytest.fixture(scope="module")
def packages() -> Path:
    named = os.environ.get("UDPDIFF_VBENCH")
    how = "`sh .ci/install_vbench .venv/bin FOLDER` makes it, then set UDPDIFF_VBENCH=FOLDER"
    if not named:
        pytest.skip(f"NOT COMPARED WITH VBENCH: no folder of its packages given; {how}")
    if not (Path(named) / "vbench").is_dir():
        pytest.skip(f"NOT COMPARED WITH VBENCH: no package vbench in {named}; {how}")
    return Path(named).resolve()


def ask(command: str, *, packages: Path, folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ORACLE), command, str(packages), str(folder)],
        capture_output=True, text=True, timeout=800, env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def weights(packages, tmp_path_factory):
    """Folder with random dino.pth, clip.pth and amt-s.pth; 700 MB, so removed at the end."""
    folder = tmp_path_factory.mktemp("vbench")
    ask("weights", packages=packages, folder=folder)
    yield folder
    shutil.rmtree(folder)


def judge(weights: Path, name: str, *, packages: Path, clips: dict[str, np.ndarray]) -> Judged:
    folder = weights / name
    (folder / "videos").mkdir(parents=True)
    for file in ("dino.pth", "clip.pth", "amt-s.pth"):
        os.link(weights / file, folder / file)
    for clip, rgb in clips.items():
        (folder / "videos" / f"{clip}.mp4").write_bytes(encode_rgb(rgb, fps=8.0, codec="h264"))
    square = np.random.default_rng(0).standard_normal((2, 3, 224, 224)).astype(np.float32)
    np.save(folder / "square.npy", square)
    ask("judge", packages=packages, folder=folder)
    with np.load(folder / "features.npz") as features:
        return Judged(
            folder=folder,
            results=json.loads((folder / "vbench" / "random_eval_results.json").read_text()),
            info=json.loads((folder / "vbench" / "random_full_info.json").read_text()),
            features=dict(features),
        )


@pytest.fixture(scope="module")
def judged(weights, packages):
    clips = {}
    for i, (name, (frames, height, width)) in enumerate(SIZES.items()):
        world = WorldConfig(frames=frames, height=height, width=width)
        clips[name] = make_clip(i, seed=7, config=world).rgb
    # One that jumps: likenesses far from 1, some of them negative.
    clips["wide"][3:5] = 255 - clips["wide"][3:5]
    return judge(weights, "made", packages=packages, clips=clips)


def found(weights: Path, network: str, file: str):
    return find_feature_weights(str(weights / file), network=network, key=network)


def measures(weights: Path, *, packages: Path) -> dict[str, Measure]:
    amt = AmtMidFrames(found(weights, "amt", "amt-s.pth"), package=packages / "vbench")
    made = [
        SubjectConsistency(dino_features(found(weights, "dino", "dino.pth"), chunk_frames=4)),
        BackgroundConsistency(clip_features(found(weights, "clip", "clip.pth"), chunk_frames=4)),
        MotionSmoothness(amt),
    ]
    return {measure.name: measure for measure in made}


@dataclass(frozen=True, kw_only=True)
class Ours:
    """The same by us."""

    scores: list[Score]
    videos: dict[str, JudgedVideo]


def our_scores(judged: Judged, *, packages: Path) -> Ours:
    # In VBench's order, which is the folder's.
    paths = [Path(entry["video_list"][0]) for entry in judged.info]
    scores = []
    for measure in measures(judged.folder, packages=packages).values():
        features = {}
        for path in paths:
            frames = decode_as_vbench(path, name=path.name)
            features[path.stem] = measure.features(ArrayVideo(name=path.stem, frames=frames))
        scores += measure.scores(features, references={})
    videos = {path.stem: JudgedVideo(path=str(path)) for path in paths}
    return Ours(scores=scores, videos=videos)


@pytest.fixture(scope="module")
def ours(judged, packages):
    return our_scores(judged, packages=packages)


def test_decoded_frames_are_equal(judged):
    for path in judged.videos:
        frames = decode_as_vbench(path, name=path.name)
        np.testing.assert_array_equal(frames, judged.features[f"{path.stem} frames"])


@pytest.mark.parametrize(("name", "prepare"), [("dino", dino_pixels), ("clip", clip_pixels)])
def test_prepared_pixels_are_equal(judged, name, prepare):
    for path in judged.videos:
        pixels = prepare(decode_as_vbench(path, name=path.name)).numpy()
        np.testing.assert_array_equal(pixels, judged.features[f"{path.stem} {name} pixels"])


def relative(ours, theirs):
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


@pytest.mark.parametrize(
    ("name", "file", "make"),
    [("dino", "dino.pth", dino_features), ("clip", "clip.pth", clip_features)],
)
def test_features_are_equal(judged, name, file, make):
    embed = make(found(judged.folder, name, file))
    for path in judged.videos:
        frames = decode_as_vbench(path, name=path.name, indices=[0, 1])
        assert relative(embed(frames), judged.features[f"{path.stem} {name}"]) < 2e-5, path.stem


def test_our_vit_is_that_of_timm(judged):
    square = torch.from_numpy(np.load(judged.folder / "square.npy"))
    network = load_dino(found(judged.folder, "dino", "dino.pth"))
    with torch.inference_mode():
        features = network(square).numpy()
    assert relative(features, judged.features["square"]) < 2e-5


TOLERANCES = {
    "subject_consistency": 1e-5,
    "background_consistency": 1e-5,
    "motion_smoothness": 1e-6,
}


def compare(ours: Ours, judged: Judged) -> None:
    mine = eval_results(ours.scores, videos=ours.videos)
    assert list(mine) == list(judged.results)
    for dimension, tolerance in TOLERANCES.items():
        (score, rows), (their_score, their_rows) = mine[dimension], judged.results[dimension]
        assert score == pytest.approx(their_score, abs=tolerance), dimension
        assert len(rows) == len(their_rows)
        for row, theirs in zip(rows, their_rows, strict=True):
            assert list(row) == list(theirs)
            assert row["video_path"] == theirs["video_path"]
            assert row["video_results"] == pytest.approx(theirs["video_results"], abs=tolerance)
            assert row.get("cnt_per_video") == theirs.get("cnt_per_video")


def test_scores_and_files_are_those_of_vbench(judged, ours):
    compare(ours, judged)
    assert full_info(list(ours.videos.values())) == judged.info


def test_the_comparison_can_fail(judged, ours):
    # Frames are not all alike, lengths matter, and the three measures do not say the same.
    values = [score.value for score in ours.scores]
    assert max(values) < 0.99 and len({round(value, 3) for value in values}) == 3
    for score in ours.scores[:2]:
        assert abs(score.value - np.mean(list(score.per_video.values()))) > 1e-4


@pytest.mark.shared
@pytest.mark.slow
def test_scores_of_real_clips_are_those_of_vbench(weights, packages, shared_clips):
    # Seven frames of 480x720: AMT takes 3 to 5 seconds for each it foretells.
    clips = {
        name: decode_as_vbench(shared_clips / f"{name}.mp4", name=name, indices=range(0, 14, 2))
        for name in ("hiker", "horse")
    }
    judged = judge(weights, "real", packages=packages, clips=clips)
    compare(our_scores(judged, packages=packages), judged)
