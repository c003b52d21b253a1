"""Does a dense map belong to its video, whatever they show? Its edges against those of the picture.

A dense map has an edge where an entity ends or depth jumps, and there the picture mostly has one,
too; the picture has more. So the precision of the map's edges says most, and what counts is how far
it lies above that of a map that belongs to another video: pictures with many edges everywhere meet
any map. Edge maps are kept as bits of a small size, and pairs of them are scored later, so that
videos need not be read twice.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

from sat_udpdiff.config import Task
from sat_udpdiff.evaluation.measure import (
    Fact,
    Features,
    Measure,
    Score,
    UnusableError,
    Video,
    mean_score,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class EdgeSettings:
    """How edges are found and compared."""

    short_side: int = 96
    """Larger pictures are made this high (or wide) first, pixels: finer edges are texture."""
    frames: int = 9
    """Looked at per clip, evenly spaced, the first and the last among them."""
    share: float = 0.1
    """Of the pixels of a frame whose gradient may begin an edge, 0..1: pictures of little contrast
    and colourful ones have about as many."""
    least_step: float = 8.0
    """Gradient of an edge at least, levels (0..255) per pixel: a codec's ripples are no edges."""
    tolerance: int = 1
    """Edges match within this many pixels of the reduced size."""


class EdgeAgreement(Measure):
    """See the module.

    Args:
        settings: None = the defaults.
    """

    name = "edge"
    tasks: frozenset[Task | None] = frozenset({"segmentation", "depth"})

    def __init__(self, settings: EdgeSettings | None = None) -> None:
        self._settings = settings or EdgeSettings()

    @property
    def key(self) -> str:
        """The settings, and the version of the features."""
        return f"edge 1 {asdict(self._settings)}"

    def features(self, video: Video) -> Features:
        """Packed edge maps of the picture and of the dense map, and their true shape.

        Raises:
            UnusableError: There is no dense map, or it differs in size or length.
        """
        rgb, dense = video.rgb(), video.dense()
        if dense is None:
            raise UnusableError("no dense map")
        if dense.shape != rgb.shape:
            raise UnusableError(
                f"the dense map is {_size(dense)}, the video {_size(rgb)} (frames, height, width)"
            )
        places = np.unique(np.linspace(0, len(rgb) - 1, self._settings.frames).round().astype(int))
        of_rgb, of_dense = (
            np.stack([find_edges(clip[t], settings=self._settings) for t in places])
            for clip in (rgb, dense)
        )
        return {
            "rgb": np.packbits(of_rgb),
            "dense": np.packbits(of_dense),
            "shape": np.array(of_rgb.shape, np.int64),
        }

    def scores(
        self, features: Mapping[str, Features], *, references: Mapping[str, Features]
    ) -> list[Score]:
        """Agreement of each video with its own map, and how far that lies above chance.

        Chance is its agreement with another video's map, whose mean is the fact `by_chance`. The
        other is the next of the set with edge maps of the same size; the last takes the first.

        Raises:
            ValueError: Less than two videos are of one size.
        """
        own: dict[str, float] = {}
        chance: dict[str, float] = {}
        for names in _by_shape(features).values():
            for name, other in zip(names, names[1:] + names[:1], strict=True):
                if name == other:
                    continue  # alone of its size: no chance level
                rgb = _unpacked(features[name], "rgb")
                own[name] = self._precision(rgb, _unpacked(features[name], "dense"))
                chance[name] = self._precision(rgb, _unpacked(features[other], "dense"))
        if not own:
            raise ValueError(
                f"edge: expected 2 or more videos of one size, for the level by chance; "
                f"got {len(features)}"
            )
        facts: dict[str, Fact] = {
            "num_videos": len(own),
            "alone_of_their_size": len(features) - len(own),
            "short_side": self._settings.short_side,
            "tolerance_px": self._settings.tolerance,
        }
        above = {name: own[name] - chance[name] for name in own}
        return [
            mean_score(
                "edge_agreement",
                own,
                higher_is_better=True,
                facts={**facts, "by_chance": float(np.mean(list(chance.values())))},
            ),
            mean_score("edge_agreement_above_chance", above, higher_is_better=True, facts=facts),
        ]

    def _precision(self, rgb: Bool[np.ndarray, "t h w"], dense: Bool[np.ndarray, "t h w"]) -> float:
        return edge_precision(rgb, dense, tolerance=self._settings.tolerance)


def find_edges(
    frame: UInt8[np.ndarray, "h w 3"], *, settings: EdgeSettings
) -> Bool[np.ndarray, "h2 w2"]:
    """Canny edges of a reduced frame, of whichever channel has the largest gradient at a pixel."""
    height, width = frame.shape[:2]
    factor = min(1.0, settings.short_side / min(height, width))
    size = max(2, round(width * factor)), max(2, round(height * factor))
    small = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    # Sobel's weights sum to 8 levels per pixel of slope 1.
    slopes = np.stack([cv2.Sobel(small, cv2.CV_16S, 1, 0), cv2.Sobel(small, cv2.CV_16S, 0, 1)])
    strength = np.hypot(*slopes.astype(np.float32))  # (h2, w2, 3)
    best = strength.argmax(-1)[..., None]
    x, y = (np.take_along_axis(slope, best, axis=-1)[..., 0] for slope in slopes)
    most = strength.max(-1)
    high = max(8 * settings.least_step, float(np.quantile(most, 1 - settings.share)))
    low = max(8 * settings.least_step, high / 2)
    return cv2.Canny(np.ascontiguousarray(x), np.ascontiguousarray(y), low, high) > 0


def edge_precision(
    rgb: Bool[np.ndarray, "t h w"], dense: Bool[np.ndarray, "t h w"], *, tolerance: int
) -> float:
    """Share of the map's edge pixels that lie within `tolerance` pixels of the picture's, 0..1.

    A map without edges has found nothing: 0.
    """
    kernel = np.ones((2 * tolerance + 1, 2 * tolerance + 1), np.uint8)
    near = np.stack([cv2.dilate(frame.astype(np.uint8), kernel) > 0 for frame in rgb])
    return float((dense & near).sum() / max(1, dense.sum()))


def _size(clip: UInt8[np.ndarray, "t h w 3"]) -> str:
    return "x".join(map(str, clip.shape[:3]))


def _by_shape(features: Mapping[str, Features]) -> dict[tuple[int, ...], list[str]]:
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, found in features.items():
        groups.setdefault(tuple(found["shape"].tolist()), []).append(name)
    return groups


def _unpacked(features: Features, which: str) -> Bool[np.ndarray, "t h w"]:
    shape = tuple(features["shape"].tolist())
    bits = np.unpackbits(features[which], count=int(np.prod(shape)))
    return bits.astype(bool).reshape(shape)
