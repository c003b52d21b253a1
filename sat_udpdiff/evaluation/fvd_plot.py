"""The bias of FVD by the number of videos, as a picture."""

import io
from collections.abc import Mapping, Sequence

from sat_udpdiff.evaluation.fvd import SizeBias


def draw_size_bias(curves: Mapping[str, Sequence[SizeBias]], *, title: str) -> bytes:
    """Distance between sets of one distribution, whose truth is 0, over their size.

    Args:
        curves: By what the features are of.
        title: Above the picture.

    Returns:
        A PNG file; the same bytes for the same figures.

    Raises:
        ValueError: There is nothing to draw.
    """
    if not any(curves.values()):
        raise ValueError("size bias: expected one or more sizes to draw, got none")
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for name, rows in curves.items():
        sizes, means = [row.size for row in rows], [row.mean for row in rows]
        below = [row.mean - min(row.values) for row in rows]
        above = [max(row.values) - row.mean for row in rows]
        axes.errorbar(sizes, means, yerr=(below, above), marker="o", capsize=3, label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = sorted({row.size for rows in curves.values() for row in rows})
    axes.set_xticks(ticks, [str(size) for size in ticks])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("videos in each set")
    axes.set_ylabel("distance (truth: 0)")
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    buffer = io.BytesIO()
    # Without the version of the program, which is not a figure of the data.
    figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    return buffer.getvalue()
