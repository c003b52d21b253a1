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

    def reconsider(self, *, retry: Sequence[str], again: bool) -> None:
        """Forget that the videos were listed, where they are to be listed again."""
        if again or MISSING in retry:
            self._summary.unlink(missing_ok=True)

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
        parts = {part: self.store.read(self.name, part) for part in self._parts()}
        places = {key: part for part, rows in parts.items() for key in rows}
        listing = list_clips(self._ingest)
        changed: set[int] = set()
        fresh: list[Row] = []
        number = max(parts, default=-1) + 1
        count = 0
        for clip in listing:
            count += 1
            row = _row(clip, root=Path(self._ingest.videos))
            part = places.get(clip.key)
            if part is None:
                fresh.append(row)
            elif row.status == "kept" and parts[part][clip.key] != row:
                parts[part][clip.key] = row
                changed.add(part)
            if len(fresh) == self.run_settings.clips_per_part:
                self.store.write(self.name, number, fresh, is_whole=True)
                number, fresh = number + 1, []
        if fresh:
            self.store.write(self.name, number, fresh, is_whole=True)
        for part in sorted(changed):
            self.store.write(self.name, part, parts[part].values(), is_whole=True)
            for stage in self._after:
                self.store.reopen(stage, part)
        if not count:
            faults = "; ".join(listing.tally.lines()) or "nothing was left out"
            raise DataError(f"{self._ingest.videos}: expected clips, found none: {faults}")
        for line in listing.tally.lines():
            _log.info("ingest: %s", line)
        self._write_summary(count, counts=listing.tally.counts)

    def _parts(self) -> list[int]:
        return self.store.whole_parts(self.name)

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
    if not clip.path:
        return Row(key=clip.key, status="dropped", reason=MISSING, columns=columns)
    return Row(key=clip.key, status="kept", columns=columns)


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
