"""Fig. 8: scores over training steps, on one task and on both."""

from collections.abc import Sequence
from io import BytesIO
from typing import Any

from sat_udpdiff.ablation.recipes import CURVES
from sat_udpdiff.ablation.scores import Judged, ScoreBook
from sat_udpdiff.ablation.statistics import Estimate
from sat_udpdiff.evaluation.paper import Column

_COLOURS = ("#b45309", "#1d4ed8")


def curves_png(book: ScoreBook, *, columns: Sequence[Column]) -> bytes:
    """One panel per column: means over seeds as lines, seeds as dots, intervals as bands.

    Args:
        book: The scores.
        columns: Of the panels.

    Returns:
        A PNG.
    """
    # A second to import, and of no use to a program that plans or trains.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(columns), 3.4), layout="constrained")
    panels = figure.subplots(1, len(columns), squeeze=False)[0]
    for panel, column in zip(panels, columns, strict=True):
        draw_panel(panel, book, column=column)
        panel.set_title(column.header, fontsize=10)
        panel.set_xlabel("steps")
        panel.spines[["top", "right"]].set_visible(False)
    if panels[0].get_legend_handles_labels()[0]:
        panels[0].legend()
    buffer = BytesIO()
    # Without the version of the program, which is nothing of the scores.
    figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    return buffer.getvalue()


def draw_panel(panel: Any, book: ScoreBook, *, column: Column) -> None:
    """Draw both curves of a column into axes of matplotlib."""
    curves = [_draw(panel, book, number=number, column=column) for number in range(len(CURVES))]
    # With few seeds bands are far wider than what they are about: they do not set the axis.
    limits = panel.get_ylim()
    for colour, found in zip(_COLOURS, curves, strict=True):
        bands = [(step, e.low, e.high) for step, e in found if e.low is not None]
        if bands:
            panel.fill_between(*map(list, zip(*bands, strict=True)), color=colour, alpha=0.1)
    panel.set_ylim(limits)


def _draw(
    panel: Any, book: ScoreBook, *, number: int, column: Column
) -> list[tuple[int, Estimate]]:
    """Seeds and means of one curve; returns the means by step."""
    row, colour = CURVES[number], _COLOURS[number]
    found = []
    for step in book.steps(row.arm, task=row.task):
        judged = Judged(arm=row.arm, task=row.task, step=step)
        if estimate := book.estimate(judged, column=column):
            found.append((step, estimate))
            values = list(book.by_seed(judged, column=column).values())
            panel.plot([step] * len(values), values, ".", color=colour, alpha=0.5)
    if found:
        means = [estimate.mean for _, estimate in found]
        panel.plot([step for step, _ in found], means, "-", color=colour, label=row.label)
    return found
