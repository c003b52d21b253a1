"""Stage `ingest`: one row per clip that there is or should be, dealt into parts."""

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from data_loaders.atomic_file import write_atomically
from data_loaders.panda_dense.runner import RunSettings
from data_loaders.panda_dense.sidecars import ClipSource
from data_loaders.panda_dense.sources import IngestSettings, check_ingest, list_clips
from data_loaders.panda_dense.stage import Clip
from data_loaders.panda_dense.steps import WholeStep
from data_loaders.panda_dense.store import Row, Store
from data_loaders.schema import DataError

_log = logging.getLogger(__name__)

MISSING = "missing video"
NOT_TEXT = "name is not UTF-8"


class IngestStep(WholeStep):
    """See the module.

    Clips keep their parts for good: listed again, new ones are added in new parts, and videos that
    have come since are taken up where they were missing.

    Args:
        store: The data set in the making.
        ingest: Where the videos are.
        after: Names of the stages behind it.
        settings: How the work is done.
    """

    name = "ingest"

    def __init__(
        self,
        store: Store,
        *,
        ingest: IngestSettings,
        after: Sequence[str],
        settings: RunSettings,
    ) -> None:
        super().__init__(store, settings=settings)
        self._ingest, self._after = ingest, tuple(after)

    def settings(self) -> dict[str, Any]:
        """What decides keys and parts; folders may move."""
        return {"layout": self._ingest.layout, "dataset": self._ingest.dataset}

    def check(self) -> None:
        """The places."""
        check_ingest(self._ingest, section="ingest")

    def is_ready(self) -> bool:
        """Always: nothing comes before."""
        return True

    def is_complete(self) -> bool:
        """The videos were listed."""
        return self._summary.is_file()

    def reconsider(self, *, retry: Sequence[str], again: bool) -> int:
        """Forget that the videos were listed, where they are to be listed again."""
        if not again and MISSING not in retry:
            return 0
        count = self.count_for(retry)
        self._summary.unlink(missing_ok=True)
        return count

    def count_for(self, reasons: Sequence[str]) -> int:
        """Clips whose videos were missing, if that is a reason: they are looked for again."""
        if MISSING not in reasons:
            return 0
        return sum(
            row.reason == MISSING
            for part in self.store.whole_parts(self.name)
            for row in self.store.read(self.name, part).values()
        )

    def outlook(self) -> Iterator[str]:
        """What the listing would find."""
        if self.is_complete():
            yield "done; --again lists the videos again"
            return
        clips = missing = 0
        listing = list_clips(self._ingest)
        for clip in listing:
            clips += 1
            missing += not clip.path
        yield f"{clips:,} clips, {missing:,} of them missing"
        yield from listing.tally.lines()

    def do(self) -> None:
        """List the videos and write the rows that are new or have changed."""
        known = self._known()
        listing = list_clips(self._ingest)
        changed: dict[int, list[Row]] = {}
        fresh: list[Row] = []
        number = max((part for part, _ in known.values()), default=-1) + 1
        count = 0
        for clip in listing:
            row = _row(clip, root=Path(self._ingest.videos))
            count += 1
            if clip.key not in known:
                fresh.append(row)
            elif row.status == "kept" and known[clip.key][1] != _mark(row):
                changed.setdefault(known[clip.key][0], []).append(row)
            if len(fresh) == self.run_settings.clips_per_part:
                self.store.write(self.name, number, fresh, is_whole=True)
                number, fresh = number + 1, []
        if not count:
            faults = "; ".join(listing.tally.lines()) or "nothing was left out"
            raise DataError(f"{self._ingest.videos}: expected clips, found none: {faults}")
        if fresh:
            self.store.write(self.name, number, fresh, is_whole=True)
        for part, rows in sorted(changed.items()):
            self._replace(part, rows)
        for line in listing.tally.lines():
            _log.info("ingest: %s", line)
        self._write_summary(count, counts=listing.tally.counts)

    def _known(self) -> dict[str, tuple[int, int]]:
        """Part and content of each clip that is there, in little memory: there may be millions."""
        return {
            key: (part, _mark(row))
            for part in self.store.whole_parts(self.name)
            for key, row in self.store.read(self.name, part).items()
        }

    def _replace(self, part: int, rows: Sequence[Row]) -> None:
        """Take up what is said anew of some clips; what was made of them is forgotten."""
        before = self.store.read(self.name, part)
        before |= {row.key: row for row in rows}
        for stage in self._after:
            self.store.forget(stage, part, [row.key for row in rows])
            self.store.reopen(stage, part)
        self.store.write(self.name, part, before.values(), is_whole=True)

    @property
    def _summary(self) -> Path:
        return self.store.folder(self.name) / "summary.json"

    def _write_summary(self, clips: int, *, counts: dict[str, int]) -> None:
        content = json.dumps({"clips": clips, "notes": counts}, indent=1, sort_keys=True)
        write_atomically(self._summary, content.encode())


def _row(clip: ClipSource, *, root: Path) -> Row:
    columns = {name: value for name, value in asdict(clip).items() if name != "key"}
    # So that the folder may move.
    columns["path"] = os.path.relpath(clip.path, root) if clip.path else ""
    unreadable = [name for name, value in columns.items() if not _is_text(value)]
    if unreadable:
        columns |= {name: ascii(columns[name]) for name in unreadable}
        detail = f"{unreadable[0]}: {columns[unreadable[0]]}"
        return Row(key=clip.key, status="dropped", reason=NOT_TEXT, detail=detail, columns=columns)
    if not clip.path:
        return Row(key=clip.key, status="dropped", reason=MISSING, columns=columns)
    return Row(key=clip.key, status="kept", columns=columns)


def _is_text(value: Any) -> bool:
    """False for names of files in another encoding, which no record can hold."""
    try:
        str(value).encode()
    except UnicodeEncodeError:
        return False
    return True


def _mark(row: Row) -> int:
    return hash(json.dumps(asdict(row), sort_keys=True))


def as_source(key: str, columns: Mapping[str, Any]) -> ClipSource:
    """A row of this stage as what it was made from; its path is relative to the videos."""
    known = {field.name for field in fields(ClipSource)}
    return ClipSource(key=key, **{name: columns[name] for name in columns if name in known})


def source_of(clip: Clip, *, videos: str) -> ClipSource:
    """Where a clip comes from.

    Args:
        clip: Through `ingest`.
        videos: Folder of `ingest.videos`.
    """
    source = as_source(clip.key, clip.columns["ingest"])
    return replace(source, path=os.path.normpath(os.path.join(videos, source.path)))
