"""Plots of scores per video; arrays in, PNG files out."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from sat_udpdiff.evaluation.measure import Histogram

_BINS = 20
_SIZE = (5.0, 3.2)
_DPI = 110
_DASHES = ("-", "--", "-.", (0, (1, 1)))


def distributions(
    values: Mapping[str, Sequence[float]], *, title: str, axis: str, means: bool = True
) -> bytes:
    """Histograms of several sets over one axis, as outlines.

    Args:
        values: Name of a set -> its values, one or more, finite.
        title: Of the plot.
        axis: What the values are.
        means: Draw the mean of each set.

    Returns:
        A PNG.
    """
    figure, axes = _figure(title, x=axis, y="videos")
    every = np.concatenate([np.asarray(v, dtype=float) for v in values.values()])
    edges = np.histogram_bin_edges(every, bins=_BINS)
    for i, (name, some) in enumerate(values.items()):
        colour = f"C{i}"
        # Outlines that lie on each other are told apart by their dashes.
        axes.hist(some, bins=edges, histtype="step", linewidth=1.6, color=colour, label=name,
                  linestyle=_DASHES[i % len(_DASHES)])  # fmt: skip
        if means:
            axes.axvline(float(np.mean(some)), color=colour, linestyle=":", linewidth=1.2)
    axes.yaxis.get_major_locator().set_params(integer=True)
    return _png(figure)


def cumulative(values: Mapping[str, Sequence[float]], *, title: str, axis: str) -> bytes:
    """Share of videos up to each value, one curve per set: errors of different sets compare so.

    Args:
        values: As for `distributions`.
        title: Of the plot.
        axis: What the values are.

    Returns:
        A PNG.
    """
    figure, axes = _figure(title, x=axis, y="share of videos")
    for name, some in values.items():
        axes.ecdf(np.asarray(some, dtype=float), label=name, linewidth=1.6)
    return _png(figure)


def histogram(shares: Mapping[str, Histogram], *, title: str) -> bytes:
    """Histograms of one thing over one axis, as outlines.

    Args:
        shares: Name of a set -> its histogram.
        title: Of the plot.

    Returns:
        A PNG.
    """
    figure, axes = _figure(title, x=next(iter(shares.values())).axis, y="share")
    for name, one in shares.items():
        for of, values in one.shares.items():
            label = f"{name}, {of}" if of else name
            axes.stairs(values, one.edges, label=label, linewidth=1.6)
    return _png(figure)


def _figure(title: str, *, x: str, y: str) -> tuple[Figure, Any]:
    # Not pyplot: it keeps figures, and wants a display where one is named.
    with matplotlib.rc_context({"font.size": 8}):
        figure = Figure(figsize=_SIZE, dpi=_DPI, layout="constrained")
        axes = figure.add_subplot()
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _png(figure: Figure) -> bytes:
    # Below, where it hides nothing.
    figure.legend(fontsize=7, frameon=False, loc="outside lower center", ncols=2)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
