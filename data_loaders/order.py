"""Which clip, task, caption, colours and crop belong to a sample number: pure functions.

Training consumes sample numbers n = 0, 1, 2, ...; nothing else is remembered. All randomness is
`numpy.random.SeedSequence` (whose output is promised to stay the same) and integer arithmetic, so
that a run resumed under another numpy sees the same data.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate

import numpy as np

from sat_udpdiff.config import TASKS, DataConfig, Task

_ROUNDS = 6
"""Feistel rounds; 4 are enough for pseudo-randomness in theory, small sizes profit from more."""

_STRATA = 100
"""Every rate that is a whole number of percent holds exactly in each run of so many samples."""

# One stream per purpose, so that a new draw does not shift the others.
_SHARDS, _ROWS, _OFFSETS, _TASK, _CAPTION, _DROP, _CROP, _BUCKET, _COLORS = range(1, 10)

_MASK32 = 0xFFFFFFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where sample number n lies in the data."""

    epoch: int
    index: int
    """Clip, 0 .. number of clips - 1, in the order in which the shards hold them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleDraws:
    """What is drawn for sample number n."""

    task: Task
    use_long_caption: bool
    drop_uniform: float
    """In [0, 1): the caption is dropped where this is below the caption dropout."""
    crop_anchor: tuple[float, float]
    """Share of the rows and columns cut off that lie above and left of what is kept."""

    @property
    def task_id(self) -> int:
        """Row of the task table."""
        return TASKS.index(self.task)


def _mix(value: int, *, key: int) -> int:
    """A 32-bit hash of a 32-bit value (the finaliser of MurmurHash3, keyed)."""
    value = (value ^ key) & _MASK32
    value = ((value ^ (value >> 16)) * 0x85EBCA6B) & _MASK32
    value = ((value ^ (value >> 13)) * 0xC2B2AE35) & _MASK32
    return value ^ (value >> 16)


@lru_cache(maxsize=256)
def _round_keys(*entropy: int) -> tuple[int, ...]:
    sequence = np.random.SeedSequence(entropy)
    return tuple(int(key) for key in sequence.generate_state(_ROUNDS, np.uint32))


def permute(i: int, *, size: int, keys: tuple[int, ...]) -> int:
    """Place i of a pseudo-random permutation of 0 .. size - 1, without making the permutation.

    A Feistel network permutes the smallest even power of two that holds `size`; walking on until
    the value falls below `size` restricts it to that range (cycle walking; fewer than 4 steps on
    the mean).

    Args:
        i: Place, 0 .. size - 1.
        size: Number of elements, up to 2**62.
        keys: One 32-bit integer per round.

    Returns:
        The element at that place.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = i >> half, i & mask
        for key in keys:
            left, right = right, left ^ (_mix(right, key=key) & mask)
        i = (left << half) | right
        if i < size:
            return i


@dataclass(frozen=True, slots=True)
class _Window:
    """Samples that are mixed with each other: one run of rows of each of some shards."""

    ends: tuple[int, ...]
    """Samples up to and with each shard."""
    shards: tuple[int, ...]
    first_row: int


