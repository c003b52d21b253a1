"""Classical propagation: how well exact first-frame ids are carried, and how long it takes.

    python tests/benchmarks/bench_propagation.py [--clips 6] [--size 240x360]

25 frames of the synthetic world, whose ids are exact, with 6 and with 12 things, at three speeds:
whole clips of 25 frames, and 25 from the middle of clips of 49 and of 97. Cells are means over the
clips of J, the region IoU of each thing that the first frame shows, over all frames (1 where it is
gone and not found; the backdrop, which is easy, is left out), then J of the last frame.

still: the first frame's ids, copied: how hard the clips are.
flow: ids moved by backward flow from frame to frame, small pieces absorbed; about what
the figures to reach were measured with.
ours: `propagate_classically`, then the same cleaned (`clean_masks`); seconds are those of the
propagation alone.

To reach, on clips of another generator: J .91, .82 (6 things) and .72, .57 (12), where a copy of
the first frame has .53, .27, .32 and .20. The second table has our clips in bins of that.
"""

import argparse
import os
import platform
import statistics
import time

import cv2
import numpy as np
from scipy.ndimage import distance_transform_edt
from skimage.measure import label

from data_loaders.panda_dense.classical_propagation import propagate_classically
from data_loaders.panda_dense.mask_cleaning import clean_masks
from data_loaders.panda_dense.optical_flow import DenseFlow, gray_frames, warp_ids
from data_loaders.synthetic import make_clip, parse_size
from data_loaders.synthetic_scene import WorldConfig

FRAMES = 25
# J of a copy of the first frame, and J to reach.
TO_REACH = {(6, 0.53): 0.91, (6, 0.27): 0.82, (12, 0.32): 0.72, (12, 0.20): 0.57}


def region_iou(true: np.ndarray, found: np.ndarray, *, things: int) -> np.ndarray:
    """J of each frame (t,) and thing of the first frame (n,): (t, n)."""
    known = int(max(true.max(), found.max())) + 1
    numbers = [i for i in np.unique(true[0]) if 0 < i <= things]
    scores = np.ones((len(true), len(numbers)))
    for t, (a, b) in enumerate(zip(true, found, strict=True)):
        pairs = np.bincount(a.ravel() * np.int64(known) + b.ravel(), minlength=known**2)
        shared = pairs.reshape(known, known)
        for k, i in enumerate(numbers):
            union = shared[i].sum() + shared[:, i].sum() - shared[i, i]
            if union:
                scores[t, k] = shared[i, i] / union
    return scores


def by_flow(rgb: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Frame to frame, by backward flow alone."""
    flow, gray, clip = DenseFlow(), gray_frames(rgb), [ids]
    least = max(4, round(0.0025 * ids.size / 4))
    for t in range(1, len(rgb)):
        moved = warp_ids(clip[-1], motion=flow(gray[t], gray[t - 1]))
        clip.append(_absorb_small(moved, least=least))
    return np.stack(clip)


def measure(things: int, frames: int, index: int, *, size: tuple[int, int]) -> dict:
    """One clip."""
    config = WorldConfig(
        frames=frames, height=size[0], width=size[1], min_entities=things, max_entities=things
    )
    sample = make_clip(index, seed=500 + things, config=config)
    start = (frames - FRAMES) // 2
    rgb = sample.rgb[start : start + FRAMES]
    ids = sample.entity_ids[start : start + FRAMES]
    begin = time.process_time()
    found = propagate_classically(rgb, ids[0])
    seconds = time.process_time() - begin
    ways = {
        "still": np.broadcast_to(ids[:1], ids.shape),
        "flow": by_flow(rgb, ids[0]),
        "ours": found,
        "cleaned": clean_masks(found),
    }
    row = {"things": things, "frames": frames, "seconds": seconds}
    for name, labels in ways.items():
        scores = region_iou(ids, labels, things=things)
        row[name], row[f"{name} last"] = scores.mean(), scores[-1].mean()
    return row


def _absorb_small(ids: np.ndarray, *, least: int) -> np.ndarray:
    """Give connected pieces (and holes) below `least` pixels the label next to them."""
    # +1: skimage takes 0 for background and would not number the unlabelled pieces.
    pieces = np.asarray(label(ids.astype(np.int32) + 1, connectivity=1))
    gaps = (np.bincount(pieces.ravel(), minlength=1) < least)[pieces]
    if not gaps.any() or gaps.all():
        return ids
    nearest = distance_transform_edt(gaps, return_distances=False, return_indices=True)
    return ids[tuple(nearest)]


def _cells(rows: list[dict]) -> str:
    def mean(name: str) -> str:
        return f"{statistics.mean(row[name] for row in rows):.3f}".lstrip("0")

    names = ("still", "flow", "ours", "cleaned")
    return " | ".join(f"{mean(name)} / {mean(name + ' last')}" for name in names)


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=6, help="per number of things and speed")
    parser.add_argument("--size", default="240x360", help="HEIGHTxWIDTH")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    size = parse_size(arguments.size)
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, cv2 {cv2.__version__}; {size}")
    rows = [
        measure(things, frames, index, size=size)
        for things in (6, 12)
        for frames in (25, 49, 97)
        for index in range(arguments.clips)
    ]
    print("\n| things | 25 frames of | still | flow | ours | ours, cleaned | s |")
    print("|---|---|---|---|---|---|---|")
    for things in (6, 12):
        for frames in (25, 49, 97):
            some = [r for r in rows if (r["things"], r["frames"]) == (things, frames)]
            seconds = statistics.median(row["seconds"] for row in some)
            print(f"| {things} | {frames} | {_cells(some)} | {seconds:.1f} |")
    print("\n| things | still, to reach | clips | still | flow | ours | ours, cleaned | to reach |")
    print("|---|---|---|---|---|---|---|---|")
    for (things, still), least in TO_REACH.items():
        some = [r for r in rows if r["things"] == things and abs(r["still"] - still) < 0.07]
        cells = _cells(some) if some else "- | - | - | -"
        print(f"| {things} | {still:.2f} | {len(some)} | {cells} | {least:.2f} |")


if __name__ == "__main__":
    main()
