"""FVD as a measure of videos: I3D by default, or any other network that gives a video a vector."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float64, UInt8

from sat_udpdiff.evaluation.fvd import (
    COVARIANCES,
    Covariance,
    FvdProtocol,
    bootstrap_distance,
    frechet_distance,
)
from sat_udpdiff.evaluation.i3d import I3dFeatures
from sat_udpdiff.evaluation.measure import Fact, Features, Measure, Score, UnusableError, Video

_NAMED = 5
"""Videos that a message names."""


@runtime_checkable
class VideoFeatures(Protocol):
    """A network that gives a video a vector; `I3dFeatures` is one."""

    @property
    def key(self) -> str:
        """All that the vector depends on besides the video: weights by SHA-256, pixels, version."""
        ...

    @property
    def dim(self) -> int:
        """Numbers in the vector."""
        ...

    def __call__(self, rgb: UInt8[np.ndarray, "t h w 3"]) -> Float64[np.ndarray, " d"]:
        """The vector; UnusableError where the network cannot see the video (too short)."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class FvdSettings:
    """What does not change features."""

    min_videos: int = 64
    """Fewer in a set are an error, >= 2. The covariance has full rank with more than 400 only (of
    I3D's features), and numbers are published of 1024 (the paper) and 2048 (StyleGAN-V)."""
    resamples: int = 100
    """Of the bootstrap; each takes as long as the distance."""
    seed: int = 0

    def __post_init__(self):
        if self.min_videos < 2:
            raise ValueError(f"fvd.min_videos: expected 2 or more, got {self.min_videos}")
        if self.resamples < 2:
            raise ValueError(f"fvd.resamples: expected 2 or more, got {self.resamples}")


class Fvd(Measure):
    """Frechet distance of generated videos from real ones; lower is better.

    Args:
        network: Gives a video its vector.
        protocol: Decides the covariance. None where no FVD tool knows the network: unbiased, and
            the number is no FVD of the papers.
        settings: Of the distance.
        score: Name of the score, for a network other than I3D.
    """

    name = "fvd"
    compares_with_references = True

    def __init__(
        self,
        network: VideoFeatures,
        *,
        protocol: FvdProtocol | None,
        settings: FvdSettings | None = None,
        score: str = "fvd",
    ):
        self._network = network
        self._protocol: FvdProtocol | None = protocol
        self._settings, self._score = settings or FvdSettings(), score
        self.min_videos = self._settings.min_videos

    @classmethod
    def of_i3d(
        cls,
        weights: str | Path,
        *,
        protocol: FvdProtocol = "styleganv",
        settings: FvdSettings | None = None,
        device: torch.device | str = "cpu",
    ) -> "Fvd":
        """FVD by I3D's weights, a file or its folder; see `I3dFeatures.load`."""
        network = I3dFeatures.load(weights, protocol=protocol, device=device)
        return cls(network, protocol=protocol, settings=settings)

    @property
    def key(self) -> str:
        """The network's."""
        return f"fvd {self._network.key}"

    @property
    def covariance(self) -> Covariance:
        """That of the protocol."""
        return "unbiased" if self._protocol is None else COVARIANCES[self._protocol]

    def features(self, video: Video) -> Features:
        """The vector of all frames, and what must be the same for all videos.

        Raises:
            UnusableError: Too few frames, or the vector is not finite.
            ValueError: The network gives a vector of another length than it says.
        """
        rgb = video.rgb()
        vector = self._network(rgb)
        if vector.shape != (self._network.dim,):
            raise ValueError(
                f"{self._network.key}: expected {self._network.dim} features, got {vector.shape}"
            )
        if not np.isfinite(vector).all():
            raise UnusableError("its features are not finite")
        shape = np.array(rgb.shape[:3], dtype=np.int64)
        return {
            "vector": vector,
            "frames_height_width": shape,
            "fps": np.array([video.fps], np.float64),
        }

    def scores(
        self, features: Mapping[str, Features], *, references: Mapping[str, Features]
    ) -> list[Score]:
        """The distance with its interval and all that it depends on.

        Raises:
            ValueError: Too few videos, videos of different length, rate or size, or features that
                are not finite or of different length; names the videos.
        """
        for what, videos in (("videos", features), ("reference videos", references)):
            if len(videos) < self._settings.min_videos:
                raise ValueError(
                    f"{self._score}: expected {self._settings.min_videos} or more {what} "
                    f"(fvd.min_videos), got {len(videos)}"
                )
        frames, height, width, fps = self._common_format(features, references)
        rows, other = self._rows(features), self._rows(references)
        value = frechet_distance(rows, references=other, covariance=self.covariance)
        spread = bootstrap_distance(
            rows,
            references=other,
            covariance=self.covariance,
            resamples=self._settings.resamples,
            seed=self._settings.seed,
        )
        full_rank = min(len(rows), len(other)) > rows.shape[1]
        facts: dict[str, Fact] = {
            "N": len(rows),
            "N_reference": len(other),
            "T": frames,
            "fps": fps,
            "resolution": f"{height}x{width}",
            "protocol": self._protocol,
            "covariance": self.covariance,
            "features": self._network.key,
            "full_rank": full_rank,
            "bootstrap_excess": spread.excess,
        }
        if not full_rank:
            facts["warning"] = (
                f"{min(len(rows), len(other))} videos cannot tell {rows.shape[1]} features apart: "
                "compare with numbers of equal N only"
            )
        return [
            Score(
                name=self._score,
                value=value,
                higher_is_better=False,
                interval=spread.interval,
                facts=facts,
            )
        ]

    def _common_format(
        self, features: Mapping[str, Features], references: Mapping[str, Features]
    ) -> tuple[int, int, int, float]:
        """(frames, height, width, frames per second) of every video of both sets."""
        formats = [(name, _format(one)) for name, one in features.items()]
        formats += [(f"reference {name}", _format(one)) for name, one in references.items()]
        ((common, count), *others) = Counter(one for _, one in formats).most_common()
        if others:
            odd = [f"{name}: {_in_words(one)}" for name, one in formats if one != common]
            more = f" and {len(odd) - _NAMED} more" if len(odd) > _NAMED else ""
            raise ValueError(
                f"{self._score}: expected videos of one length, rate and size; {count} are "
                f"{_in_words(common)}, others are not: {'; '.join(odd[:_NAMED])}{more}"
            )
        return common

    def _rows(self, features: Mapping[str, Features]) -> Float64[np.ndarray, "n d"]:
        vectors = {name: np.asarray(one["vector"], np.float64) for name, one in features.items()}
        dim = self._network.dim
        for fault, names in (
            (f"{dim} features per video", [n for n, v in vectors.items() if v.shape != (dim,)]),
            ("finite features", [n for n, v in vectors.items() if not np.isfinite(v).all()]),
        ):
            if names:
                more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
                listed = ", ".join(names[:_NAMED]) + more
                raise ValueError(f"{self._score}: expected {fault}, got others for {listed}")
        return np.stack(list(vectors.values()))


def _format(features: Features) -> tuple[int, int, int, float]:
    frames, height, width = (int(number) for number in features["frames_height_width"])
    # Containers store rates as fractions: 23.976 and 24000/1001 are one.
    return frames, height, width, round(float(features["fps"][0]), 3)


def _in_words(one: tuple[int, int, int, float]) -> str:
    frames, height, width, fps = one
    return f"{frames} frames of {height}x{width} at {fps:g} fps"
