"""Videos that lie in memory, for tests and for samples that were just made."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from sat_udpdiff.config import Task
from sat_udpdiff.generation import GeneratedSample


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ArrayVideo:
    """A `Video` of given arrays."""

    name: str
    frames: UInt8[np.ndarray, "t h w 3"]
    prompt: str = ""
    task: Task | None = None
    fps: float = 8.0
    path: Path | None = None
    colours: UInt8[np.ndarray, "t h w 3"] | None = None
    """Of the dense map."""
    ids: Int32[np.ndarray, "t h w"] | None = None
    disparity: Float32[np.ndarray, "t h w"] | None = None

    @classmethod
    def of_sample(cls, sample: GeneratedSample, *, name: str, fps: float) -> "ArrayVideo":
        """A sample that was just made."""
        return cls(
            name=name,
            frames=sample.rgb,
            prompt=sample.prompt,
            task=sample.task,
            fps=fps,
            colours=sample.dense,
            ids=sample.entity_ids,
            disparity=sample.depth,
        )

    @property
    def digest(self) -> str:
        """SHA-256 of shapes, types and contents."""
        digest = hashlib.sha256()
        for array in (self.frames, self.colours, self.ids, self.disparity):
            if array is None:
                digest.update(b"none")
                continue
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def rgb(self) -> UInt8[np.ndarray, "t h w 3"]:
        """The frames."""
        return self.frames

    def dense(self) -> UInt8[np.ndarray, "t h w 3"] | None:
        """The dense map in colours, None without one."""
        return self.colours

    def entity_ids(self) -> Int32[np.ndarray, "t h w"] | None:
        """Entity of each pixel over the whole clip, 0 = unlabelled; None where unknown."""
        return self.ids

    def depth(self) -> Float32[np.ndarray, "t h w"] | None:
        """Disparity in [0, 1], 1 = near; None where unknown."""
        return self.disparity
