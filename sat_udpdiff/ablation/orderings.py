"""Which of the paper's orderings hold here: its numbers as claims, ours as verdicts."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum

from sat_udpdiff.ablation.recipes import CURVE_COLUMNS, CURVES, TABLES, Row, Table
from sat_udpdiff.ablation.scores import COLUMNS, Judged, ScoreBook
from sat_udpdiff.ablation.statistics import CONFIDENCE, Estimate, paired_difference
from sat_udpdiff.evaluation.paper import Column

CURVE_NAME = "Fig. 8"


class Verdict(Enum):
    """What the scores of several training seeds say about a claim."""

    HOLDS = "holds"
    FAILS = "does not hold"
    """The reverse is true, as surely."""
    UNDECIDED = "undecided"
    """The interval of the difference includes 0."""
    MISSING = "not measured"
    """Fewer than two seeds have both scores."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """The paper says: by this column, `better` is better than `worse`."""

    table: str
    column: str
    better: Row
    worse: Row

    def __str__(self) -> str:
        return f"{self.table}, {self.column}: {self.better.label} above {self.worse.label}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """A claim, and what was found."""

    claim: Claim
    verdict: Verdict
    difference: Estimate | None
    """By how much the claimed row is better, in the unit of the column; above 0 agrees."""


def claims(tables: tuple[Table, ...] = TABLES) -> Iterator[Claim]:
    """What the paper's numbers say of every pair of rows that it compares, column by column.

    The direction is that of the numbers, not of the method: in Table 2 the baseline has the better
    background consistency. Equal numbers claim nothing.
    """
    for table in tables:
        for names in table.pairs:
            rows = [table.row(name) for name in names]
            for column in table.columns:
                if all(column in row.paper for row in rows):
                    yield from _ordered(rows, table=table.name, column=column)


def _ordered(rows: list[Row], *, table: str, column: str) -> Iterator[Claim]:
    lower, higher = sorted(rows, key=lambda row: row.paper[column])
    if lower.paper[column] == higher.paper[column]:
        return
    is_high_better = COLUMNS["paper"][column].higher_is_better
    better, worse = (higher, lower) if is_high_better else (lower, higher)
    yield Claim(table=table, column=column, better=better, worse=worse)


def judge_all(book: ScoreBook, *, columns: Mapping[str, Column], step: int) -> list[Judgement]:
    """A verdict on every claim of the tables, and of Fig. 8.

    Args:
        book: The scores.
        columns: What stands in for the paper's columns.
        step: Of the tables: the last one.
    """
    found = [judge(claim, book, columns=columns, step=step) for claim in claims()]
    return found + judge_curves(book, columns=columns)


def judge(claim: Claim, book: ScoreBook, *, columns: Mapping[str, Column], step: int) -> Judgement:
    """Hold the scores of both rows against each other, seed by seed."""
    column = columns[claim.column]
    better, worse = (
        book.by_seed(Judged(arm=row.arm, task=row.task, step=step), column=column)
        for row in (claim.better, claim.worse)
    )
    return _judgement(claim, better, worse, column=column)


def judge_curves(book: ScoreBook, *, columns: Mapping[str, Column]) -> list[Judgement]:
    """Fig. 8: is training on both tasks better than on one, on average over the steps shown?

    One verdict per column and not one per step: neighbouring steps say much the same.
    """
    worse, better = (
        replace(row, label=f"{row.label}, mean over steps", paper={}) for row in CURVES
    )
    steps = set(book.steps(worse.arm, task=worse.task))
    steps &= set(book.steps(better.arm, task=better.task))
    found = []
    for name in CURVE_COLUMNS:
        column = columns[name]
        means = [_mean_over_steps(book, row, steps=steps, column=column) for row in (better, worse)]
        claim = Claim(table=CURVE_NAME, column=name, better=better, worse=worse)
        found.append(_judgement(claim, *means, column=column))
    return found


def _mean_over_steps(
    book: ScoreBook, row: Row, *, steps: set[int], column: Column
) -> dict[int, float]:
    """By seed, of the seeds that were scored at all steps."""
    curves = [
        book.by_seed(Judged(arm=row.arm, task=row.task, step=step), column=column)
        for step in sorted(steps)
    ]
    seeds = set.intersection(*(set(curve) for curve in curves)) if curves else set()
    return {seed: sum(curve[seed] for curve in curves) / len(curves) for seed in sorted(seeds)}


def _judgement(
    claim: Claim, better: Mapping[int, float], worse: Mapping[int, float], *, column: Column
) -> Judgement:
    sign = 1.0 if column.higher_is_better else -1.0
    difference = paired_difference(
        {seed: sign * value for seed, value in better.items()},
        {seed: sign * value for seed, value in worse.items()},
    )
    return Judgement(claim=claim, verdict=verdict_of(difference), difference=difference)


def verdict_of(difference: Estimate | None) -> Verdict:
    """What an interval says of the claim that the difference is above 0."""
    if difference is None or difference.low is None or difference.high is None:
        return Verdict.MISSING
    if difference.low > 0:
        return Verdict.HOLDS
    return Verdict.FAILS if difference.high < 0 else Verdict.UNDECIDED


def summary(judgements: list[Judgement]) -> str:
    """How many of each verdict, and how many would come about by chance."""
    counts = dict.fromkeys(Verdict, 0)
    for judgement in judgements:
        counts[judgement.verdict] += 1
    told = ", ".join(f"{count} {verdict.value}" for verdict, count in counts.items() if count)
    chance = (1 - CONFIDENCE) * (len(judgements) - counts[Verdict.MISSING])
    return (
        f"{len(judgements)} orderings: {told}. Of so many intervals of {CONFIDENCE:.0%} about "
        f"{chance:.1f} would miss 0 by chance alone; one seed more or less may turn a close one."
    )
