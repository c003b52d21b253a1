"""Random numbers of training: functions of (seed, stream, sample number), with no state.

A sample draws the same numbers on whatever rank, in whatever micro-batch and after however many
restarts it is trained on. So nothing is saved or broadcast, a resumed run repeats the unbroken one,
and two ranks repeat one rank at the same global batch.
"""

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

_TRAINING = 0x7261696E
"""First word of every key, so that no other part of the project shares a stream with training."""


class Stream(IntEnum):
    """What a number is drawn for; the values are part of every run, so they never change."""

    VIDEO_LATENT = 0
    """Posterior sample of the video codec, RGB."""
    DENSE_LATENT = 1
    """The same of the dense map; another stream, as in the equal but separate encodings."""
    NOISE = 2
    """Noise of the diffusion, all channels."""
    TIMESTEP = 3
    FIXED_NOISE = 4
    """Noise of the losses that validation follows; no training sample draws it."""


def generator(seed: int, *, stream: Stream, number: int) -> np.random.Generator:
    """Generator of one stream of one sample.

    Philox keyed by a hash of all 128 bits of entropy: torch's CPU generator would keep 32 of them,
    and among some 10^5 samples two would share their noise.

    Args:
        seed: Of the run, >= 0.
        stream: What is drawn.
        number: Global number of the sample in the run: 0, 1, .. over all ranks.
    """
    entropy = np.random.SeedSequence(seed, spawn_key=(_TRAINING, int(stream), number))
    return np.random.Generator(np.random.Philox(entropy))


def normal(
    numbers: Sequence[int], *, seed: int, stream: Stream, shape: Sequence[int]
) -> Float[Tensor, "b *shape"]:
    """Standard normal float32 noise on the CPU, one draw of `shape` per sample."""
    draws = np.empty((len(numbers), *shape), dtype=np.float32)
    for row, number in zip(draws, numbers, strict=True):
        generator(seed, stream=stream, number=number).standard_normal(dtype=np.float32, out=row)
    return torch.from_numpy(draws)


def uniform(numbers: Sequence[int], *, seed: int, stream: Stream) -> Float64[Tensor, "b"]:
    """One number from [0, 1) per sample, on the CPU."""
    draws = [generator(seed, stream=stream, number=number).random() for number in numbers]
    return torch.tensor(draws, dtype=torch.float64)
