"""The numbers of the paper's tables 1 to 12, and which value files make each row here.

"Unified Dense Prediction of Video Diffusion", 1024 unseen clips of Panda-70M. Consistency and
smoothness are in percent.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sat_udpdiff.config import Task

NUM_CLIPS = 1024
"""Unseen clips of Panda-70M that the numbers are of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One column of the tables."""

    header: str
    score: str
    """Name of our score."""
    factor: float = 1.0
    """From our score to the number that is printed."""
    digits: int = 2
    higher_is_better: bool = True

    def text(self, value: float) -> str:
        """A score of ours as the tables print it."""
        return f"{self.factor * value:.{self.digits}f}"

    @property
    def compared(self) -> str | None:
        """Name of the score of the depth model beside ours; None for columns that are not depth."""
        kind = self.score.removeprefix("depth_")
        return None if kind == self.score else f"depth_comparison_{kind}"


COLUMNS = (
    Column(header="SC", score="subject_consistency", factor=100.0),
    Column(header="BC", score="background_consistency", factor=100.0),
    Column(header="MS", score="motion_smoothness", factor=100.0),
    Column(header="FVD", score="fvd", higher_is_better=False),
    Column(header="delta1", score="depth_delta1", digits=4),
    Column(header="RMSE", score="depth_rmse", digits=4, higher_is_better=False),
    Column(header="seconds", score="seconds", higher_is_better=False),
)
"""In the order of the tables; `seconds` is the time of one sample on an A100 (Table 4)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PaperRow:
    """One row of a table."""

    table: int
    name: str
    values: Mapping[str, float]
    """Header of a column -> the number as printed."""
    files: tuple[str, ...]
    """Below configs/, without .yaml: what the row's network is trained with; the family first."""
    task: Task | None = None
    """Of the samples that the numbers are of; None where there is no map."""


TITLES = {
    1: "Single task",
    2: "Multi-task",
    3: "Depth quality",
    4: "Inference time",
    5: "Task signal",
    6: "Colormap of entities",
    7: "Shares of the tasks (segmentation, depth)",
    8: "Source of depth",
    9: "Source of entities",
    10: "Initialisation of the new channels",
    11: "Initialisation of the network",
    12: "Size of the network",
}


_BASELINE = ("5b", "baseline")
_MULTITASK = ("5b", "multitask")
_SEGMENTATION, _DEPTH = ("5b", "segmentation"), ("5b", "depth")


def _vbench(sc: float, bc: float, ms: float, **more: float) -> dict[str, float]:
    return {"SC": sc, "BC": bc, "MS": ms, **more}


_COGVIDEOX = _vbench(94.57, 95.80, 97.67)
_SINGLE_SEGMENTATION, _SINGLE_DEPTH = _vbench(94.98, 95.92, 98.62), _vbench(95.91, 96.24, 98.10)
_MULTITASK_SEGMENTATION = _vbench(95.21, 95.69, 98.24, FVD=316.76)
_MULTITASK_DEPTH = _vbench(97.07, 96.89, 99.23)

_SEGMENTATION_ROWS = (
    (1, "segmentation", _SINGLE_SEGMENTATION, _SEGMENTATION),
    (2, "segmentation", _MULTITASK_SEGMENTATION, _MULTITASK),
    (6, "location-aware", _vbench(81.26, 79.33, 88.79), (*_SEGMENTATION, "location_aware")),
    (6, "Pixelplanes", _SINGLE_SEGMENTATION, _SEGMENTATION),
    (9, "8x8 grid", _vbench(93.12, 93.73, 96.18), (*_SEGMENTATION, "point_grid_8x8")),
    (9, "12x12 grid", _vbench(92.96, 93.59, 96.35), (*_SEGMENTATION, "point_grid_12x12")),
    (9, "EntitySeg", _SINGLE_SEGMENTATION, _SEGMENTATION),
    (12, "2B", _vbench(87.29, 89.19, 91.76), ("2b", "segmentation")),
    (12, "5B", _SINGLE_SEGMENTATION, _SEGMENTATION),
)
_DEPTH_ROWS = (
    (1, "depth", _SINGLE_DEPTH, _DEPTH),
    (2, "depth", {**_MULTITASK_DEPTH, "FVD": 302.55}, _MULTITASK),
    (3, "multi-task depth", {"delta1": 0.4176, "RMSE": 0.1634}, _MULTITASK),
    (4, "single task", {"seconds": 205.75}, _DEPTH),
    (4, "multi-task", {"seconds": 205.81}, _MULTITASK),
    (5, "text prompt", _vbench(95.17, 95.78, 98.67, FVD=321.43), (*_MULTITASK, "text_prompt")),
    (5, "task embedding", {**_MULTITASK_DEPTH, "FVD": 302.55}, _MULTITASK),
    (7, "0.3, 0.7", _vbench(95.89, 96.54, 98.16), (*_MULTITASK, "partition_03_07")),
    (7, "0.7, 0.3", _vbench(96.72, 96.37, 96.97), (*_MULTITASK, "partition_07_03")),
    (7, "0.5, 0.5", _MULTITASK_DEPTH, _MULTITASK),
    (8, "Depth Anything V2", _vbench(94.87, 96.29, 96.13), (*_DEPTH, "depth_anything_v2")),
    (8, "DepthCrafter", _SINGLE_DEPTH, _DEPTH),
    (10, "random", _vbench(95.15, 95.48, 97.99), (*_MULTITASK, "random_channels")),
    (10, "duplicate", _MULTITASK_DEPTH, _MULTITASK),
    (11, "scratch, single task", _vbench(81.28, 76.39, 84.46), (*_DEPTH, "scratch_single")),
    (11, "scratch, multi-task", _vbench(84.32, 81.63, 89.31), (*_MULTITASK, "scratch_multitask")),
    (11, "CogVideoX, multi-task", _MULTITASK_DEPTH, _MULTITASK),
)
_VIDEO_ROWS = (
    (1, "CogVideoX 5B", _COGVIDEOX, _BASELINE),
    (2, "CogVideoX 5B", {**_COGVIDEOX, "FVD": 343.92}, _BASELINE),
    (4, "CogVideoX", {"seconds": 204.46}, _BASELINE),
)
# The paper says the task in Tables 1 to 3; elsewhere it is that of the best row, which stands in
# one of them.
_TASK_ROWS: tuple[tuple[Task | None, tuple], ...] = (
    (None, _VIDEO_ROWS),
    ("segmentation", _SEGMENTATION_ROWS),
    ("depth", _DEPTH_ROWS),
)

