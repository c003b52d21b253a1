"""The numbers of the demonstration, each beside the one that would expose a fake."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from sat_udpdiff.evaluation.agreement import (
    boundary_f,
    depth_map_distance,
    flat_share,
    foreground_iou,
    frame_consistency,
)
from sat_udpdiff.generation import GeneratedSample

Agreement = Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskNumbers:
    """Means over the samples of one task."""

    foreground_iou: float
    """Of each video and its own dense map, 0..1."""
    foreground_iou_mismatched: float
    """Of each video and the dense map of another prompt: what chance gives."""
    boundary_f: float
    """Boundaries matched within one pixel, 0..1."""
    boundary_f_mismatched: float
    depth_map_distance: float
    """Of the dense map's pixels from the depth colormap, RGB 0..441; small for depth alone."""
    flat_share: float
    """Of the dense map's pixels in flat neighbourhoods, 0..1; large for segmentation alone."""
    frame_consistency: float
    """Of the video, -1..1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoNumbers:
    """All that the demonstration prints."""

    segmentation: TaskNumbers
    depth: TaskNumbers
    baseline_frame_consistency: float
    """The 16-channel network, fine-tuned for as many steps on the same clips."""
    num_prompts: int


def measure(
    samples: dict[str, list[GeneratedSample]], *, baseline: list[GeneratedSample]
) -> DemoNumbers:
    """Numbers of samples of the same prompts and seeds, by task; at least two prompts."""
    tasks = {task: _of_task(some) for task, some in samples.items()}
    return DemoNumbers(
        segmentation=tasks["segmentation"],
        depth=tasks["depth"],
        baseline_frame_consistency=_mean([frame_consistency(s.rgb) for s in baseline]),
        num_prompts=len(baseline),
    )


def _of_task(samples: list[GeneratedSample]) -> TaskNumbers:
    maps = [sample.dense for sample in samples]
    assert all(dense is not None for dense in maps)
    shifted = maps[1:] + maps[:1]

    def pairs(agreement: Agreement, dense: list) -> float:
        return _mean([agreement(s.rgb, d) for s, d in zip(samples, dense, strict=True)])

    return TaskNumbers(
        foreground_iou=pairs(foreground_iou, maps),
        foreground_iou_mismatched=pairs(foreground_iou, shifted),
        boundary_f=pairs(_boundary_f, maps),
        boundary_f_mismatched=pairs(_boundary_f, shifted),
        depth_map_distance=_mean([depth_map_distance(d) for d in maps if d is not None]),
        flat_share=_mean([flat_share(d) for d in maps if d is not None]),
        frame_consistency=_mean([frame_consistency(s.rgb) for s in samples]),
    )


def _boundary_f(rgb: np.ndarray, dense: np.ndarray) -> float:
    # Two pixels of 32 rows would let chance match.
    return boundary_f(rgb, dense, tolerance=1)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


_LINES = {
    "foreground_iou": "map agrees with video: foreground IoU",
    "foreground_iou_mismatched": "  ... with the map of another prompt",
    "boundary_f": "map agrees with video: boundary F",
    "boundary_f_mismatched": "  ... with the map of another prompt",
    "depth_map_distance": "distance from the depth colormap (0..441)",
    "flat_share": "share of the map that is flat",
    "frame_consistency": "consistency of the video's frames",
}


def table(numbers: DemoNumbers) -> str:
    """A markdown table: what was measured, by task, and the baseline where it has the number."""
    columns = [asdict(numbers.segmentation), asdict(numbers.depth)]
    rows = [
        f"means over {numbers.num_prompts} held-out prompts, same seeds",
        "",
        f"| {'':<42} | segmentation | depth | baseline |",
        f"|{'-' * 44}|--------------|-------|----------|",
    ]
    for name, told in _LINES.items():
        segmentation, depth = (f"{column[name]:.3f}" for column in columns)
        baseline = (
            f"{numbers.baseline_frame_consistency:.3f}" if name == "frame_consistency" else ""
        )
        rows.append(f"| {told:<42} | {segmentation:>12} | {depth:>5} | {baseline:>8} |")
    return "\n".join(rows)
