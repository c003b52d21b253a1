"""Real clips to compare with: of a folder of shards, or rendered of the synthetic world.

They have true ids and depth where the data has them, which no sample has.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32, UInt8, UInt16

from data_loaders.decode import decode_as_vbench
from data_loaders.geometry import fit_depth, fit_ids, fit_rgb
from data_loaders.order import ClipSize, frame_indices
from data_loaders.schema import DataError, Sample
from data_loaders.shard_format import LABEL_MEMBERS, RGB_MEMBERS
from data_loaders.shards import ShardIndex, StoredSample
from data_loaders.synthetic import WorldConfig, make_clip
from sat_udpdiff.config import Task
from sat_udpdiff.evaluation.measure import UnusableError
from sat_udpdiff.evaluation.videos import Found

_LARGEST_LABEL = 65535.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipFit:
    """Frames and size that clips are brought to, so that they compare with the samples."""

    size: ClipSize
    fps: float


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ClipVideo:
    """A clip of shards; `open` makes it."""

    stored: StoredSample
    record: Mapping[str, Any]
    fit: ClipFit | None = None
    """Cropped and resized as in training; None = as stored."""

    @classmethod
    def open(cls, stored: StoredSample, *, fit: ClipFit | None = None) -> "ClipVideo":
        """Read the record alone.

        Raises:
            UnusableError: It is damaged, or of too few frames for `fit`.
        """
        try:
            record = stored.record()
        except DataError as error:
            raise UnusableError(str(error)) from error
        if fit is not None:
            seconds, wanted = record["frames"] / record["fps"], fit.size.num_frames / fit.fps
            # Half a frame: rates such as 29.97 make no whole number of frames.
            if seconds < wanted - 0.5 / fit.fps:
                raise UnusableError(f"expected {wanted:.2f} s or more, got {seconds:.2f} s")
        return cls(stored=stored, record=record, fit=fit)

    @property
    def name(self) -> str:
        """Key in the shards."""
        return self.stored.key

    @property
    def prompt(self) -> str:
        """The long caption."""
        return self.record["caption_long"]

    @property
    def task(self) -> Task | None:
        """None: it has labels and no painted map."""
        return None

    @property
    def fps(self) -> float:
        """Frames per second."""
        return float(self.record["fps"]) if self.fit is None else self.fit.fps

    @property
    def path(self) -> None:
        """None: it lies in a tar."""
        return None

    @property
    def digest(self) -> str:
        """SHA-256 of the stored video and labels, and of what `fit` says.

        A damaged part counts as damaged: what wants to see it will find it unusable.
        """
        digest = hashlib.sha256(f"{self.fit}\n".encode())
        for member in (*RGB_MEMBERS, *LABEL_MEMBERS.values()):
            if member in self.stored.members:
                try:
                    content = self.stored.read_bytes(member)
                except DataError:
                    content = b"damaged"
                digest.update(f"{member} {len(content)}\n".encode())
                digest.update(content)
        return digest.hexdigest()

    def rgb(self) -> UInt8[np.ndarray, "t h w 3"]:
        """The frames; UnusableError where they are damaged."""
        try:
            name, content = self.stored.rgb_file()
            # As samples are decoded: two conversions of colours would be a distance.
            rgb = decode_as_vbench(content, name=name, indices=self._indices())
        except DataError as error:
            raise UnusableError(str(error)) from error
        return rgb if self.fit is None else fit_rgb(rgb, **self._extent(self.fit))

    def dense(self) -> None:
        """None: it has labels and no painted map."""

    def entity_ids(self) -> Int32[np.ndarray, "t h w"] | None:
        """True ids, 0 = unlabelled; None where the shards have none."""
        ids = self._labels("entity_ids")
        if ids is None:
            return None
        return (ids if self.fit is None else fit_ids(ids, **self._extent(self.fit))).astype(
            np.int32
        )

    def depth(self) -> Float32[np.ndarray, "t h w"] | None:
        """Disparity in [0, 1], 1 = near; None where the shards have none."""
        depth = self._labels("depth")
        if depth is None:
            return None
        fitted = depth if self.fit is None else fit_depth(depth, **self._extent(self.fit))
        return fitted.astype(np.float32) / np.float32(_LARGEST_LABEL)

    def _labels(self, name: str) -> UInt16[np.ndarray, "t h w"] | None:
        if LABEL_MEMBERS[name] not in self.stored.members:
            return None
        try:
            return self.stored.labels(name, indices=self._indices(), record=self.record)
        except DataError as error:
            raise UnusableError(str(error)) from error

    def _indices(self) -> list[int] | None:
        if self.fit is None:
            return None
        return frame_indices(
            num_frames=self.fit.size.num_frames,
            fps=self.fit.fps,
            source_frames=self.record["frames"],
            source_fps=self.record["fps"],
        )

    @staticmethod
    def _extent(fit: ClipFit) -> dict[str, Any]:
        return {"height": fit.size.height, "width": fit.size.width}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class WorldVideo:
    """A clip of the synthetic world, rendered when it is asked for, with its exact labels."""

    index: int
    """From `synthetic.HELD_OUT_START` on it is in no training set."""
    seed: int
    config: WorldConfig

    @property
    def name(self) -> str:
        """Key of the clip, as its shards would have it."""
        return self._clip().key

    @property
    def prompt(self) -> str:
        """The long caption."""
        return self._clip().caption_long

    @property
    def task(self) -> Task | None:
        """None: it has labels and no painted map."""
        return None

    @property
    def fps(self) -> float:
        """Frames per second."""
        return self.config.fps

    @property
    def path(self) -> None:
        """None: it has no file."""
        return None

    @property
    def digest(self) -> str:
        """SHA-256 of frames and labels."""
        clip = self._clip()
        digest = hashlib.sha256()
        for array in (clip.rgb, clip.entity_ids, clip.depth):
            assert array is not None
            digest.update(f"{array.dtype} {array.shape}\n".encode())
            digest.update(array.tobytes())
        return digest.hexdigest()

    def rgb(self) -> UInt8[np.ndarray, "t h w 3"]:
        """The frames."""
        return self._clip().rgb

    def dense(self) -> None:
        """None: it has labels and no painted map."""

    def entity_ids(self) -> Int32[np.ndarray, "t h w"]:
        """True ids; the world leaves no pixel unlabelled."""
        ids = self._clip().entity_ids
        assert ids is not None
        return ids.astype(np.int32)

    def depth(self) -> Float32[np.ndarray, "t h w"]:
        """True disparity, min-max over the clip, 1 = near."""
        depth = self._clip().depth
        assert depth is not None
        return depth.astype(np.float32) / np.float32(_LARGEST_LABEL)

    def _clip(self) -> Sample:
        return _render(self.index, self.seed, self.config)


@lru_cache(maxsize=1)
def _render(index: int, seed: int, config: WorldConfig) -> Sample:
    """The clip that is being looked at; one is kept, for it is asked for several times."""
    return make_clip(index, seed=seed, config=config)


def clips_in(
    shards: Path | str,
    *,
    count: int | None = None,
    keys: Sequence[str] | None = None,
    fit: ClipFit | None = None,
) -> Found:
    """Clips of a folder of shards in their order.

    Args:
        shards: Folder with a manifest, or its address.
        count: The first so many; None = all. Shards are written in an order that is drawn by hash,
            so the first ones are a fair choice.
        keys: Of the clips that are wanted, in that order; None = any.
        fit: What to bring them to; None = as stored.

    Returns:
        Clips; those that are damaged or too short are left out with reasons.

    Raises:
        DataError: The folder cannot be opened, or lacks a key.
    """
    index = ShardIndex.open(shards)
    stored = [index.sample(i) for i in range(len(index))]
    if keys is not None:
        by_key = {sample.key: sample for sample in stored}
        if missing := [key for key in keys if key not in by_key]:
            raise DataError(f"{shards}: expected clip {missing[0]!r}, found no such key")
        stored = [by_key[key] for key in keys]
    videos, left_out = [], {}
    for sample in stored[:count]:
        try:
            videos.append(ClipVideo.open(sample, fit=fit))
        except UnusableError as error:
            left_out[sample.key] = str(error)
    return Found(videos=tuple(videos), left_out=left_out)
