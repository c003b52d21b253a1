"""Which settings to change where a run does not fit, and what to do with room that is left.

Every suggestion is tried: the changed configuration is checked and planned like the given one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sat_udpdiff.config import ConfigError
from sat_udpdiff.plan.changes import ADAPTERS, Change, luxuries, rarer_steps, savings
from sat_udpdiff.plan.machine import Situation
from sat_udpdiff.plan.memory import Memory, estimate_memory
from sat_udpdiff.plan.scaling import TOLERATED, Beside, beside_of, layout_of
from sat_udpdiff.plan.sizes import derive_sizes
from sat_udpdiff.plan.work import Duration, count_work, estimate_duration

# A change that frees less is no help; tables show two digits of a GB.
_LEAST_BYTES = 0.05e9


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a plan says of a situation."""

    change: tuple[Change, ...] = ()
    situation: Situation
    memory: Memory
    duration: Duration | None
    """None where the peak of the GPU is not known (fp32)."""
    beside: Beside | None
    """Of its steps; None likewise."""
    work: float
    """FLOPs per sample."""

    @property
    def cost(self) -> float:
        """GPU seconds per sample; FLOPs where no time is known."""
        if self.duration is None:
            return self.work
        train, size = self.situation.config.train, self.situation.config.parallel.size
        samples = train.micro_batch_size * train.accumulation_steps
        return self.duration.step_seconds * size / samples

    @property
    def fits(self) -> bool:
        """Whether the peak is within the GPU's memory."""
        return self.memory.total <= self.situation.machine.memory

    @property
    def text(self) -> str:
        """The change as the user would write it."""
        return " ".join(change.text for change in self.change)

    @property
    def price(self) -> str:
        """What it costs besides time, or needs."""
        return "; ".join(change.price for change in self.change if change.price)


def examine(situation: Situation, *, change: tuple[Change, ...] = ()) -> Outcome:
    """Plan `situation`, which `change` led to.

    Raises:
        ConfigError: `parallel` does not go with the GPUs; has all numbers.
    """
    config, machine = situation.config, situation.machine
    layout_of(config, machine=machine)
    sizes = derive_sizes(config)
    memory = estimate_memory(config, sizes=sizes, world_size=machine.gpus)
    work, peak = count_work(config), machine.peak_at(config.train.precision)
    duration = beside = None
    if peak is not None:
        rate = peak * machine.mfu
        beside = beside_of(config, sizes=sizes, work=work, machine=machine, rate=rate)
        duration = estimate_duration(
            config, work=work, peak_flops=peak, mfu=machine.mfu, beside=beside.total
        )
    return Outcome(
        change=change,
        situation=situation,
        memory=memory,
        duration=duration,
        beside=beside,
        work=work.total,
    )


def ways_to_fit(current: Outcome) -> list[Outcome]:
    """Changes after which the run fits, the cheapest in time first.

    Single changes where one is enough, else the fewest that are enough together; where all of them
    are not, or take host memory, also LoRA, which is another method, with such that take none; []
    where nothing helps.
    """
    tried = _try_all(current, savings(current.situation))
    enough = current.memory.total - _LEAST_BYTES
    helpful = [outcome for outcome in tried if outcome.memory.total < enough]
    # Of equal time those without a price first; else in their order, weaker before stronger.
    helpful.sort(key=lambda outcome: (outcome.cost, bool(outcome.price)))
    alone = [outcome for outcome in helpful if outcome.fits]
    if not alone:
        changes = [outcome.change[0] for outcome in helpful]
        together = _combine(current, changes)
        ways = [together]
        # Not every host has room for what lies there.
        is_far = together is None or any(change.takes_host_memory for change in together.change)
        if is_far and not current.situation.config.lora.rank:
            near = [change for change in changes if not change.takes_host_memory]
            ways.append(_combine(current, [ADAPTERS, *near]))
        return [way for way in ways if way is not None]
    weakest: dict[frozenset[str], Outcome] = {}
    for outcome in tried:  # in which weaker changes come before stronger ones
        if outcome in alone:
            weakest.setdefault(outcome.change[0].keys, outcome)
    return [outcome for outcome in alone if outcome in weakest.values()]


def uses_of_room(current: Outcome) -> list[Outcome]:
    """Changes that still fit and save time, buy something or need fewer GPUs; fastest first."""
    found = []
    for stronger in (*luxuries(current.situation), *_against_waiting(current)):
        best = None
        for change in stronger:
            tried = _try(current, [change])
            if tried is None or not tried.fits:
                break
            best = tried
        if best is not None:
            found.append(best)
    return sorted(found, key=lambda outcome: outcome.cost)


def _against_waiting(current: Outcome) -> Iterator[Sequence[Change]]:
    """What helps a run whose nodes wait for each other."""
    duration, beside = current.duration, current.beside
    if duration is None or beside is None or current.situation.config.train.global_batch:
        return
    if beside.waiting > TOLERATED * duration.step_seconds:
        yield rarer_steps(current.situation.config)


def _combine(current: Outcome, changes: Sequence[Change]) -> Outcome | None:
    """The cheapest changes, added until the run fits; then each that is not needed left out."""
    chosen: list[Change] = []
    best = current
    for change in changes:
        # A stronger value of a key replaces the weaker one.
        rest = [old for old in chosen if not change.keys & old.keys]
        tried = _try(current, [*rest, change])
        if tried is None or tried.memory.total > best.memory.total - _LEAST_BYTES:
            continue
        chosen, best = [*rest, change], tried
        if best.fits:
            break
    if not best.fits:
        return None
    for change in list(chosen):
        tried = _try(current, [other for other in chosen if other is not change])
        if tried is not None and tried.fits:
            chosen, best = [other for other in chosen if other is not change], tried
    return best


def _try_all(current: Outcome, changes: Iterator[Change]) -> list[Outcome]:
    tried = (_try(current, [change]) for change in changes)
    return [outcome for outcome in tried if outcome is not None]


def _try(current: Outcome, changes: Sequence[Change]) -> Outcome | None:
    """Plan the changed situation; None where the settings do not go together."""
    situation = current.situation
    try:
        for change in changes:
            situation = change.apply(situation)
    except ConfigError:
        return None
    return examine(situation, change=tuple(changes))
