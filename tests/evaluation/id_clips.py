"""Clips of ids with known faults."""

import numpy as np


def bars(*, frames: int = 6, entities: int = 4, width: int = 8, height: int = 12) -> np.ndarray:
    """Ids 1, 2, ... side by side, each `width` wide, that never move; nothing is unlabelled."""
    row = np.repeat(np.arange(1, entities + 1), width)
    return np.broadcast_to(row, (frames, height, entities * width)).astype(np.int32)


def discs(rng: np.random.Generator, *, entities: int = 7) -> np.ndarray:
    """Moving, occluding discs before what is unlabelled; some leave the picture or come in."""
    frames, height, width = 17, 50, 70
    rows, columns = np.mgrid[:height, :width]
    ids = np.zeros((frames, height, width), np.int32)
    for entity in range(1, entities + 1):
        center, speed = rng.random(2) * [height, width], rng.normal(0, 2, 2)
        radius = rng.uniform(4, 14)
        for t in range(frames):
            y, x = center + speed * t
            ids[t][(rows - y) ** 2 + (columns - x) ** 2 < radius**2] = entity
    return ids


def disturbed(rng: np.random.Generator, ids: np.ndarray) -> np.ndarray:
    """Moved a little, renamed, two merged, one with another id in the second half."""
    moved = np.roll(ids, tuple(rng.integers(-3, 4, 2)), axis=(1, 2))
    names = np.concatenate([[0], rng.permutation(int(ids.max())) + 1])
    found = names[moved].astype(np.int32)
    found[found == 1] = 2
    half = found[len(found) // 2 :]
    half[half == 3] = 77
    return found
