"""What a data set holds, in figures: as JSON, as one picture, and as bars of the page."""

import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_loaders.shard_report import Histogram

ENTITY_GROUPS = tuple((low, low + 4) for low in range(1, 51, 5))
"""Groups of the paper's figure 6, and one for more than 50."""

_BINS = 20
_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)

MEASURES = {
    "entity_area": "area of an entity, share of the picture",
    "entity_lifetime": "frames in which an entity is seen, share",
    "coverage": "labelled pixels of a clip, share",
    "depth_range": "disparity: nearest less farthest, units of the model",
    "motion": "mean optical flow per frame step, share of the diagonal",
    "aesthetic": "aesthetic score",
    "short_caption_words": "words of the short caption",
    "long_caption_words": "words of the long caption",
}


@dataclass(kw_only=True)
class Statistics:
    """Figures of the clips that were kept, and why others were not."""

    listed: int = 0
    """Clips that ingest found."""
    kept: int = 0
    """Clips that came through all stages."""
    open: int = 0
    """Clips that some stage has not done yet."""
    rejections: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Clips by (stage, reason)."""
    entities: Counter[int] = field(default_factory=Counter)
    """Clips by number of entities."""
    values: dict[str, list[float]] = field(default_factory=dict)
    """Every value of `MEASURES`."""

    @classmethod
    def of(cls, records: Iterable[Mapping[str, Any]]) -> "Statistics":
        """Of the rows of `manifest.joined_rows`, of a data set that went through all stages."""
        found = cls(values={name: [] for name in MEASURES})
        for record in records:
            found.add(record)
        return found

    def add(self, record: Mapping[str, Any]) -> None:
        """Count one clip."""
        self.listed += 1
        if record["reject_reason"]:
            self.rejections[record["stage"], record["reject_reason"]] += 1
        elif not record["keep"]:
            self.open += 1
        else:
            self.kept += 1
            self._add_kept(record)

    def _add_kept(self, record: Mapping[str, Any]) -> None:
        if "propagate.num_entities" in record:
            self.entities[record["propagate.num_entities"]] += 1
        low, high = record.get("depth.low"), record.get("depth.high")
        found = {
            "entity_area": record.get("propagate.areas"),
            "entity_lifetime": record.get("propagate.lifetimes"),
            "coverage": record.get("propagate.coverage"),
            "depth_range": None if low is None or high is None else high - low,
            "motion": record.get("filter.motion"),
            "aesthetic": record.get("filter.aesthetic"),
            "short_caption_words": _words(record.get("caption.caption_short")),
            "long_caption_words": _words(record.get("caption.caption_long")),
        }
        for name, value in found.items():
            if value is not None:
                values = value if isinstance(value, list | tuple) else [value]
                self.values[name] += map(float, values)

    def to_json(self) -> dict[str, Any]:
        """JSON values; each measure with its quantiles and a histogram."""
        return {
            "clips": {"listed": self.listed, "kept": self.kept, "open": self.open},
            "rejections": [
                {"stage": stage, "reason": reason, "clips": count}
                for (stage, reason), count in sorted(self.rejections.items())
            ],
            "entities_per_clip": entity_groups(self.entities),
            "measures": {
                name: {"meaning": meaning, **_summary(self.values[name])}
                for name, meaning in MEASURES.items()
                if self.values[name]
            },
        }

    def histograms(self) -> list[Histogram]:
        """Bars for the page."""
        groups = entity_groups(self.entities)
        found = [Histogram(title="entities per clip, in groups of five", counts=groups)]
        if self.rejections:
            reasons = {f"{stage}: {why}": n for (stage, why), n in self.rejections.most_common()}
            found.append(Histogram(title="clips left out", counts=reasons))
        for name, meaning in MEASURES.items():
            if self.values[name]:
                counts, edges = _histogram(self.values[name])
                bars = {f"{edge:.3g}": count for edge, count in zip(edges, counts, strict=False)}
                found.append(Histogram(title=f"{meaning} (from)", counts=bars))
        return [histogram for histogram in found if any(histogram.counts.values())]


def entity_groups(entities: Mapping[int, int]) -> dict[str, int]:
    """Clips by group of their number of entities, as in the paper's figure 6.

    Args:
        entities: Clips by number of entities.
    """
    groups = {
        f"{low}-{high}": sum(entities.get(count, 0) for count in range(low, high + 1))
        for low, high in ENTITY_GROUPS
    }
    groups[">50"] = sum(clips for count, clips in entities.items() if count > 50)
    return groups


def draw(statistics: Statistics) -> bytes:
    """All distributions as one picture.

    Returns:
        A PNG file; the same bytes for the same figures.
    """
    from matplotlib.figure import Figure

    plots = [("entities per clip (groups of the paper's figure 6)", None)]
    plots += [(MEASURES[name], name) for name in MEASURES if statistics.values[name]]
    rows = -(-len(plots) // 3)
    figure = Figure(figsize=(15, 3.4 * rows), layout="constrained")
    for place, (title, name) in enumerate(plots, start=1):
        axes = figure.add_subplot(rows, 3, place)
        axes.set_title(title, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylabel("clips" if name is None else "")
        if name is None:
            groups = entity_groups(statistics.entities)
            axes.bar(range(len(groups)), list(groups.values()), color="#3b6fe0")
            axes.set_xticks(range(len(groups)), list(groups), rotation=45, fontsize=8)
        else:
            counts, edges = _histogram(statistics.values[name])
            axes.bar(edges[:-1], counts, width=np.diff(edges), align="edge", color="#3b6fe0")
    buffer = io.BytesIO()
    # Without the version of the program, which is not a figure of the data.
    figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    return buffer.getvalue()


def _histogram(values: Sequence[float]) -> tuple[list[int], list[float]]:
    counts, edges = np.histogram(np.asarray(values, np.float64), bins=_BINS)
    return [int(count) for count in counts], [float(edge) for edge in edges]


def _summary(values: Sequence[float]) -> dict[str, Any]:
    array = np.asarray(values, np.float64)
    counts, edges = _histogram(values)
    quantiles = zip(_QUANTILES, np.quantile(array, _QUANTILES), strict=True)
    return {
        "values": len(array),
        "mean": float(array.mean()),
        "quantiles": {f"{share:g}": float(value) for share, value in quantiles},
        "histogram": {"counts": counts, "edges": edges},
    }


def _words(text: str | None) -> int | None:
    return None if text is None else len(text.split())
