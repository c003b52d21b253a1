"""Tiny samples, made once, and measures that cost nothing."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sat_udpdiff.config_io import save_config
from sat_udpdiff.distributed import Place
from sat_udpdiff.evaluation.agreement import foreground_iou
from sat_udpdiff.evaluation.measure import (
    Features,
    Measure,
    Score,
    UnusableError,
    Video,
    mean_score,
)
from sat_udpdiff.model.transformer import build_network, initialise
from sat_udpdiff.sample import main
from tests.conftest import SmallWorld

PROMPTS = ("a red disc moves left", "a blue square stays still")


class Brightness(Measure):
    """Mean of a video; counts how often it was asked."""

    name = "brightness"

    def __init__(self, key: str = "1") -> None:
        self._key = key
        self.asked: list[str] = []

    @property
    def key(self) -> str:
        return self._key

    def features(self, video: Video) -> Features:
        self.asked.append(video.name)
        return {"mean": np.array(video.rgb().mean())}

    def scores(
        self, features: Mapping[str, Features], *, references: Mapping[str, Features]
    ) -> list[Score]:
        values = {name: float(found["mean"]) for name, found in features.items()}
        return [mean_score("brightness", values, higher_is_better=True)]


class Motion(Brightness):
    """Refuses videos of one frame."""

    name = "motion"

    def features(self, video: Video) -> Features:
        self.asked.append(video.name)
        rgb = video.rgb().astype(np.float32)
        if len(rgb) < 2:
            raise UnusableError(f"expected 2 or more frames, got {len(rgb)}")
        return {"mean": np.abs(np.diff(rgb, axis=0)).mean(axis=(1, 2, 3))}

    def scores(
        self, features: Mapping[str, Features], *, references: Mapping[str, Features]
    ) -> list[Score]:
        values = {name: float(found["mean"].mean()) for name, found in features.items()}
        return [mean_score("motion", values, higher_is_better=False)]


class Agreement(Brightness):
    """Of a video and its map, for samples that have one."""

    name = "agreement"
    tasks = frozenset({"segmentation", "depth"})

    def features(self, video: Video) -> Features:
        self.asked.append(video.name)
        dense = video.dense()
        assert dense is not None
        return {"mean": np.array(foreground_iou(video.rgb(), dense))}

    def scores(
        self, features: Mapping[str, Features], *, references: Mapping[str, Features]
    ) -> list[Score]:
        values = {name: float(found["mean"]) for name, found in features.items()}
        return [mean_score("foreground_iou", values, higher_is_better=True)]


class Shift(Brightness):
    """Distance of two sets' means; wants a number of videos, as FVD does."""

    name = "shift"
    compares_with_references = True

    def __init__(self, *, min_videos: int = 2) -> None:
        super().__init__()
        self.min_videos = min_videos

    def scores(
        self, features: Mapping[str, Features], *, references: Mapping[str, Features]
    ) -> list[Score]:
        for what, found in (("samples", features), ("references", references)):
            if len(found) < self.min_videos:
                raise ValueError(
                    f"shift: expected {self.min_videos} {what} or more, got {len(found)}"
                )
        ours, theirs = (
            np.mean([float(found["mean"]) for found in some.values()])
            for some in (features, references)
        )
        value = abs(float(ours) - float(theirs))
        return [Score(name="shift", value=value, higher_is_better=False, facts={"n": 2})]


@pytest.fixture(scope="session")
def small_checkpoint(small_world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of weights of the small world, drawn at random, with its configuration."""
    folder = tmp_path_factory.mktemp("small_checkpoint")
    config = small_world.config(folder / "run")
    network = build_network(config.model, dtype=torch.float32, device="cpu")
    initialise(network, 0)
    save_file(network.state_dict(), folder / "network.safetensors")
    save_config(config, folder / "config.yaml")
    return folder


@pytest.fixture(scope="session")
def tiny_samples(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two prompts, each sampled for segmentation and for depth, 9x32x48, in two steps."""
    folder = tmp_path_factory.mktemp("tiny_samples")
    for task in ("segmentation", "depth"):
        words = ["--load", str(small_checkpoint), "--output", str(folder), "--task", task]
        for prompt in PROMPTS:
            words += ["--prompt", prompt]
        assert main(words) == 0
    return folder


@pytest.fixture
def samples(tiny_samples: Path, tmp_path: Path) -> Path:
    """A copy of the samples that a test may damage."""
    return shutil.copytree(tiny_samples, tmp_path / "samples")


@pytest.fixture
def place() -> Callable[..., Place]:
    """A process among several."""

    def make(rank: int = 0, world_size: int = 1) -> Place:
        return Place(
            rank=rank,
            world_size=world_size,
            local_rank=rank,
            device=torch.device("cpu"),
            backend="gloo",
        )

    return make