class SampleOrder:
    """The order of the clips of a data set, shard-aware: any place of it at the same cost.

    Every epoch deals the shards into groups of `shuffle_shards`. A group is read in windows, each
    of which mixes the next `shuffle_run` rows of every shard of the group: so each tar is read from
    front to back (from a row of its own in every epoch, once around), some tars are open at a time,
    and neighbours in the data set are spread over the batches. Every clip comes exactly once in an
    epoch.

    Args:
        shard_sizes: Clips in each shard.
        seed: Of the run, >= 0.
        shuffle_shards: Shards in a group.
        shuffle_run: Rows of each shard in a window.
    """

    def __init__(
        self, shard_sizes: Sequence[int], *, seed: int, shuffle_shards: int, shuffle_run: int
    ) -> None:
        if seed < 0 or min(shuffle_shards, shuffle_run) < 1 or sum(shard_sizes) < 1:
            raise ValueError(
                "expected seed >= 0, shuffle_shards >= 1, shuffle_run >= 1 and at least one clip, "
                f"got {seed}, {shuffle_shards}, {shuffle_run} and {sum(shard_sizes)}"
            )
        self._sizes = tuple(shard_sizes)
        self._starts = (0, *accumulate(self._sizes))
        self._seed, self._group, self._run = seed, shuffle_shards, shuffle_run
        # An epoch's table is a few numbers per shard; two are at hand where one ends.
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)
        self._windows = lru_cache(maxsize=4)(self._make_windows)

    def __len__(self) -> int:
        """Clips of the data set."""
        return self._starts[-1]

    def at(self, n: int) -> Place:
        """Clip and epoch of sample number n >= 0, whatever the number of ranks and workers."""
        if n < 0:
            raise ValueError(f"expected n >= 0, got {n}")
        epoch, place = divmod(n, len(self))
        group_ends, groups = self._epoch(epoch)
        group = bisect_right(group_ends, place)
        place -= group_ends[group - 1] if group else 0
        window_ends, windows = self._windows(epoch, groups[group])
        number = bisect_right(window_ends, place)
        place -= window_ends[number - 1] if number else 0
        window = windows[number]
        keys = _round_keys(_ROWS, self._seed, epoch, group, number)
        place = permute(place, size=window.ends[-1], keys=keys)
        column = bisect_right(window.ends, place)
        shard = window.shards[column]
        row = window.first_row + place - (window.ends[column - 1] if column else 0)
        row = (row + self._offset(epoch, shard)) % self._sizes[shard]
        return Place(epoch=epoch, index=self._starts[shard] + row)

    def shards_at(self, n: int) -> tuple[int, ...]:
        """Shards of the group that sample number n is read from, to be fetched ahead."""
        epoch, place = divmod(n, len(self))
        group_ends, groups = self._epoch(epoch)
        return groups[bisect_right(group_ends, place)]

    def _make_epoch(self, epoch: int) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
        """Samples up to and with each group of shards, and the groups."""
        keys = _round_keys(_SHARDS, self._seed, epoch)
        count = len(self._sizes)
        shards = [permute(i, size=count, keys=keys) for i in range(count)]
        shards = [shard for shard in shards if self._sizes[shard]]
        groups = tuple(
            tuple(shards[i : i + self._group]) for i in range(0, len(shards), self._group)
        )
        totals = (sum(self._sizes[shard] for shard in group) for group in groups)
        return tuple(accumulate(totals)), groups

    def _make_windows(
        self, epoch: int, group: tuple[int, ...]
    ) -> tuple[tuple[int, ...], tuple[_Window, ...]]:
        """Samples up to and with each window of a group, and the windows."""
        windows = []
        for first_row in range(0, max(self._sizes[shard] for shard in group), self._run):
            shards = tuple(shard for shard in group if self._sizes[shard] > first_row)
            counts = (min(self._run, self._sizes[shard] - first_row) for shard in shards)
            windows.append(
                _Window(ends=tuple(accumulate(counts)), shards=shards, first_row=first_row)
            )
        return tuple(accumulate(window.ends[-1] for window in windows)), tuple(windows)

    def _offset(self, epoch: int, shard: int) -> int:
        """Row at which a shard's reading begins: other rows share a window in every epoch."""
        return _round_keys(_OFFSETS, self._seed, epoch, shard)[0] % self._sizes[shard]


def _stratified(n: int, *, seed: int, stream: int) -> float:
    """Uniform in [0, 1), one of each 1/100 in every 100 numbers, in random order."""
    run, place = divmod(n, _STRATA)
    stratum = permute(place, size=_STRATA, keys=_round_keys(stream, seed, run))
    within = _mix(place, key=_round_keys(stream, seed, run, 1)[0]) / 2**32
    return (stratum + within) / _STRATA


def _pick(uniform: float, *, weights: Sequence[float]) -> int:
    """Index drawn with the given shares."""
    remaining = uniform * sum(weights)
    for index, weight in enumerate(weights):
        # Sums of floats such as 0.3 + 0.3 fall a little short of the edge that they mean.
        if remaining < weight - 1e-9:
            return index
        remaining -= weight
    return len(weights) - 1


