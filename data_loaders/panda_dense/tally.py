"""What was left out, by reason, with the first places: bad input is counted, not silently lost."""

from dataclasses import dataclass, field


@dataclass(kw_only=True, slots=True)
class Tally:
    """Counts by reason; constant memory however much is added."""

    most_places: int = 5
    """Places kept per reason."""
    counts: dict[str, int] = field(default_factory=dict)
    """How often each reason came."""
    places: dict[str, list[str]] = field(default_factory=dict)
    """The first places of each reason, such as 'line 12: ...'."""

    def add(self, reason: str, place: str = "") -> None:
        """Count once; `place` is kept while there are few."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        kept = self.places.setdefault(reason, [])
        if place and len(kept) < self.most_places:
            kept.append(place)

    @property
    def total(self) -> int:
        """Over all reasons."""
        return sum(self.counts.values())

    def lines(self) -> list[str]:
        """One line per reason, most frequent first, for a log or a report."""
        order = sorted(self.counts, key=lambda reason: (-self.counts[reason], reason))
        return [self._line(reason) for reason in order]

    def _line(self, reason: str) -> str:
        shown = "; ".join(self.places[reason])
        return f"{reason}: {self.counts[reason]}" + (f" (first: {shown})" if shown else "")
