"""What is taken for the truth of a video: labels of the data set pipeline's own stages, or stored.

Nobody knows the depth and the entities of a generated video. The paper takes DepthCrafter's depth
for the truth; entities come from EntitySeg and SAM 2 here, as in the training data. Results are
kept by content where a folder is given, so that no clip goes through such a model twice.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32, Int32, UInt8, UInt16

from data_loaders.atomic_file import atomic_file
from data_loaders.decode import decode_labels, encode_labels
from data_loaders.panda_dense.depth import (
    DepthModel,
    DepthSettings,
    check_depth_model,
    load_depth_model,
)
from data_loaders.panda_dense.models import ModelFacts, Pieces, free_device_memory
from data_loaders.panda_dense.propagate import EntityTracker, PropagateSettings, check_tracking
from data_loaders.panda_dense.segment import (
    Segmenter,
    SegmentSettings,
    check_segmenter,
    load_segmenter,
)
from data_loaders.schema import DataError
from sat_udpdiff.evaluation.measure import NoRoomError, UnusableError, Video

_LOG = logging.getLogger(__name__)
_Result = TypeVar("_Result")


@runtime_checkable
class DepthTruth(Protocol):
    """What says how far everything in a video is."""

    @property
    def name(self) -> str:
        """A few words for tables."""
        ...

    @property
    def key(self) -> str:
        """All that the answer depends on besides the frames: model, weights, settings."""
        ...

    def depth(self, rgb: UInt8[np.ndarray, "t h w 3"]) -> Float32[np.ndarray, "t h w"]:
        """Disparity in [0, 1], min-max over the clip, 1 = near.

        Raises:
            UnusableError: There is none for this video.
        """
        ...


@runtime_checkable
class EntityTruth(Protocol):
    """What says which pixels of a video belong together."""

    @property
    def name(self) -> str:
        """A few words for tables."""
        ...

    @property
    def key(self) -> str:
        """All that the answer depends on besides the frames."""
        ...

    def entities(self, rgb: UInt8[np.ndarray, "t h w 3"]) -> Int32[np.ndarray, "t h w"]:
        """Entity of each pixel, the same id over the whole clip; 0 = unlabelled.

        Raises:
            UnusableError: There is none for this video.
        """
        ...


class PipelineDepth:
    """Depth by the stage `depth`: DepthCrafter, or Depth Anything V2 frame by frame.

    Args:
        settings: Of the stage.
        device: Where the model runs.
        folder: Where results are kept; None = nowhere.

    Raises:
        DataError: A setting is out of range; names it.
        ValueError: The backend is no model, or there are no such weights; says where they are to
            be had. Nothing was loaded.
    """

    def __init__(
        self, settings: DepthSettings, *, device: torch.device, folder: Path | None = None
    ) -> None:
        if settings.backend != "model":
            raise ValueError(
                f"depth.backend: expected 'model' for a truth, got {settings.backend!r}: without a "
                "model there is no depth"
            )
        check_depth_model(settings)
        self._settings, self._device, self._folder = settings, device, folder
        self._model: DepthModel | None = None

    @property
    def name(self) -> str:
        """Method and weights."""
        chosen = self._settings
        is_crafter = chosen.method == "depthcrafter"
        weights = chosen.depthcrafter.unet if is_crafter else chosen.depth_anything.weights
        return f"{chosen.method} {_weights_name(weights)}"

    @property
    def key(self) -> str:
        """Method, settings and revision of the weights; loads the model the first time."""
        method = self._settings.method
        return _key(method, asdict(getattr(self._settings, method)), facts=[self._loaded().facts])

    def depth(self, rgb: UInt8[np.ndarray, "t h w 3"]) -> Float32[np.ndarray, "t h w"]:
        """Disparity of a clip, to the nearest of 65536 levels.

        Raises:
            UnusableError: It is one distance everywhere, not finite, or does not fit on the device.
        """
        levels = _kept(rgb, key=self.key, folder=self._folder, make=lambda: self._estimate(rgb))
        return levels.astype(np.float32) / np.float32(65535)

    def _loaded(self) -> DepthModel:
        if self._model is None:
            self._model = load_depth_model(self._settings, device=self._device)
        return self._model

    def _estimate(self, rgb: UInt8[np.ndarray, "t h w 3"]) -> UInt16[np.ndarray, "t h w"]:
        model = self._loaded()
        # The content decides the noise, not the name: equal videos have equal depth.
        name = rgb_digest(rgb)[:16]
        try:
            found = in_pieces(lambda: model.estimate(rgb, key=name), pieces=[model.pieces])
        except DataError as error:
            raise UnusableError(f"no true depth: {error}") from error
        if found.is_flat:
            raise UnusableError("no true depth: one distance everywhere")
        return found.depth


class PipelineEntities:
    """Entities by the stages `segment` and `propagate`: EntitySeg and SAM 2, or without weights.

    Args:
        segment: Settings of the first frame.
        propagate: Settings of the way through the clip. Its least coverage, which drops clips from
            a data set, is not looked at.
        device: Where the models run.
        folder: Where results are kept; None = nowhere.

    Raises:
        DataError: A setting is out of range; names it.
        ValueError: A backend makes no labels, or there are no such weights; says where they are to
            be had. Nothing was loaded.
    """

    def __init__(
        self,
        segment: SegmentSettings,
        *,
        propagate: PropagateSettings,
        device: torch.device,
        folder: Path | None = None,
    ) -> None:
        for section, backend in {
            "segment": segment.backend,
            "propagate": propagate.backend,
        }.items():
            if backend == "synthetic":
                raise ValueError(
                    f"{section}.backend: expected 'model' or 'classical' for a truth, got "
                    "'synthetic': a video has no exact ids"
                )
        if segment.backend == "model":
            check_segmenter(segment)
        check_tracking(propagate, segment=segment)
        self._segment, self._propagate = segment, propagate
        self._device, self._folder = device, folder
        self._models: tuple[Segmenter | None, EntityTracker] | None = None

    @property
    def name(self) -> str:
        """Methods and weights of the first frame and of the way through the clip."""
        first = self._segment.backend
        if first == "model":
            chosen = getattr(self._segment, self._segment.method)
            first = f"{self._segment.method} {_weights_name(chosen.weights)}"
        then = self._propagate.backend
        if then == "model":
            then = f"sam2 {_weights_name(self._propagate.sam2.weights)}"
        return f"{first}, {then}"

    @property
    def key(self) -> str:
        """Settings and revisions of the weights; loads the models the first time."""
        segmenter, tracker = self._loaded()
        facts = [tracker.facts] if segmenter is None else [segmenter.facts, tracker.facts]
        settings = {"segment": asdict(self._segment), "propagate": asdict(self._propagate)}
        return _key("entities", settings, facts=facts)

    def entities(self, rgb: UInt8[np.ndarray, "t h w 3"]) -> Int32[np.ndarray, "t h w"]:
        """Ids of a clip.

        Raises:
            UnusableError: No entity was found, or the clip does not fit on the device.
        """
        ids = _kept(rgb, key=self.key, folder=self._folder, make=lambda: self._track(rgb))
        return ids.astype(np.int32)

    def _loaded(self) -> tuple[Segmenter | None, EntityTracker]:
        if self._models is None:
            segmenter = None
            if not self._segment.starts_from_points:
                segmenter = load_segmenter(self._segment, device=self._device)
            tracker = EntityTracker.load(
                self._propagate, segment=self._segment, device=self._device
            )
            self._models = segmenter, tracker
        return self._models

    def _track(self, rgb: UInt8[np.ndarray, "t h w 3"]) -> UInt16[np.ndarray, "t h w"]:
        segmenter, tracker = self._loaded()
        first = None
        try:
            if segmenter is not None:
                found = in_pieces(lambda: segmenter.segment(rgb[:1])[0], pieces=[segmenter.pieces])
                if not found.scores:
                    raise UnusableError("no true entities: none was found")
                first = found.ids
            return in_pieces(lambda: tracker.track(rgb, first), pieces=tracker.pieces)
        except DataError as error:
            raise UnusableError(f"no true entities: {error}") from error


class StoredTruth:
    """Depth and entities that videos carry themselves, found by their frames.

    For worlds whose labels are exact; frames that are not among the videos have no truth.

    Args:
        videos: With true depth or ids. They are read once here, for their content, and not kept.
    """

    name = "stored with the videos"

    def __init__(self, videos: Iterable[Video]) -> None:
        self._videos = {rgb_digest(video.rgb()): video for video in videos}
        digests = "".join(sorted(video.digest for video in self._videos.values()))
        self._key = f"stored {hashlib.sha256(digests.encode()).hexdigest()}"

    @property
    def key(self) -> str:
        """Of everything that the videos hold."""
        return self._key

    def depth(self, rgb: UInt8[np.ndarray, "t h w 3"]) -> Float32[np.ndarray, "t h w"]:
        """Disparity of the video with these frames.

        Raises:
            UnusableError: There is no such video, or it has no depth.
        """
        if (depth := self._find(rgb).depth()) is None:
            raise UnusableError("no true depth is stored with this video")
        return depth

    def entities(self, rgb: UInt8[np.ndarray, "t h w 3"]) -> Int32[np.ndarray, "t h w"]:
        """Ids of the video with these frames.

        Raises:
            UnusableError: There is no such video, or it has no ids.
        """
        if (ids := self._find(rgb).entity_ids()) is None:
            raise UnusableError("no true entities are stored with this video")
        return ids

    def _find(self, rgb: UInt8[np.ndarray, "t h w 3"]) -> Video:
        try:
            return self._videos[rgb_digest(rgb)]
        except KeyError:
            raise UnusableError("no truth is stored for these frames") from None


def rgb_digest(rgb: UInt8[np.ndarray, "t h w 3"]) -> str:
    """SHA-256 of the size and the content, in hex."""
    digest = hashlib.sha256(str(rgb.shape).encode())
    digest.update(np.ascontiguousarray(rgb).data)
    return digest.hexdigest()


def in_pieces(call: Callable[[], _Result], *, pieces: Sequence[Pieces]) -> _Result:
    """Run `call`; where the device is full, again with smaller and smaller pieces.

    Raises:
        NoRoomError: It does not fit in the smallest ones.
    """
    try:
        while True:
            try:
                return call()
            except torch.OutOfMemoryError as error:
                message = str(error).partition("\n")[0]
            free_device_memory()
            # All, and not the first that can: which of them was too large is not known.
            shrunk = [of.shrink() for of in pieces]
            if not any(shrunk):
                raise NoRoomError(f"no truth: out of GPU memory: {message}")
    finally:
        for of in pieces:
            of.restore()


def _weights_name(weights: str) -> str:
    """A hub id, or the folder's name: where it lies on a machine is no matter of a table."""
    return Path(weights).name if Path(weights).expanduser().is_dir() else weights


def _key(method: str, settings: dict, *, facts: Sequence[ModelFacts]) -> str:
    rows = [fact.as_row() for fact in facts]
    return json.dumps({"method": method, "settings": settings, "models": rows}, sort_keys=True)


def _kept(
    rgb: UInt8[np.ndarray, "t h w 3"],
    *,
    key: str,
    folder: Path | None,
    make: Callable[[], UInt16[np.ndarray, "t h w"]],
) -> UInt16[np.ndarray, "t h w"]:
    """What `make` gives, read from the folder where it was made before."""
    if folder is None:
        return make()
    name = hashlib.sha256(f"{key} {rgb_digest(rgb)}".encode()).hexdigest()[:32]
    path = folder / f"{name}.mkv"
    if path.is_file():
        try:
            return decode_labels(path.read_bytes(), name=str(path))
        except DataError as error:
            _LOG.warning("made again: %s", error)
    labels = make()
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write(encode_labels(labels, fps=8.0))  # a clip's rate is of no matter here
    return labels
