"""The filter columns of a Panda-70M CSV by clip, for videos that were cut without them."""

import hashlib
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32, Int16, UInt8, UInt64

from data_loaders.panda_dense.panda_csv import PandaClip
from data_loaders.panda_dense.sidecars import ClipSource, span_key
from data_loaders.schema import DataError

_UNKNOWN = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class PandaTable:
    """15 bytes per clip, sorted by a hash of the key; a wrong hit comes once in 10^5 such files."""

    hashes: UInt64[np.ndarray, "n"]
    scores: Float32[np.ndarray, "n"]
    desirable: UInt8[np.ndarray, "n"]
    """Index in `words`."""
    shots: Int16[np.ndarray, "n"]
    """-1 = unknown."""
    words: tuple[str, ...]

    @classmethod
    def of(cls, clips: Iterable[PandaClip]) -> "PandaTable":
        """Read every clip once.

        Raises:
            DataError: More than 256 different words in `desirable_filtering`, which has six.
        """
        hashes, scores, desirable, shots = array("Q"), array("f"), array("B"), array("h")
        words: dict[str, int] = {}
        for clip in clips:
            number = words.setdefault(clip.desirable, len(words))
            if number > 255:
                raise DataError(
                    f"desirable_filtering: expected a few different words, got {clip.desirable!r} "
                    "after 256 others"
                )
            hashes.append(_hash(span_key(clip.video_id, start=clip.start, end=clip.end)))
            scores.append(clip.matching_score)
            desirable.append(number)
            shots.append(_UNKNOWN if clip.shots is None else min(clip.shots, 2**15 - 1))
        order = np.argsort(np.frombuffer(hashes, np.uint64), kind="stable")
        return cls(
            hashes=np.frombuffer(hashes, np.uint64)[order],
            scores=np.frombuffer(scores, np.float32)[order],
            desirable=np.frombuffer(desirable, np.uint8)[order],
            shots=np.frombuffer(shots, np.int16)[order],
            words=tuple(words),
        )

    def fill(self, clip: ClipSource) -> ClipSource | None:
        """A clip with the columns of the CSV; None where it is not in it."""
        if clip.end is None:
            return None
        wanted = _hash(span_key(clip.video_id, start=clip.start, end=clip.end))
        i = int(np.searchsorted(self.hashes, np.uint64(wanted)))
        if i == len(self.hashes) or int(self.hashes[i]) != wanted:
            return None
        shots = int(self.shots[i])
        return replace(
            clip,
            matching_score=float(self.scores[i]),
            desirable=self.words[self.desirable[i]],
            shots=None if shots == _UNKNOWN else shots,
        )


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
