"""Segmentation clips with true ids, painted and made worse the way a video network does.

Moving, occluding polygons and ellipses on black; edges blurred by one pixel; noise half iid, half
smooth (variances), as a video decoder leaves. Used by tests and by the benchmark.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from scipy.optimize import linear_sum_assignment

_SUBPIXEL = 4  # bits; OpenCV draws at 1/16 pixel
# Makes the nearest colour of the true palette score what it scored in the measurements that the
# floors come from, over sigma 0 to 20; their noise is described in words only.
_NOISE_SCALE = 1.2


def make_ids(*, num_entities, shape, rng, radius=(0.1, 0.4)):
    """Entity ids int32 (t, h, w); `radius` is the range of sizes, a share of the height."""
    frames, height, width = shape
    ids = np.zeros(shape, np.int32)
    for entity in range(1, num_entities + 1):
        center = rng.random(2) * [width, height]
        velocity = rng.normal(0, 0.012, 2) * height
        size = np.exp(rng.uniform(*np.log(radius))) * height
        angle, spin = rng.uniform(0, 2 * np.pi), rng.normal(0, 0.05)
        if rng.random() < 0.5:
            around = np.linspace(0, 2 * np.pi, 64, endpoint=False)
            outline = np.stack([np.cos(around), rng.uniform(0.5, 1) * np.sin(around)], 1)
        else:
            around = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 8)))
            outline = np.stack([np.cos(around), np.sin(around)], 1)
            outline *= rng.uniform(0.7, 1, (len(around), 1))
        for t in range(frames):
            turn = angle + spin * t
            rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
            points = center + velocity * t + size * outline @ rotation.T
            fixed = np.round(points * (1 << _SUBPIXEL)).astype(np.int32)
            cv2.fillPoly(ids[t], [fixed], entity, shift=_SUBPIXEL)
    return ids


def degrade(rgb, *, sigma, rng, blur=0.75):
    """Blur edges by about a pixel and add noise of nominal deviation `sigma` (8 bit)."""
    result = np.empty_like(rgb)
    for t, frame in enumerate(rgb):
        soft = cv2.GaussianBlur(frame, (0, 0), blur).astype(np.float64) if blur else frame
        smooth = cv2.GaussianBlur(rng.normal(size=frame.shape), (0, 0), 3.0)
        noise = rng.normal(size=frame.shape) + smooth / smooth.std()
        result[t] = np.clip(np.round(soft + _NOISE_SCALE * sigma * np.sqrt(0.5) * noise), 0, 255)
    return result


@dataclass(frozen=True)
class Scores:
    """How well ids were recovered."""

    ari: float
    miou: float
    num_found: int
    num_true: int


def score(found, *, true):
    """ARI over the pixels of the clip; IoU per true entity after Hungarian matching."""
    table = np.zeros((int(true.max()) + 1, int(found.max()) + 1), np.int64)
    pairs = true.astype(np.int64).ravel() * table.shape[1] + found.ravel()
    table += np.bincount(pairs, minlength=table.size).reshape(table.shape)
    rows, columns = table.sum(1), table.sum(0)
    iou = (table / np.maximum(rows[:, None] + columns - table, 1))[1:, 1:]
    visible = rows[1:] > 0
    matched = linear_sum_assignment(-iou)
    pairs_of = lambda n: (n.astype(np.float64) * (n - 1) / 2).sum()  # noqa: E731
    both, a, b, n = pairs_of(table), pairs_of(rows), pairs_of(columns), pairs_of(rows.sum()[None])
    expected = a * b / n
    return Scores(
        ari=(both - expected) / ((a + b) / 2 - expected),
        miou=iou[matched].sum() / visible.sum(),
        num_found=int((columns[1:] > 0).sum()),
        num_true=int(visible.sum()),
    )
