"""Features of videos, made where the cache has none."""

import time
from collections.abc import Sequence

import numpy as np

from sat_udpdiff.evaluation.cache import Entry, FeatureCache
from sat_udpdiff.evaluation.kept import KeptVideo
from sat_udpdiff.evaluation.measure import Features, Measure, NoRoomError, UnusableError, Video


class FeatureMaker:
    """Makes what the cache lacks.

    Args:
        cache: Where features are kept.
        measures: All that will be asked.

    Attributes:
        read_seconds: That reading videos took so far.
        num_read: Videos that were read so far.
    """

    def __init__(self, cache: FeatureCache, *, measures: Sequence[Measure]) -> None:
        self.read_seconds = 0.0
        self.num_read = 0
        self._shelves = {measure.name: cache.shelf(measure) for measure in measures}
        assert len(self._shelves) == len(measures), "two measures of one name"
        # By identity: a sample and a reference may have one name.
        self._digests: dict[int, str] = {}
        # By measure and content, what is true of this run alone.
        self._passing: dict[tuple[str, str], Entry] = {}

    def make(self, video: Video, *, measures: Sequence[Measure]) -> None:
        """Make the features of one video that are not there; it is read once for them all."""
        digest = self._digest(video)
        missing = [m for m in measures if not self._shelves[m.name].has(digest)]
        if not missing:
            return
        kept = KeptVideo(video, digest=digest)
        for measure in missing:
            self._store(kept, measure=measure, digest=digest)
        self.read_seconds += kept.read_seconds
        self.num_read += 1

    def entry(self, video: Video, *, measure: Measure) -> Entry:
        """What a measure found in a video."""
        digest = self._digest(video)
        entry = self._passing.get((measure.name, digest))
        entry = entry or self._shelves[measure.name].find(digest)
        if entry is None:
            # Damaged in the cache, or taken away by somebody.
            entry = self._store(KeptVideo(video, digest=digest), measure=measure, digest=digest)
        return entry

    def _store(self, video: KeptVideo, *, measure: Measure, digest: str) -> Entry:
        try:
            entry = _measured(video, measure=measure)
            self._shelves[measure.name].store(entry, digest=digest)
        except NoRoomError as error:
            entry = Entry(features={}, unusable=str(error), seconds=0.0)
            self._passing[measure.name, digest] = entry
        return entry

    def _digest(self, video: Video) -> str:
        if id(video) not in self._digests:
            self._digests[id(video)] = video.digest
        return self._digests[id(video)]


def _measured(video: KeptVideo, *, measure: Measure) -> Entry:
    started, read = time.perf_counter(), video.read_seconds
    features: Features = {}
    try:
        features = measure.features(video)
        reason = _not_finite(features, may_be_missing=measure.may_be_missing)
    except NoRoomError:
        raise
    except UnusableError as error:
        reason = str(error)
    except Exception as error:
        # Whoever reads the traceback wants to know of which of a thousand videos it is.
        error.add_note(f"while {measure.name} looked at {video.name}")
        raise
    seconds = time.perf_counter() - started - (video.read_seconds - read)
    return Entry(features={} if reason else features, unusable=reason, seconds=seconds)


def _not_finite(features: Features, *, may_be_missing: frozenset[str]) -> str:
    """Why features cannot be used, '' where they can."""
    for name, array in features.items():
        if name not in may_be_missing and array.dtype.kind in "fc" and not np.isfinite(array).all():
            count = int(array.size - np.isfinite(array).sum())
            return f"feature {name!r}: {count} of {array.size} numbers are not finite"
    return ""