def draws(n: int, *, seed: int, data: DataConfig) -> SampleDraws:
    """Task, caption, caption dropout and crop of sample number n.

    Each is uniform by itself and independent of the others, and its rate holds exactly over every
    100 samples from a multiple of 100 on, if it is a whole number of percent.

    Args:
        n: Global sample number.
        seed: Of the run.
        data: Task shares, the rate of long captions, the rule of the crop.
    """
    task = _pick(_stratified(n, seed=seed, stream=_TASK), weights=data.task_weights)
    caption = _pick(
        _stratified(n, seed=seed, stream=_CAPTION),
        weights=(data.long_caption_probability, 1 - data.long_caption_probability),
    )
    anchor = (0.5, 0.5)
    if data.crop == "random":
        words = np.random.SeedSequence([_CROP, seed, n]).generate_state(2, np.uint32)
        anchor = (int(words[0]) / 2**32, int(words[1]) / 2**32)
    return SampleDraws(
        task=data.tasks[task],
        use_long_caption=caption == 0,
        drop_uniform=_stratified(n, seed=seed, stream=_DROP),
        crop_anchor=anchor,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipSize:
    """Extent of the clips of a batch."""

    num_frames: int
    height: int
    width: int


def size_at(n: int, *, seed: int, data: DataConfig) -> ClipSize:
    """Size of the batch that begins with sample number n.

    Args:
        n: Global sample number of the batch's first sample.
        seed: Of the run.
        data: Buckets and their shares, or the one size.
    """
    if not data.buckets:
        return ClipSize(num_frames=data.num_frames, height=data.height, width=data.width)
    uniform = _stratified(n // data.bucket_run, seed=seed, stream=_BUCKET)
    return parse_bucket(data.buckets[_pick(uniform, weights=_bucket_weights(data))])


def parse_bucket(text: str) -> ClipSize:
    """`49x480x720` as a size; the configuration has checked the form."""
    num_frames, height, width = (int(part) for part in text.split("x"))
    return ClipSize(num_frames=num_frames, height=height, width=width)


def sizes_of(data: DataConfig) -> list[tuple[ClipSize, float]]:
    """Every size that batches have, with its share of the samples."""
    if not data.buckets:
        return [(size_at(0, seed=0, data=data), 1.0)]
    return list(zip(map(parse_bucket, data.buckets), _bucket_weights(data), strict=True))


def _bucket_weights(data: DataConfig) -> Sequence[float]:
    return data.bucket_weights or [1 / len(data.buckets)] * len(data.buckets)


def color_generator(*, seed: int, epoch: int, key: str) -> np.random.Generator:
    """Generator of the entity colours of one clip in one epoch: new colours each time it is seen.

    Args:
        seed: Of the run.
        epoch: Of `SampleOrder.at`, or the number of the recolouring.
        key: Of the clip.
    """
    digest = hashlib.sha256(key.encode()).digest()[:16]
    sequence = np.random.SeedSequence([_COLORS, seed, epoch, int.from_bytes(digest, "little")])
    return np.random.Generator(np.random.Philox(sequence))


def colors_epoch(epoch: int, *, recolourings: int) -> int:
    """Number of the colouring that a clip has in an epoch; `recolourings` 0 = its own."""
    return epoch % recolourings if recolourings else epoch


def frame_indices(
    *, num_frames: int, fps: float, source_frames: int, source_fps: float
) -> list[int]:
    """Frames of a clip to take, by time: frame k is the source frame nearest to k / fps.

    30 to 8 frames per second is no whole step, so time decides, not a step; of two equally near
    frames the later one. A clip that ends early repeats its last frame.

    Args:
        num_frames: Frames wanted.
        fps: Rate wanted.
        source_frames: Frames there are, >= 1.
        source_fps: Rate of the clip.

    Returns:
        Indices 0 .. source_frames - 1, not falling.
    """
    # Fractions, as 1001 * 8 / 30000 has none in binary; 1001 is the denominator of NTSC rates.
    step = Fraction(source_fps).limit_denominator(1001) / Fraction(fps).limit_denominator(1001)
    # floor(k * step + 1/2), in integers.
    nearest = (
        (2 * k * step.numerator + step.denominator) // (2 * step.denominator)
        for k in range(num_frames)
    )
    return [min(index, source_frames - 1) for index in nearest]