COMPARISON = PaperRow(
    table=3,
    name="Depth Anything V2",
    values={"delta1": 0.5808, "RMSE": 0.0907},
    files=_MULTITASK,
    task="depth",
)
"""Of no network of ours: run on the videos of the multi-task network."""

_NETWORK_ROWS = (
    PaperRow(
        table=table,
        name=name,
        values=values,
        files=tuple(f"ablations/{f}" if i > 1 else f for i, f in enumerate(files)),
        task=task,
    )
    for task, rows in _TASK_ROWS
    for table, name, values, files in rows
)
ROWS = tuple(sorted((COMPARISON, *_NETWORK_ROWS), key=lambda row: row.table))
"""In the order of the paper."""


def table_rows(table: int) -> tuple[PaperRow, ...]:
    """The rows of a table.

    Raises:
        ValueError: The paper has no such table.
    """
    if table not in TITLES:
        raise ValueError(f"table: expected 1 to {max(TITLES)}, got {table}")
    return tuple(row for row in ROWS if row.table == table)


def network_kind(config: Mapping[str, Any]) -> str:
    """What tells the networks of the paper's rows from each other, in words; sizes but for 2B's.

    Args:
        config: Values of a run's configuration, by section.
    """
    model, data = config["model"], config["data"]
    words = ["2B"] if (model["hidden_size"], model["num_layers"]) == _SIZE_2B else []
    if config["lora"]["rank"]:
        words.append("adapters")
    if not model["dense_groups"]:
        words.append("no map")
    else:
        whole = sum(data["task_weights"])
        shares = zip(data["tasks"], data["task_weights"], strict=True)
        words += [f"{task} {weight / whole:g}" for task, weight in shares]
        if len(data["tasks"]) > 1:
            words.append(f"task by {model['task_signal']}")
        if "segmentation" in data["tasks"]:
            words.append(str(config["colormap"]["segmentation"]))
    if config["init"]["weights"] is None:
        words.append("from scratch")
    elif model["dense_groups"]:
        words.append(f"new channels {config['init']['dense_channels']}")
    return ", ".join(words)


_SIZE_2B = (1920, 30)
_PAINTED = "pixelplanes, new channels duplicate"
_BOTH = "segmentation {}, depth {}, task by {}, "
_KINDS = {
    "baseline": "no map",
    "segmentation": f"segmentation 1, {_PAINTED}",
    "depth": "depth 1, new channels duplicate",
    "multitask": _BOTH.format("0.5", "0.5", "embedding") + _PAINTED,
    "ablations/location_aware": "segmentation 1, location_aware, new channels duplicate",
    "ablations/text_prompt": _BOTH.format("0.5", "0.5", "prompt") + _PAINTED,
    "ablations/partition_03_07": _BOTH.format("0.3", "0.7", "embedding") + _PAINTED,
    "ablations/partition_07_03": _BOTH.format("0.7", "0.3", "embedding") + _PAINTED,
    "ablations/random_channels": _BOTH.format("0.5", "0.5", "embedding")
    + "pixelplanes, new channels random",
    "ablations/scratch_single": "depth 1, from scratch",
    "ablations/scratch_multitask": _BOTH.format("0.5", "0.5", "embedding")
    + "pixelplanes, from scratch",
}
"""Of the networks whose configurations differ; other data makes the rows of Tables 8 and 9."""


def rows_of_kind(kind: str, *, task: Task | None) -> tuple[PaperRow, ...]:
    """The rows for a network of a kind, sampled for `task`; none where the paper has no such.

    In the order of the paper, without rows that add no column to those before.

    Args:
        kind: Of `network_kind`.
        task: Of the samples.
    """
    found: list[PaperRow] = []
    for row in ROWS:
        family, last = row.files[0], row.files[-1]
        of_row = f"2B, {_KINDS[last]}" if family == "2b" else _KINDS.get(last)
        if row.task != task or row is COMPARISON or of_row != kind:
            continue
        if not any(set(row.values) <= set(other.values) for other in found):
            found.append(row)
    return tuple(found)
