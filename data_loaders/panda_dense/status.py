"""How far a data set is: of each stage what is done, what was left out, and why."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from data_loaders.panda_dense import claims
from data_loaders.panda_dense.progress import duration
from data_loaders.panda_dense.stage import kept_by_all
from data_loaders.panda_dense.store import Row, Store


@dataclass(kw_only=True)
class StageStatus:
    """Figures of one stage."""

    name: str
    kept: int = 0
    dropped: int = 0
    failed: int = 0
    left: int = 0
    """Clips that the stages before have kept by now and that are not done here."""
    seconds: float = 0.0
    """Time that the clips took which are done."""
    in_work: list[str] = field(default_factory=list)
    """Processes that are at it."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Clips left out, by reason."""

    @property
    def done(self) -> int:
        """Clips with an outcome."""
        return self.kept + self.dropped + self.failed


def status_of(
    store: Store, stages: Sequence[str], *, claim_seconds: float
) -> tuple[list[StageStatus], int]:
    """Count every clip of every stage.

    Args:
        store: The data set in the making.
        stages: Those that go by clips, in their order; the first one says which clips there are.
        claim_seconds: See `claims.take`.

    Returns:
        (figures of each stage, clips in all).
    """
    found = {name: StageStatus(name=name) for name in stages}
    clips = 0
    for part in store.whole_parts(stages[0]):
        rows = {name: store.read(name, part) for name in stages}
        clips += len(rows[stages[0]])
        for place, name in enumerate(stages):
            before = {earlier: rows[earlier] for earlier in stages[:place]}
            keys = kept_by_all(before) if before else list(rows[name])
            _count(found[name], keys=keys, rows=rows[name])
    for name, status in found.items():
        for path in sorted(store.folder(name).glob("*.claim")):
            if holder := claims.holder(path, stale_seconds=claim_seconds):
                status.in_work.append(f"{path.stem}: {holder}")
    return list(found.values()), clips


def _count(status: StageStatus, *, keys: Sequence[str], rows: dict[str, Row]) -> None:
    for key in keys:
        row = rows.get(key)
        if row is None or not row.is_final:
            status.left += 1
            continue
        status.seconds += row.seconds
        if row.status == "kept":
            status.kept += 1
            continue
        status.reasons[row.reason] += 1
        if row.status == "dropped":
            status.dropped += 1
        else:
            status.failed += 1


def table(stages: Sequence[StageStatus], *, clips: int) -> Iterator[str]:
    """Lines for a terminal."""
    if not clips:
        yield "nothing is ingested yet"
        return
    yield f"{'stage':<10}{'kept':>10}{'dropped':>10}{'failed':>10}{'left':>10}  s/clip  one process"
    for stage in stages:
        pace = stage.seconds / stage.done if stage.done else 0.0
        left = duration(pace * stage.left) if pace and stage.left else ""
        line = (
            f"{stage.name:<10}{stage.kept:>10,}{stage.dropped:>10,}{stage.failed:>10,}"
            f"{stage.left:>10,}{pace:>8.2f}  {left and left + ' left'}"
        )
        yield line.rstrip()
    for stage in stages:
        for holder in stage.in_work:
            yield f"at work: {stage.name} {holder}"
    reasons = [(s.name, why, n) for s in stages for why, n in s.reasons.most_common()]
    if reasons:
        yield ""
        yield f"{'left out at':<14}{'clips':>10}        reason"
    for name, why, count in reasons:
        yield f"{name:<14}{count:>10,} {100 * count / clips:>5.1f}%  {why}"
