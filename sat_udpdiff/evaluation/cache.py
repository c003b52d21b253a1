"""Features that were made once, kept by content.

    FOLDER/<SHA-256 of a measure's name and key>/measure.json      which measure that is
    FOLDER/<SHA-256 of a measure's name and key>/<digest>.npz      its features of one video

The address holds all that the features depend on, so an entry is never stale, and two runs, or
the processes of one, may share a folder: whoever is second writes the same once more. Why a video
cannot be judged is kept like features.
"""

import hashlib
import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_loaders.atomic_file import atomic_file, write_atomically
from sat_udpdiff.evaluation.measure import Features, Measure

# Names of features are those of Python; what is ours begins with a character that none has.
_SECONDS, _REASON = "#seconds", "#unusable"


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """What a measure found in one video."""

    features: Features = field(default_factory=dict)
    unusable: str = ""
    """Why the video cannot be judged; '' where it can."""
    seconds: float = 0.0
    """That making the features took, without reading the video."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shelf:
    """Entries of one measure."""

    folder: Path
    name: str
    key: str

    def has(self, digest: str) -> bool:
        """Whether there is an entry, without looking into it."""
        return (self.folder / f"{digest}.npz").is_file()

    def find(self, digest: str) -> Entry | None:
        """The entry of a video; None without one, or where it is damaged: it is made again."""
        try:
            path = self.folder / f"{digest}.npz"
            # numpy leaves a file open that it finds damaged.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                arrays = dict(stored)
            return Entry(
                seconds=float(arrays.pop(_SECONDS)),
                unusable=str(arrays.pop(_REASON)),
                features=arrays,
            )
        except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError):
            return None

    def store(self, entry: Entry, *, digest: str) -> None:
        """Keep an entry; it appears whole or not at all.

        Raises:
            TypeError: A feature is no array of numbers.
        """
        for name, array in entry.features.items():
            if array.dtype.hasobject:
                raise TypeError(f"{self.name}: {name}: expected numbers, got {array.dtype}")
        if not self.folder.is_dir():
            self.folder.mkdir(parents=True, exist_ok=True)
            about = json.dumps({"measure": self.name, "key": self.key}, indent=1)
            write_atomically(self.folder / "measure.json", about.encode())
        ours = {_SECONDS: np.float64(entry.seconds), _REASON: np.str_(entry.unusable)}
        with atomic_file(self.folder / f"{digest}.npz") as file:
            np.savez(file, **{**entry.features, **ours})


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureCache:
    """A folder of shelves; each is made when its first entry is."""

    folder: Path

    def shelf(self, measure: Measure) -> Shelf:
        """The place of a measure, which is asked for its key once."""
        key = measure.key
        address = hashlib.sha256(f"{measure.name}\n{key}".encode()).hexdigest()
        return Shelf(folder=self.folder / address, name=measure.name, key=key)
