"""Scores that were made up."""

from sat_udpdiff.ablation.scores import COLUMNS, Judged, ScoreBook

STEP = 320
TINY = COLUMNS["tiny"]


def fill(book: ScoreBook, arm: str, task, *, values, step: int = STEP) -> None:
    """The same value for every score of a seed, FVD the other way round."""
    for seed, value in enumerate(values):
        scores = {column.score: value for column in TINY.values() if column.higher_is_better}
        scores |= {column.score: -value for column in TINY.values() if not column.higher_is_better}
        book.add(Judged(arm=arm, task=task, step=step), seed=seed, scores=scores)
