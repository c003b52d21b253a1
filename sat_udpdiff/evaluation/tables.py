"""Evaluations as markdown: the paper's columns beside its own rows, then everything else."""

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

from sat_udpdiff.config import Task
from sat_udpdiff.evaluation.measure import Score
from sat_udpdiff.evaluation.paper import (
    COLUMNS,
    COMPARISON,
    NUM_CLIPS,
    TITLES,
    PaperRow,
    rows_of_kind,
)
from sat_udpdiff.evaluation.run import NO_MAP, Evaluation, Group

_OURS = tuple(column.score for column in COLUMNS)
_COMPARED = tuple(column.compared for column in COLUMNS)


def markdown(evaluations: Sequence[Evaluation]) -> str:
    """All tables, with titles."""
    parts = ["# Evaluation", paper_table(evaluations)]
    for title, rows in (
        ("Other scores", other_scores(evaluations)),
        ("What the numbers depend on", score_facts(evaluations)),
        ("Left out", exclusions(evaluations)),
        ("Cost", costs(evaluations)),
    ):
        if rows:
            parts.append(f"## {title}\n\n{rows}")
    return "\n\n".join(parts) + "\n"


def paper_table(evaluations: Sequence[Evaluation]) -> str:
    """Scores in the paper's form; below each row the paper's own of such a network.

    Then those of the depth model that ours is compared with, where it was asked. With 95 %
    intervals where there are any. The paper's numbers are of 1024 clips of Panda-70M and of
    networks of 5B: beside other clips or networks they are no standard to meet.
    """
    heads = ["row", "task", "videos", *(column.header for column in COLUMNS)]
    lines: list[list[str]] = []
    told: tuple[PaperRow, ...] = ()
    for evaluation in evaluations:
        for group in evaluation.groups:
            paper = paper_rows(evaluation, group=group)
            has_own = any(group.score(name) for name in _OURS)
            is_new = bool(paper) and paper != told and has_own
            lines.append(_our_cells(evaluation.name, group, names=_OURS))
            if is_new:
                lines.append(_paper_cells(paper, title=TITLES[paper[0].table].lower()))
                told = paper
            if other := _compared_model(group):
                lines.append(_our_cells(f"{evaluation.name}: {other}", group, names=_COMPARED))
                if is_new:
                    lines.append(_paper_cells((COMPARISON,), title=COMPARISON.name))
    return table(heads, lines)


def paper_rows(evaluation: Evaluation, *, group: Group) -> tuple[PaperRow, ...]:
    """The rows of the paper that a group stands beside.

    None for videos of unknown origin, and for networks that the paper does not have.
    """
    kind = evaluation.facts.get("network")
    task = None if group.name == NO_MAP else cast(Task, group.name)
    return rows_of_kind(kind, task=task) if isinstance(kind, str) else ()


def other_scores(evaluations: Sequence[Evaluation]) -> str:
    """Scores that the paper has no column for; '' without any."""
    rows = [
        [*row, f"{score.value:.4f}", _interval(score, factor=1.0, digits=4), str(_count(score))]
        for *row, score in _all_scores(evaluations)
        if score.name not in _OURS + _COMPARED
    ]
    heads = ["row", "task", "score", "value", "95 % interval", "videos"]
    return table(heads, rows) if rows else ""


def score_facts(evaluations: Sequence[Evaluation]) -> str:
    """What each score depends on; '' where no score says anything."""
    rows = [
        [*row, ", ".join(f"{name}={value}" for name, value in score.facts.items())]
        for *row, score in _all_scores(evaluations)
        if score.facts
    ]
    return table(["row", "task", "score", "facts"], rows) if rows else ""


def exclusions(evaluations: Sequence[Evaluation]) -> str:
    """Every video that was left out, and scores that could not be made; '' where all is well."""
    rows = []
    for evaluation in evaluations:
        rows += [[evaluation.name, "all", *item] for item in evaluation.left_out.items()]
        for group in evaluation.groups:
            rows += _reasons(f"{evaluation.name}, {group.name}", group.exclusions)
            rows += [
                [f"{evaluation.name}, {group.name}", measure, "the set", reason]
                for measure, reason in group.failures.items()
            ]
        rows += _reasons(f"{evaluation.name}, references", evaluation.reference_exclusions)
    return table(["row", "measure", "video", "reason"], rows) if rows else ""


def costs(evaluations: Sequence[Evaluation]) -> str:
    """Time of each measure on one process; '' where nothing was measured."""
    rows = [
        [
            evaluation.name,
            name,
            str(cost.videos),
            f"{cost.seconds:.2f}",
            f"{cost.videos_per_minute:.1f}",
        ]
        for evaluation in evaluations
        for name, cost in evaluation.costs.items()
    ]
    heads = ["row", "measure", "videos", "seconds", "videos per minute"]
    return table(heads, rows) if rows else ""


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table; bars in cells are told from borders."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |"
        for line in lines
    )


def _all_scores(evaluations: Sequence[Evaluation]) -> Iterator[tuple[str, str, str, Score]]:
    for evaluation in evaluations:
        for group in evaluation.groups:
            for score in group.scores:
                yield evaluation.name, group.name, score.name, score


def _compared_model(group: Group) -> str | None:
    scores = (score for score in group.scores if score.name in _COMPARED)
    return next((str(score.facts.get("model", "other model")) for score in scores), None)


def _our_cells(name: str, group: Group, *, names: Sequence[str | None]) -> list[str]:
    """`names` are of the scores in the columns."""
    scores = [None if score is None else group.score(score) for score in names]
    cells = [_cell(score, number=i) for i, score in enumerate(scores)]
    return [name, group.name, str(len(group.videos)), *cells]


def _cell(score: Score | None, *, number: int) -> str:
    if score is None:
        return ""
    column = COLUMNS[number]
    interval = _interval(score, factor=column.factor, digits=column.digits)
    return f"{column.text(score.value)} {interval}".rstrip()


def _interval(score: Score, *, factor: float, digits: int) -> str:
    if score.interval is None:
        return ""
    low, high = (f"{factor * value:.{digits}f}" for value in score.interval)
    return f"({low} to {high})"


def _count(score: Score) -> int | str:
    return len(score.per_video) or ""


def _paper_cells(paper: Sequence[PaperRow], *, title: str) -> list[str]:
    values = {header: value for row in paper for header, value in row.values.items()}
    tables = f"Table{'s' * (len(paper) > 1)} {', '.join(str(row.table) for row in paper)}"
    cells = [
        f"{values[column.header]:.{column.digits}f}" if column.header in values else ""
        for column in COLUMNS
    ]
    return [f"*paper, {tables} ({title})*", paper[0].task or NO_MAP, str(NUM_CLIPS), *cells]


def _reasons(row: str, excluded: Mapping[str, Mapping[str, str]]) -> list[list[str]]:
    return [
        [row, measure, video, reason]
        for measure, videos in excluded.items()
        for video, reason in videos.items()
    ]
