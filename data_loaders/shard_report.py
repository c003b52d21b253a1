"""What a folder of shards holds, as text: one table of facts, and histograms."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from data_loaders.shard_format import Manifest
from data_loaders.shard_stats import ClipStats, WordCounts

_BAR = 32
"""Characters of the longest bar."""
_MOST_ROWS = 24
"""Rows of a histogram; more numbers than that are joined to ranges, more names cut off."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Histogram:
    """Counts to be drawn as bars."""

    title: str
    counts: dict[str, int]
    """Rows in the order to draw."""


def facts(manifest: Manifest) -> dict[str, str]:
    """Figures of a folder, by name."""
    totals = manifest.totals
    found = {
        "kind": manifest.kind,
        "samples": f"{totals.num_samples:,}",
        "shards": f"{len(manifest.shards):,}",
        "size": human_bytes(totals.num_bytes),
    }
    if totals.num_damaged:
        found["damaged samples"] = f"{totals.num_damaged:,}"
    if totals.stats is not None:
        found |= _clip_facts(totals.stats)
    return found | {
        f"extra: {name}": str(value)
        for name, value in manifest.extra.items()
        if not isinstance(value, dict | list)
    }


def _clip_facts(stats: ClipStats) -> dict[str, str]:
    def share(count: int) -> str:
        return f"{count:,} ({100 * count / max(stats.clips, 1):.0f}%)"

    return {
        "frames": f"{stats.frames:,}",
        "length": _human_seconds(stats.seconds),
        "with entity ids": share(stats.with_ids),
        "with depth": share(stats.with_depth),
        "short captions": _words(stats.short_words),
        "long captions": _words(stats.long_words),
    }


def histograms(manifest: Manifest) -> list[Histogram]:
    """Distributions of a folder; those of clips only where it holds clips."""
    stats = manifest.totals.stats
    if stats is None:
        return []
    found = {
        "picture size": stats.sizes,
        "frames per second": stats.rates,
        "frames per clip": stats.lengths,
        "entities per clip": stats.entities,
    }
    return [
        Histogram(title=title, counts=_joined(counts)) for title, counts in found.items() if counts
    ]


def member_rows(manifest: Manifest) -> list[tuple[str, int, int]]:
    """(member, samples that have it, bytes) of a folder, the largest first."""
    totals = manifest.totals
    rows = [(name, n, totals.member_bytes.get(name, 0)) for name, n in totals.members.items()]
    return sorted(rows, key=lambda row: (-row[2], row[0]))


def text_report(manifest: Manifest) -> Iterator[str]:
    """Lines of a report for a terminal."""
    table = facts(manifest)
    width = max(map(len, table))
    for name, value in table.items():
        yield f"{name:<{width}}  {value}"
    yield ""
    yield f"{'member':<12} {'samples':>10} {'size':>10} {'mean':>10}"
    for name, count, size in member_rows(manifest):
        mean = human_bytes(size / max(count, 1))
        yield f"{name:<12} {count:>10,} {human_bytes(size):>10} {mean:>10}"
    for histogram in histograms(manifest):
        yield ""
        yield histogram.title
        yield from _bars(histogram.counts)


def _bars(counts: Mapping[str, int]) -> Iterator[str]:
    width = max(map(len, counts))
    most = max(counts.values())
    for name, count in counts.items():
        bar = "#" * max(1, round(_BAR * count / most)) if count else ""
        yield f"  {name:>{width}}  {bar:<{_BAR}}  {count:,}"


def _joined(counts: Mapping[str, int]) -> dict[str, int]:
    """At most `_MOST_ROWS` rows: whole numbers in ranges of equal width, else the commonest."""
    if len(counts) <= _MOST_ROWS:
        return dict(counts)
    if not all(name.isdigit() for name in counts):
        common = sorted(counts, key=lambda name: -counts[name])[: _MOST_ROWS - 1]
        rest = sum(counts.values()) - sum(counts[name] for name in common)
        return {name: counts[name] for name in common} | {"others": rest}
    numbers = {int(name): count for name, count in counts.items()}
    low, high = min(numbers), max(numbers)
    step = -(-(high - low + 1) // _MOST_ROWS)
    joined: dict[str, int] = {}
    for start in range(low, high + 1, step):
        end = start + step - 1
        joined[f"{start}-{end}"] = sum(c for n, c in numbers.items() if start <= n <= end)
    return joined


def _words(words: WordCounts) -> str:
    return f"{words.fewest} to {words.most} words, {words.mean:.1f} on the mean"


def _human_seconds(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:,.1f} h"


def human_bytes(size: int | float) -> str:
    """A number of bytes for people: 1.5 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 99.5 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"
