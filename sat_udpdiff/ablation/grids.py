"""The numbers of an ablation as tables of words, for markdown and for a page."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sat_udpdiff.ablation.orderings import Judgement
from sat_udpdiff.ablation.recipes import ARMS, CURVE_COLUMNS, CURVES, SHOWN, TABLES, Row
from sat_udpdiff.ablation.scores import DENSE, Judged, ScoreBook
from sat_udpdiff.ablation.statistics import Estimate
from sat_udpdiff.evaluation.paper import Column

NOTHING = "-"


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """A table as it is printed."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """With its title."""
        lines = [_line(self.head), _line(["---"] * len(self.head)), *map(_line, self.rows)]
        return "\n".join([f"### {self.title}", "", *lines])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def paper_grids(
    book: ScoreBook, *, columns: Mapping[str, Column], step: int, seeds: int
) -> Iterator[Grid]:
    """Every table of the paper: our mean and interval of each cell, and the paper's number.

    Args:
        book: The scores.
        columns: What stands in for the paper's.
        step: At which networks are compared.
        seeds: How many there should be; cells of fewer say so.
    """
    for table in TABLES:
        ours = [columns[name] for name in table.columns]
        head = ("", *(column.header for column in ours), *(f"paper {c}" for c in table.columns))
        rows = tuple(
            (
                row.label,
                *_cells(book, row, columns=ours, step=step, seeds=seeds),
                *(_papers(row, name) for name in table.columns),
            )
            for row in table.rows
        )
        yield Grid(title=f"{table.name}: {table.title}", head=head, rows=rows)


def all_grid(book: ScoreBook, *, columns: Mapping[str, Column], step: int, seeds: int) -> Grid:
    """Every network with every score; those of dense maps the paper has of one network or none."""
    ours = [columns[name] for name in (*SHOWN, *DENSE)]
    rows = []
    for arm in ARMS.values():
        for task in arm.judged:
            row = Row(label=f"{arm.name}, {task or 'no map'}", arm=arm.name, task=task)
            rows.append((row.label, *_cells(book, row, columns=ours, step=step, seeds=seeds)))
    return Grid(
        title="All networks",
        head=("", *(column.header for column in ours)),
        rows=tuple(row for row in rows if set(row[1:]) != {NOTHING}),
    )


def ordering_grid(judgements: Sequence[Judgement], *, columns: Mapping[str, Column]) -> Grid:
    """Every claim with the paper's numbers, our difference and the verdict."""
    rows = []
    for judgement in judgements:
        claim = judgement.claim
        papers = [_papers(row, claim.column) for row in (claim.better, claim.worse)]
        rows.append(
            (
                claim.table,
                claim.column,
                f"{claim.better.label} above {claim.worse.label}",
                " against ".join(papers) if NOTHING not in papers else "a plot",
                _interval(judgement.difference, digits=columns[claim.column].digits),
                judgement.verdict.value,
            )
        )
    return Grid(
        title="The paper's orderings",
        head=("table", "score", "the paper finds", "paper", "ours, by how much better", "verdict"),
        rows=tuple(rows),
    )


def curve_grid(book: ScoreBook, *, columns: Mapping[str, Column], seeds: int) -> Grid:
    """Fig. 8 in numbers."""
    ours = [columns[name] for name in CURVE_COLUMNS]
    rows = tuple(
        (row.label, str(step), *_cells(book, row, columns=ours, step=step, seeds=seeds))
        for row in CURVES
        for step in book.steps(row.arm, task=row.task)
    )
    head = ("", "step", *(column.header for column in ours))
    return Grid(title="Fig. 8: Scores over steps", head=head, rows=rows)


def facts_grids(score_facts: Mapping[str, Mapping[str, object]]) -> Iterator[Grid]:
    """What scores depend on: N, T, rate, size, weights; no table of nothing."""
    rows = tuple(
        (name, ", ".join(f"{key}={value}" for key, value in facts.items()))
        for name, facts in score_facts.items()
    )
    if rows:
        yield Grid(title="What the scores depend on", head=("score", "facts"), rows=rows)


def _cells(
    book: ScoreBook, row: Row, *, columns: Sequence[Column], step: int, seeds: int
) -> list[str]:
    judged = Judged(arm=row.arm, task=row.task, step=step)
    return [
        cell(book.estimate(judged, column=column), digits=column.digits, seeds=seeds)
        for column in columns
    ]


def cell(found: Estimate | None, *, digits: int, seeds: int) -> str:
    """A mean with half its interval, and the number of seeds where it is not `seeds`."""
    if found is None:
        return NOTHING
    mean = f"{found.mean:.{digits}f}"
    half = "" if found.half_width is None else f" ± {found.half_width:.{digits}f}"
    few = "" if found.count == seeds and seeds > 1 else f" ({_seeds(found.count)})"
    return f"{mean}{half}{few}"


def _interval(found: Estimate | None, *, digits: int) -> str:
    if found is None:
        return NOTHING
    if found.low is None or found.high is None:
        return f"{found.mean:+.{digits}f} ({_seeds(found.count)})"
    return f"{found.mean:+.{digits}f} [{found.low:+.{digits}f}, {found.high:+.{digits}f}]"


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"


def _papers(row: Row, name: str) -> str:
    return f"{row.paper[name]:.2f}" if name in row.paper else NOTHING
