"""Stage `select`: which of the measured clips are good enough, and which of those are taken.

A function of what was measured: other thresholds, or more clips, cost no decoding.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from data_loaders.panda_dense.clip_reader import SourceFacts
from data_loaders.panda_dense.ingest import as_source
from data_loaders.panda_dense.measuring import Scores
from data_loaders.panda_dense.runner import RunSettings
from data_loaders.panda_dense.sampling import (
    Candidate,
    SampleSettings,
    check_sample,
    choose,
    held_out_videos,
)
from data_loaders.panda_dense.sidecars import ClipSource
from data_loaders.panda_dense.stage import kept_by_all
from data_loaders.panda_dense.steps import Step, WholeStep
from data_loaders.panda_dense.store import Row, Store
from data_loaders.panda_dense.thresholds import FilterSettings, check_filter, verdict

TRAIN, HELD_OUT = "shards", "heldout"
"""Splits, and the folders that they are written to."""
NOT_DRAWN = "not drawn"
"""Reason of clips that are good enough and beyond the number that was asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectSettings:
    """Which clips go on."""

    thresholds: FilterSettings = field(default_factory=FilterSettings)
    sample: SampleSettings = field(default_factory=SampleSettings)


def check_select(settings: SelectSettings, *, section: str) -> None:
    """Check the settings.

    Raises:
        DataError: One is out of range; names it.
    """
    check_filter(settings.thresholds, section=f"{section}.thresholds")
    check_sample(settings.sample, section=f"{section}.sample")


class SelectStep(WholeStep):
    """See the module.

    Args:
        store: The data set in the making.
        select: Thresholds and number of clips.
        before: The stages before it, in their order.
        after: Names of the stages behind it.
        settings: How the work is done.
    """

    name, reads = "select", ("filter",)

    def __init__(
        self,
        store: Store,
        *,
        select: SelectSettings,
        before: Sequence[Step],
        after: Sequence[str],
        settings: RunSettings,
    ) -> None:
        super().__init__(store, settings=settings)
        self._select, self._before, self._after = select, tuple(before), tuple(after)

    def settings(self) -> dict[str, Any]:
        """Of the choice."""
        return asdict(self._select)

    def can_adopt(self, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
        """Always: it is made of what was measured, and made anew in no time."""
        return True

    def forget_outdated(self) -> None:
        """Have every clip decided upon again; `do` tells the stages behind what has changed."""
        for part in self.store.whole_parts(self.name):
            self.store.reopen(self.name, part)

    def check(self) -> None:
        """The numbers."""
        check_select(self._select, section="select")

    def is_ready(self) -> bool:
        """Every clip is measured."""
        return self._before[-1].is_complete()

    def is_complete(self) -> bool:
        """Every clip is decided upon."""
        parts = self.store.whole_parts(self._before[0].name)
        return self.is_ready() and parts == self.store.whole_parts(self.name)

    def outlook(self) -> Iterator[str]:
        """What the thresholds would keep."""
        if not self.is_ready():
            yield f"waits for {self._before[-1].name}"
            return
        rows = self._decide()
        kept = sum(row.status == "kept" for part in rows.values() for row in part)
        yield f"{kept:,} of {sum(map(len, rows.values())):,} measured clips would go on"

    def do(self) -> None:
        """Decide upon every clip."""
        for part, rows in self._decide().items():
            before = list(self.store.read(self.name, part).values())
            if before != rows:
                for stage in self._after:
                    self.store.reopen(stage, part)
            self.store.write(self.name, part, rows, is_whole=True)

    def _decide(self) -> dict[int, list[Row]]:
        decided: dict[int, list[Row]] = {}
        candidates: list[Candidate] = []
        for part in self.store.whole_parts(self._before[0].name):
            found = {step.name: self.store.read(step.name, part) for step in self._before}
            decided[part] = []
            for key in kept_by_all(found):
                source = as_source(key, found["ingest"][key].columns)
                row = self._judge(source, measured=found["filter"][key].columns)
                if row.status == "kept":
                    candidates.append(Candidate(key=key, video_id=source.video_id))
                decided[part].append(row)
        splits = _split(candidates, sample=self._select.sample)
        return {part: [_drawn(row, splits) for row in rows] for part, rows in decided.items()}

    def _judge(self, source: ClipSource, *, measured: Mapping[str, Any]) -> Row:
        facts: dict[str, Any] = {
            field.name: measured.get(field.name) for field in fields(SourceFacts)
        }
        reason, detail = verdict(
            Scores.from_row(dict(measured)),
            source,
            self._select.thresholds,
            facts=SourceFacts(**facts),
        )
        status = "dropped" if reason else "kept"
        return Row(key=source.key, status=status, reason=reason, detail=detail)


def _split(candidates: Sequence[Candidate], *, sample: SampleSettings) -> dict[str, str]:
    """TRAIN or HELD_OUT of the clips that are taken, by key.

    Videos are held out first: whoever trains on more clips evaluates on the same ones.
    """
    within = choose(candidates, num_clips=None, per_video=sample.per_video, seed=sample.seed)
    candidates = [clip for clip in candidates if clip.key in within]
    held_out = held_out_videos(
        candidates,
        num_clips=sample.held_out_clips,
        most_share=sample.most_held_out,
        seed=sample.held_out_seed,
    )
    for_training = [clip for clip in candidates if clip.video_id not in held_out]
    taken = choose(for_training, num_clips=sample.num_clips, per_video=None, seed=sample.seed)
    splits = dict.fromkeys(taken, TRAIN)
    return splits | {clip.key: HELD_OUT for clip in candidates if clip.video_id in held_out}


def _drawn(row: Row, splits: Mapping[str, str]) -> Row:
    if row.status != "kept":
        return row
    if row.key not in splits:
        return Row(key=row.key, status="dropped", reason=NOT_DRAWN)
    return Row(key=row.key, status="kept", columns={"split": splits[row.key]})
