"""All scores of an ablation: by network, task and step, one dictionary of numbers per seed."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from sat_udpdiff.ablation.statistics import Estimate, estimate
from sat_udpdiff.config import Task
from sat_udpdiff.evaluation import paper
from sat_udpdiff.evaluation.paper import Column

_PAPER = {column.header: column for column in paper.COLUMNS} | {
    "ARI": Column(header="ARI", score="segmentation_ari", digits=4),
    "mIoU": Column(header="mIoU", score="segmentation_miou", digits=4),
}
_TINY = "tiny"
COLUMNS: Mapping[str, Mapping[str, Column]] = {
    "paper": _PAPER,
    _TINY: {
        header: replace(column, header=f"{_TINY} {header}", score=f"{_TINY}_{column.score}")
        for header, column in _PAPER.items()
    },
}
"""What fills the paper's columns, by their headers there. tiny: stand-ins that a judge of the tiny
world gives, on a scale of their own."""
FED_BY: Mapping[str, tuple[str, ...]] = {
    "paper": ("subject_consistency", "background_consistency", "motion_smoothness", "fvd"),
    _TINY: ("tiny",),
}
"""Measures that fill the columns by which the orderings are judged, at least one of which runs."""
DENSE = ("delta1", "RMSE", "ARI", "mIoU")
"""Columns of dense maps; the paper has the first two, of one network (Table 3)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """A network at one step, sampled for one task."""

    arm: str
    task: Task | None
    step: int


@dataclass(kw_only=True, slots=True)
class ScoreBook:
    """Scores as they come in."""

    values: dict[Judged, dict[int, dict[str, float]]] = field(default_factory=dict)
    """By what was judged, then by training seed, then by name of the score."""

    def add(self, judged: Judged, *, seed: int, scores: Mapping[str, float]) -> None:
        """Take the scores of one training seed; those of an earlier call stay."""
        self.values.setdefault(judged, {}).setdefault(seed, {}).update(scores)

    def by_seed(self, judged: Judged, *, column: Column) -> dict[int, float]:
        """A column by training seed, as it is printed, of the seeds that have it."""
        seeds = self.values.get(judged, {})
        return {
            seed: column.factor * found[column.score]
            for seed, found in sorted(seeds.items())
            if column.score in found
        }

    def estimate(self, judged: Judged, *, column: Column) -> Estimate | None:
        """A cell of a table; None without a score."""
        return estimate(list(self.by_seed(judged, column=column).values()))

    def steps(self, arm: str, *, task: Task | None) -> list[int]:
        """Steps at which a network was judged."""
        return sorted({key.step for key in self.values if (key.arm, key.task) == (arm, task)})

    def rows(self) -> Iterator[dict[str, object]]:
        """Every number, for JSON."""
        for key, seeds in self.values.items():
            for seed, scores in sorted(seeds.items()):
                yield {
                    "arm": key.arm,
                    "task": key.task,
                    "step": key.step,
                    "seed": seed,
                    "scores": scores,
                }
