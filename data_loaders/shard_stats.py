"""What a folder of clips holds, in figures that add up: of one clip, of a shard, of all shards."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


def add_counts(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Sum of counts by name, sorted by number where the names are numbers."""
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return {name: total[name] for name in sorted(total, key=_natural)}


def _natural(name: str) -> tuple[float, str]:
    try:
        return (float(name), "")
    except ValueError:
        return (float("inf"), name)


@dataclass(frozen=True, kw_only=True, slots=True)
class WordCounts:
    """Lengths of captions, in words."""

    texts: int = 0
    words: int = 0
    """Of all texts."""
    fewest: int = 0
    most: int = 0

    @property
    def mean(self) -> float:
        """Words per text; 0 without texts."""
        return self.words / self.texts if self.texts else 0.0

    @classmethod
    def of(cls, text: str) -> "WordCounts":
        """Count one text."""
        words = len(text.split())
        return cls(texts=1, words=words, fewest=words, most=words)

    @classmethod
    def total(cls, parts: Iterable["WordCounts"]) -> "WordCounts":
        """Sum of counts."""
        filled = [part for part in parts if part.texts]
        if not filled:
            return cls()
        return cls(
            texts=sum(part.texts for part in filled),
            words=sum(part.words for part in filled),
            fewest=min(part.fewest for part in filled),
            most=max(part.most for part in filled),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipStats:
    """Figures of clips; the histograms count clips."""

    clips: int = 0
    frames: int = 0
    seconds: float = 0.0
    """Frames over frame rate, summed."""
    with_ids: int = 0
    """Clips that have entity ids."""
    with_depth: int = 0
    """Clips that have depth."""
    sizes: dict[str, int] = field(default_factory=dict)
    """By "HEIGHTxWIDTH", pixels."""
    rates: dict[str, int] = field(default_factory=dict)
    """By frames per second, as text of 6 digits."""
    lengths: dict[str, int] = field(default_factory=dict)
    """By frames per clip."""
    entities: dict[str, int] = field(default_factory=dict)
    """By entities per clip; clips that have entity ids only."""
    short_words: WordCounts = field(default_factory=WordCounts)
    long_words: WordCounts = field(default_factory=WordCounts)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "ClipStats":
        """Figures of one clip.

        Args:
            record: `schema.metadata_record`, checked by the caller.
        """
        has_ids = bool(record["has_entity_ids"])
        return cls(
            clips=1,
            frames=record["frames"],
            seconds=record["frames"] / record["fps"],
            with_ids=int(has_ids),
            with_depth=int(record["has_depth"]),
            sizes={f"{record['height']}x{record['width']}": 1},
            rates={f"{record['fps']:g}": 1},
            lengths={str(record["frames"]): 1},
            entities={str(record["meta"]["num_entities"]): 1} if has_ids else {},
            short_words=WordCounts.of(record["caption_short"]),
            long_words=WordCounts.of(record["caption_long"]),
        )

    @classmethod
    def total(cls, parts: Iterable["ClipStats"]) -> "ClipStats":
        """Sum of figures, in the order given (seconds are a sum of floats)."""
        parts = list(parts)
        return cls(
            clips=sum(part.clips for part in parts),
            frames=sum(part.frames for part in parts),
            seconds=float(sum(part.seconds for part in parts)),
            with_ids=sum(part.with_ids for part in parts),
            with_depth=sum(part.with_depth for part in parts),
            sizes=add_counts(part.sizes for part in parts),
            rates=add_counts(part.rates for part in parts),
            lengths=add_counts(part.lengths for part in parts),
            entities=add_counts(part.entities for part in parts),
            short_words=WordCounts.total(part.short_words for part in parts),
            long_words=WordCounts.total(part.long_words for part in parts),
        )

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "ClipStats":
        """What `dataclasses.asdict` made.

        Raises:
            TypeError: A field lacks, or there is one too many.
        """
        words = {name: WordCounts(**value[name]) for name in ("short_words", "long_words")}
        return cls(**{**value, **words})
