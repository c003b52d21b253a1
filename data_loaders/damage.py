"""Clips that cannot be used: each named once, counted, and too many of them an end of the run."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from data_loaders.schema import DataError

_log = logging.getLogger(__name__)
_MOST_NAMED = 10


class DamagedClipsError(DataError):
    """Clips that cannot be used, the others of the batch being well.

    Args:
        reasons: Key -> why, in one line.
    """

    def __init__(self, reasons: dict[str, str]) -> None:
        self.reasons = reasons
        super().__init__("; ".join(f"sample {key!r}: {why}" for key, why in reasons.items()))


@dataclass(kw_only=True)
class DamageCount:
    """What one rank, or all of them, have met since the start."""

    source: str
    """Data set, for messages."""
    num_clips: int
    """Of the data set."""
    allowed: float
    """Share of the data set that may be damaged: `data.max_bad_share`."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Key -> why."""

    def note(self, key: str, reason: str) -> None:
        """Count a clip and log it, the first time that it is met.

        Raises:
            DataError: More clips are damaged than allowed; the message is the report.
        """
        if key not in self.reasons:
            _log.warning("skipped damaged clip %s: %s", key, reason)
        self.reasons[key] = reason
        self.check()

    def check(self) -> None:
        """Raise DataError, with the report, where more clips are damaged than allowed."""
        share = len(self.reasons) / self.num_clips
        if share > self.allowed:
            raise DataError(
                f"{self.source}: {len(self.reasons)} of {self.num_clips} clips are damaged "
                f"({share:.1%}; data.max_bad_share allows {self.allowed:.1%}): {self.report()}; "
                "python -m data_loaders.shards verify names all"
            )

    def joined(self, reasons: Iterable[dict[str, str]]) -> "DamageCount":
        """What all ranks have met, each clip counted once."""
        return replace(self, reasons={key: why for part in reasons for key, why in part.items()})

    def report(self) -> str:
        """The first clips with their reasons, and how many more there are."""
        lines = [f"{key}: {reason}" for key, reason in list(self.reasons.items())[:_MOST_NAMED]]
        left = len(self.reasons) - len(lines)
        return "; ".join(lines) + (f"; and {left} more" if left > 0 else "")
