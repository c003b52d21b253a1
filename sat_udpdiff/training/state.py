"""What a run counts, beside its tensors."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(kw_only=True, slots=True)
class TrainState:
    """Counters that a checkpoint carries; the data position is `samples_seen`."""

    step: int = 0
    """Steps done, skipped ones included."""
    samples_seen: int = 0
    """Over all ranks; sample numbers 0 .. samples_seen - 1 of the run's order are used up."""
    bad_steps: int = 0
    """Steps skipped because a loss or a gradient was not finite."""
    bad_in_a_row: int = 0
    """Of these, the ones since the last step that was not skipped."""
    overflow_steps: int = 0
    """fp16: steps skipped while the loss scale was adapting, which is expected."""
    failed_validations: int = 0
    meters: list[list[float]] = field(default_factory=list)
    """Sums since the last logged step, one row per rank, so that resumed metrics are exact."""

    spike_watch: list[float] = field(default_factory=list)
    """Of `watch.SpikeWatch`."""

    def to_values(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)
