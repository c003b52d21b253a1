"""Carrying given first-frame ids through a clip without a model: optical flow and colours.

Each label is moved by backward flow and blurred a little, for the flow is not exact; what results
is how likely each label is at each pixel by motion. How likely it is by colour is looked up in a
histogram of the colours that the label had so far. Where forward and backward flow agree, motion
is ahead, and only a colour that the label cannot have overrules it: of two neighbours that look
much alike, neither creeps into the other. Where they contradict each other - what was hidden
before, mostly - colours decide between the labels around. What comes from outside the picture with
colours that no label near it has stays unlabelled.

Good on entities that differ in colour; where neighbours look alike the border drifts as by flow
alone. An entity that is hidden completely is lost, and does not come back.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Int32, UInt8, UInt16
from scipy.ndimage import find_objects, gaussian_filter1d

from data_loaders.geometry import fit_ids, fit_rgb, nearest
from data_loaders.panda_dense.optical_flow import DenseFlow, gray_frames, positions
from data_loaders.panda_dense.reprompting import Reprompter
from data_loaders.schema import DataError

# Levels per channel of the colour histograms: 16, so that 4,096 cells are filled by a few hundred
# pixels of an entity once they are blurred by 0.7 cells.
_BITS = 4
_LEVELS = 1 << _BITS
_CELLS = _LEVELS**3
_CELL_BLUR = 0.7
# Sensor and codec noise goes before colours are looked up, pixels.
_PICTURE_BLUR = 0.8
# A colour never seen keeps this share of an even distribution, so that one pixel cannot exclude.
_UNSEEN = 0.05
# Likelihood of a label by motion where there is none of it around.
_ELSEWHERE = 1e-4
# The same of 'unlabelled' where the flow is in doubt.
_DOUBT = 0.02


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassicalPropagationSettings:
    """Numbers of the classical propagation."""

    rows: int = 240
    """Larger pictures are made this high to work on, pixels; ids are enlarged afterwards. Flow at
    480 rows takes four times as long and was not better."""
    near: float = 1.5
    """How far off the flow is taken to be, pixels at `rows`: the blur of a label moved by it."""
    far: float = 12.0
    """The same where forward and backward flow contradict each other: about the width of what a
    moving thing uncovers between two frames."""
    colour_weight: float = 1.5
    """Of the colours' log-likelihood beside that of the motion, which has 1. Above 1 since flow is
    wrong at borders, where it matters; 0 = motion alone."""
    lead: float = 4.0
    """How far the label that flow brings is ahead where flow does not contradict itself, natural
    logarithm. Less follows borders closer where colours differ (0: J + .02 on the synthetic world),
    but lets labels creep into neighbours of like colours: standing pictures cut into superpixels
    keep .97 of them with 4, .76 with 0 (mean IoU after 25 frames)."""
    colour_change: float = 0.02
    """Share of the histograms that each frame renews, 0..1: light changes slowly, and faster
    renewal learns mistakes."""


def check_classical_propagation(settings: ClassicalPropagationSettings, *, section: str) -> None:
    """Check the values.

    Raises:
        DataError: A value out of its range, naming `section` and the field.
    """
    limits = {
        "rows": (16, 4096),
        "near": (0.3, 100),
        "far": (0.3, 100),
        "colour_weight": (0, 100),
        "lead": (0, 100),
        "colour_change": (0, 1),
    }
    for name, (least, most) in limits.items():
        value = getattr(settings, name)
        if not least <= value <= most:
            raise DataError(f"{section}.{name}: expected {least}..{most}, got {value}")


def propagate_classically(
    rgb: UInt8[np.ndarray, "t h w 3"],
    ids: UInt16[np.ndarray, "h w"],
    *,
    settings: ClassicalPropagationSettings | None = None,
    reprompter: Reprompter | None = None,
) -> UInt16[np.ndarray, "t h w"]:
    """Carry the ids of the first frame through the clip.

    Args:
        rgb: Frames, 0..255.
        ids: Of the first frame; 0 = unlabelled.
        settings: Numbers; None = the defaults.
        reprompter: Finds entities that come in later; None = they stay unlabelled.

    Returns:
        Ids of every frame, the same through the clip; frame 0 is `ids` itself.
    """
    settings = settings or ClassicalPropagationSettings()
    height, width = ids.shape
    rows = min(height, settings.rows)
    columns = max(1, round(width * rows / height))
    small = fit_rgb(rgb, height=rows, width=columns)
    start = fit_ids(ids[None], height=rows, width=columns)[0]
    tracker = _Tracker(small, start, settings=settings)
    clip = [ids]
    for t in range(1, len(rgb)):
        carried = tracker.step(t)
        if reprompter is not None and reprompter.is_due(t):
            # The segmenter sees the frame at its full size; what it finds is known at `rows`.
            frame = rgb[t]
            known = nearest(carried[None], height=height, width=width)[0]
            new = reprompter.new_entities(frame, known=known, next_id=tracker.next_id)
            carried = tracker.add(fit_ids(new[None], height=rows, width=columns)[0], frame=t)
        clip.append(nearest(carried[None], height=height, width=width)[0])
    return np.stack(clip)


class _Tracker:
    """Labels of one clip, frame after frame. Labels are 0 = unlabelled, 1, 2, ... inside."""

    def __init__(
        self,
        rgb: UInt8[np.ndarray, "t h w 3"],
        ids: UInt16[np.ndarray, "h w"],
        *,
        settings: ClassicalPropagationSettings,
    ) -> None:
        self._settings = settings
        self._flow = DenseFlow()
        self._gray = gray_frames(rgb)
        self._cells = [_colour_cells(frame) for frame in rgb]
        known = np.unique(ids)
        self._ids = np.concatenate([np.zeros(1, np.uint16), known[known > 0]])
        self._labels = np.searchsorted(self._ids, ids).astype(np.int32)
        self._histograms = _histograms(self._labels, cells=self._cells[0], count=len(self._ids))

    @property
    def next_id(self) -> int:
        """First id above all of the clip so far."""
        return int(self._ids.max()) + 1

    def step(self, t: int) -> UInt16[np.ndarray, "h w"]:
        """Move the labels of frame t - 1 to frame t."""
        back = self._flow(self._gray[t], self._gray[t - 1])
        forth = self._flow(self._gray[t - 1], self._gray[t])
        where = positions(back)
        doubt = contradicted(back, forth) | _outside(where)
        self._labels = self._decide(where, doubt=doubt, cells=self._cells[t])
        self._learn(t, weight=self._settings.colour_change, sure=~doubt)
        return self._ids[self._labels]

    def add(self, ids: UInt16[np.ndarray, "h w"], *, frame: int) -> UInt16[np.ndarray, "h w"]:
        """Take in entities with ids of their own at pixels that are unlabelled."""
        new = np.unique(ids[(ids > 0) & (self._labels == 0)])
        if len(new):
            first = len(self._ids)
            self._ids = np.concatenate([self._ids, new])
            places = np.searchsorted(new, ids).clip(max=len(new) - 1)
            taken = (self._labels == 0) & (new[places] == ids)
            self._labels = np.where(taken, first + places, self._labels).astype(np.int32)
            seen = _histograms(self._labels, cells=self._cells[frame], count=len(self._ids))
            self._histograms = np.concatenate([self._histograms, seen[first:]])
        return self._ids[self._labels]

    def _learn(self, t: int, *, weight: float, sure: Bool[np.ndarray, "h w"]) -> None:
        if weight > 0:
            labels = np.where(sure, self._labels, -1)
            seen = _histograms(labels, cells=self._cells[t], count=len(self._ids))
            self._histograms = (1 - weight) * self._histograms + weight * seen

    def _decide(
        self,
        where: Float32[np.ndarray, "h w 2"],
        *,
        doubt: Bool[np.ndarray, "h w"],
        cells: Int32[np.ndarray, "h w"],
    ) -> Int32[np.ndarray, "h w"]:
        colours = _log_likelihood(self._histograms)
        best = np.full(doubt.shape, -np.inf, np.float32)
        winner = np.zeros(doubt.shape, np.int32)
        for label, box in self._reach(where):
            moved = _moved((self._labels == label).astype(np.float32), where=where[box])
            score = self._motion_score(moved, doubt=doubt[box], unlabelled=label == 0)
            # Neighbours are of one label more often than not: their colours speak too.
            score += self._settings.colour_weight * cv2.blur(colours[label][cells[box]], (3, 3))
            better = score > best[box]
            best[box][better] = score[better]
            winner[box][better] = label
        return winner

    def _reach(self, where: Float32[np.ndarray, "h w 2"]) -> list[tuple[int, tuple[slice, slice]]]:
        """Each label with the box of this frame in which it may be."""
        labels = self._labels.astype(np.float32)
        landed = cv2.remap(
            labels, where[..., 0], where[..., 1], cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT
        )
        height, width = labels.shape
        margin = int(np.ceil(3 * max(self._settings.near, self._settings.far)))
        boxes = [(0, (slice(0, height), slice(0, width)))]
        for label, box in enumerate(find_objects(landed.astype(np.int32)), start=1):
            if box is not None:
                y, x = box
                rows = slice(max(0, y.start - margin), min(height, y.stop + margin))
                columns = slice(max(0, x.start - margin), min(width, x.stop + margin))
                boxes.append((label, (rows, columns)))
        return boxes

    def _motion_score(
        self,
        moved: Float32[np.ndarray, "h w"],
        *,
        doubt: Bool[np.ndarray, "h w"],
        unlabelled: bool,
    ) -> Float32[np.ndarray, "h w"]:
        near = cv2.GaussianBlur(moved, (0, 0), self._settings.near)
        far = cv2.GaussianBlur(moved * ~doubt, (0, 0), self._settings.far)
        # Flow may be right in spite of the doubt: half and half.
        likely = np.where(doubt, (near + far) / 2, near)
        if unlabelled:
            likely = likely + np.float32(_DOUBT) * doubt
        ahead = np.float32(self._settings.lead) * (~doubt & (moved > 0.5))
        return np.log(likely + np.float32(_ELSEWHERE)) + ahead


def contradicted(
    back: Float32[np.ndarray, "h w 2"], forth: Float32[np.ndarray, "h w 2"]
) -> Bool[np.ndarray, "h w"]:
    """Where the way there and back does not end where it began.

    |b + f|^2 > 0.01 (|b|^2 + |f|^2) + 0.5, f taken where b leads (Sundaram et al. 2010, eq. 5).

    Args:
        back: Motion from this picture to the other one, pixels, x first.
        forth: From the other one to this.
    """
    where = positions(back)
    met = cv2.remap(
        forth, where[..., 0], where[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    length = (back**2).sum(-1) + (met**2).sum(-1)
    return ((back + met) ** 2).sum(-1) > 0.01 * length + 0.5


def _outside(where: Float32[np.ndarray, "h w 2"]) -> Bool[np.ndarray, "h w"]:
    height, width = where.shape[:2]
    x, y = where[..., 0], where[..., 1]
    return (x < -0.5) | (y < -0.5) | (x > width - 0.5) | (y > height - 0.5)


def _moved(
    mask: Float32[np.ndarray, "h w"], *, where: Float32[np.ndarray, "y x 2"]
) -> Float32[np.ndarray, "y x"]:
    """The mask's value at places between pixels; 0 outside."""
    return cv2.remap(
        mask,
        np.ascontiguousarray(where[..., 0]),
        np.ascontiguousarray(where[..., 1]),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=0,
    )


