"""Which clip, task, caption and colours belong to a sample number: pure functions of the seed.

Training consumes sample numbers n = 0, 1, 2, ...; nothing else is remembered. Number n lies in
epoch n // N and takes place n % N of that epoch's permutation of the N clips. All randomness is
`numpy.random.SeedSequence` (whose output is promised to stay the same) and integer arithmetic, so
that a run resumed under another numpy sees the same data.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from sat_udpdiff.config import TASKS, DataConfig, Task

_ROUNDS = 6
"""Feistel rounds; 4 are enough for pseudo-randomness in theory, small N profits from more."""

# One stream per purpose, so that a new draw does not shift the others.
_STREAM_ORDER, _STREAM_DRAWS, _STREAM_COLORS = 1, 2, 3

_MASK32 = 0xFFFFFFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where sample number n lies in the data."""

    epoch: int
    index: int
    """Clip, 0 .. num_samples - 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleDraws:
    """What is drawn for sample number n."""

    task: Task
    use_long_caption: bool
    drop_uniform: float
    """In [0, 1): the caption is dropped where this is below the caption dropout."""

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


@lru_cache(maxsize=16)
def _round_keys(seed: int, epoch: int) -> tuple[int, ...]:
    sequence = np.random.SeedSequence([_STREAM_ORDER, seed, epoch])
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


def sample_at(n: int, *, seed: int, num_samples: int) -> Place:
    """Clip and epoch of sample number n; every clip comes exactly once in an epoch.

    Args:
        n: Global sample number, >= 0; the same whatever the number of ranks and workers.
        seed: Of the run, >= 0.
        num_samples: Clips in the data set.
    """
    if n < 0 or seed < 0 or num_samples < 1:
        raise ValueError(
            f"expected n >= 0, seed >= 0 and num_samples >= 1, got {n}, {seed} and {num_samples}"
        )
    epoch, place = divmod(n, num_samples)
    index = permute(place, size=num_samples, keys=_round_keys(seed, epoch))
    return Place(epoch=epoch, index=index)


def draws(n: int, *, seed: int, data: DataConfig) -> SampleDraws:
    """Task, caption and caption dropout of sample number n.

    Args:
        n: Global sample number.
        seed: Of the run.
        data: Task shares and the rate of long captions.
    """
    words = np.random.SeedSequence([_STREAM_DRAWS, seed, n]).generate_state(3, np.uint64)
    # The upper 53 bits fill a double's mantissa: uniform in [0, 1).
    task_u, caption_u, drop_u = (int(word >> np.uint64(11)) * 2.0**-53 for word in words)
    return SampleDraws(
        task=_pick_task(task_u, data=data),
        use_long_caption=caption_u < data.long_caption_probability,
        drop_uniform=drop_u,
    )


def _pick_task(uniform: float, *, data: DataConfig) -> Task:
    remaining = uniform * sum(data.task_weights)
    for task, weight in zip(data.tasks, data.task_weights, strict=True):
        if remaining < weight:
            return task
        remaining -= weight
    return data.tasks[-1]  # rounding: uniform * sum can touch the last edge


def color_generator(*, seed: int, epoch: int, key: str) -> np.random.Generator:
    """Generator of the entity colours of one clip in one epoch: new colours each time it is seen.

    Args:
        seed: Of the run.
        epoch: Of `sample_at`.
        key: Of the clip.
    """
    digest = hashlib.sha256(key.encode()).digest()[:16]
    sequence = np.random.SeedSequence(
        [_STREAM_COLORS, seed, epoch, int.from_bytes(digest, "little")]
    )
    return np.random.Generator(np.random.Philox(sequence))


def frame_indices(
    *, num_frames: int, fps: float, source_frames: int, source_fps: float
) -> list[int]:
    """Frames of a clip to take, by time: frame k is the source frame nearest to k / fps.

    30 to 8 frames per second is no whole step, so time decides, not a step. A clip that ends early
    repeats its last frame.

    Args:
        num_frames: Frames wanted.
        fps: Rate wanted.
        source_frames: Frames there are, >= 1.
        source_fps: Rate of the clip.

    Returns:
        Indices 0 .. source_frames - 1, not falling.
    """
    # A half is rounded up: Python's own rounding would go to the even neighbour.
    nearest = (int(k * source_fps / fps + 0.5) for k in range(num_frames))
    return [min(index, source_frames - 1) for index in nearest]
