"""Noise of sampling, which belongs to the sample: it never depends on batch size, order or rank."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

_START, _STEP = 0, 1
"""Streams of one seed: the latents at pure noise, and the noise added by sampling steps."""


def start_noise(
    seeds: Sequence[int], *, shape: Sequence[int], device: torch.device | str = "cpu"
) -> Float[Tensor, "b *shape"]:
    """Latents at pure noise (float32) of the samples with these seeds; `shape` has no batch."""
    _check(seeds)
    return _seeded(seeds, shape=shape, key=(_START,)).to(device)


def per_sample_noise(
    seeds: Sequence[int], *, shape: Sequence[int], device: torch.device | str = "cpu"
) -> Callable[[int], Float[Tensor, "b *shape"]]:
    """`noise_fn` for a stochastic sampler: step -> float32 noise of each seed at that step.

    Stateless: the noise is a function of (seed, step), whatever was drawn before. Drawn on the CPU,
    so that a seed means the same sample on every device.
    """
    _check(seeds)
    return lambda step: _seeded(seeds, shape=shape, key=(_STEP, step)).to(device)


def _check(seeds: Sequence[int]) -> None:
    if not seeds or min(seeds) < 0:
        raise ValueError(f"seeds: expected one or more integers >= 0, got {list(seeds)}")


def _seeded(seeds: Sequence[int], *, shape: Sequence[int], key: tuple[int, ...]) -> Tensor:
    """Normal draws by Philox keyed (seed, key); torch's CPU generator keeps 32 bits of a seed."""
    draws = np.empty((len(seeds), *shape), dtype=np.float32)
    for row, seed in zip(draws, seeds, strict=True):
        entropy = np.random.SeedSequence(seed, spawn_key=key)
        np.random.Generator(np.random.Philox(entropy)).standard_normal(dtype=np.float32, out=row)
    return torch.from_numpy(draws)