def _colour_cells(frame: UInt8[np.ndarray, "h w 3"]) -> Int32[np.ndarray, "h w"]:
    """Histogram cell of each pixel's colour."""
    smooth = np.asarray(cv2.GaussianBlur(frame, (0, 0), _PICTURE_BLUR), np.int32)
    coarse = smooth >> (8 - _BITS)
    return (coarse[..., 0] * _LEVELS + coarse[..., 1]) * _LEVELS + coarse[..., 2]


def _histograms(
    labels: Int32[np.ndarray, "h w"], *, cells: Int32[np.ndarray, "h w"], count: int
) -> Float32[np.ndarray, "count cells"]:
    """Pixels of each label in each colour cell, spread over the cells next to it; -1 = no label."""
    places = (labels.astype(np.int64) * _CELLS + cells)[labels >= 0]
    counts = np.bincount(places, minlength=count * _CELLS).astype(np.float32)
    spread = counts.reshape(count, _LEVELS, _LEVELS, _LEVELS)
    for axis in (1, 2, 3):
        spread = gaussian_filter1d(spread, _CELL_BLUR, axis=axis, mode="nearest")
    return spread.reshape(count, _CELLS)


def _log_likelihood(
    histograms: Float32[np.ndarray, "count cells"],
) -> Float32[np.ndarray, "count cells"]:
    """Of each colour cell in each label; 'unlabelled' is at least as likely as an even spread."""
    even = np.float32(1 / _CELLS)
    shares = histograms / np.maximum(histograms.sum(axis=1, keepdims=True), 1)
    shares[0] = np.maximum(shares[0], even)
    return np.log(shares + _UNSEEN * even)
