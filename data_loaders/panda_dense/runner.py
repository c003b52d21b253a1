"""Do what is left of a stage: part by part, group by group, whatever happens to single clips."""

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch

from data_loaders.panda_dense import claims
from data_loaders.panda_dense.models import free_device_memory
from data_loaders.panda_dense.patience import is_full, patiently
from data_loaders.panda_dense.progress import Progress
from data_loaders.panda_dense.stage import Clip, Dropped, Flagged, Kept, Outcome, Stage, kept_by_all
from data_loaders.panda_dense.stopping import check_signals
from data_loaders.panda_dense.store import Row, Store
from data_loaders.schema import DataError

_log = logging.getLogger(__name__)

_WRITE_SECONDS = 1.0
"""Between two writings of a part's rows: more often would cost more than the clips it may save."""
_DEATHS_TO_PART = 3
"""Deaths after which the clips of a group are done one by one, to find the one that kills."""


class LostDeviceError(RuntimeError):
    """The device no longer works in this process: a new process is needed."""


class TooManyFailuresError(RuntimeError):
    """So many clips fail in a row that it is not the clips."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSettings:
    """How the work is done; changes nothing of what is written."""

    clips_per_part: int = 64
    """Clips that a process takes at a time; of a run's first `ingest`, and kept from then on."""
    attempts: int = 3
    """Times that a clip is tried that raises an error, before it is flagged."""
    deaths: int = 6
    """Times that a process may be gone during a clip, before the clip is flagged: it may be the
    clip that kills it, or the time limit of a job."""
    most_failures_in_a_row: int = 32
    """Clips flagged in a row after which the run ends: then it is not the clips."""
    claim_seconds: float = 300.0
    """A process of another machine that gives no sign of life for so long is taken for gone."""
    wait_seconds: float = 5.0
    """Between two looks whether other processes are done."""
    disk_full_seconds: float = 600.0
    """How long a full disk is waited for before a clip is flagged, or the run ends."""
    device: str = "auto"
    """'cpu', 'cuda', 'cuda:1'; 'auto' is a GPU where there is one."""


class StageRunner:
    """One stage of one process.

    Args:
        store: The data set in the making.
        stage: What to do.
        before: Names of the stages before it, in their order; the clips that all of them have kept
            are there to be done.
        settings: How.
        loaded: Called when the model is loaded, before the first clip.
    """

    def __init__(
        self,
        store: Store,
        stage: Stage,
        *,
        before: Sequence[str],
        settings: RunSettings,
        loaded: Callable[[], None] = lambda: None,
    ) -> None:
        self._store, self._stage, self._settings = store, stage, settings
        self._before, self._loaded = tuple(before), loaded
        self._is_loaded = False
        self._failures_in_a_row = 0

    def parts_left(self) -> list[int]:
        """Parts that the stage before has done and this one has not."""
        done = set(self._store.whole_parts(self._stage.name))
        return [part for part in self._store.whole_parts(self._before[-1]) if part not in done]

    def clips_left(self, part: int) -> int:
        """Clips of a part that are to be done."""
        rows = self._store.read(self._stage.name, part)
        return sum(not _is_done(rows, clip) for clip in self._clips(part))

    def run(self) -> int:
        """Do every part that is ready and that no other process has; returns how many.

        Raises:
            DataError: Files of the store are damaged.
            OSError: The disk is full or not writable.
            ValueError: The model cannot be loaded.
            LostDeviceError: The GPU has to be opened anew, by a new process.
            TooManyFailuresError: It is not the clips.
        """
        count = 0
        left = self.parts_left()
        progress = Progress(self._stage.name, parts_left=len(left))
        try:
            for part in left:
                if self._is_whole(part):
                    progress.part_done()
                    continue
                path = self._store.claim_file(self._stage.name, part)
                claim = claims.take(path, stale_seconds=self._settings.claim_seconds)
                if claim is None:
                    continue
                with claim:
                    # Another process may have ended it since the list was made.
                    if not self._is_whole(part):
                        self._do_part(part, claim=claim, progress=progress)
                        count += 1
                progress.part_done()
        finally:
            progress.close()
            if self._is_loaded:
                self._stage.unload()
                self._is_loaded = False
        return count

    def _is_whole(self, part: int) -> bool:
        return self._store.rows_file(self._stage.name, part, is_whole=True).is_file()

    def _do_part(self, part: int, *, claim: claims.Claim, progress: Progress) -> None:
        clips = self._clips(part)
        rows = self._store.read(self._stage.name, part)
        self._note_deaths(part, rows, clips=clips, claim=claim)
        written = time.monotonic()
        try:
            while left := [clip for clip in clips if not _is_done(rows, clip)]:
                for group in self._groups(clips, rows=rows):
                    self._load()
                    claim.work_on([clip.key for clip in group])
                    made = self._do_group(group, rows=rows)
                    check_signals()
                    rows |= {row.key: row for row in made}
                    if time.monotonic() - written >= _WRITE_SECONDS:
                        self._write(part, rows, clips=clips)
                        written = time.monotonic()
                    progress.clips_done(sum(row.is_final for row in made), of=len(left))
                    self._watch(made)
        except (LostDeviceError, TooManyFailuresError, KeyboardInterrupt, SystemExit) as error:
            self._write(part, rows, clips=clips)
            if isinstance(error, LostDeviceError):
                claim.abandon()
            raise
        self._store.sweep(self._stage.name, part)
        self._write(part, rows, clips=clips)

    def _write(self, part: int, rows: dict[str, Row], *, clips: Sequence[Clip]) -> None:
        # In one order, so that the file does not tell how it came about; last what is known of
        # clips that an earlier stage no longer keeps, which may change again.
        wanted = [clip.key for clip in clips]
        keys = [*wanted, *sorted(rows.keys() - set(wanted))]
        kept = [rows[key] for key in keys if key in rows]
        is_whole = all(_is_done(rows, clip) for clip in clips)
        self._patiently(lambda: self._store.write(self._stage.name, part, kept, is_whole=is_whole))

    def _clips(self, part: int) -> list[Clip]:
        """The clips of a part that the stages before have kept, with what they found."""
        found = {stage: self._store.read(stage, part) for stage in self._before}
        return [
            Clip(
                key=key,
                part=part,
                columns={stage: rows[key].columns for stage, rows in found.items()},
                store=self._store,
            )
            for key in kept_by_all(found)
        ]

    def _groups(self, clips: Sequence[Clip], *, rows: dict[str, Row]) -> Iterator[list[Clip]]:
        """What is left, in the groups that an unbroken run would do.

        The clips of a group go through the model together, which shows in the last bits.
        """
        waiting = iter(clips)
        while group := list(islice(waiting, max(1, self._stage.batch_size))):
            left = [clip for clip in group if not _is_done(rows, clip)]
            if len(left) == len(group) and not any(_is_suspect(rows, clip) for clip in group):
                yield group
            else:
                yield from ([clip] for clip in left)

    def _do_group(self, group: list[Clip], *, rows: dict[str, Row]) -> list[Row]:
        started = time.perf_counter()
        try:
            outcomes = self._work(group)
            # What pieces a clip was done in must not depend on the clip before it.
            self._stage.restore()
        except Exception as error:
            self._stage.restore()
            if _is_lost_device(error):
                raise LostDeviceError(f"{type(error).__name__}: {error}") from error
            if len(group) > 1:
                return [row for clip in group for row in self._do_group([clip], rows=rows)]
            if is_full(error):
                return [self._flag(group[0], rows=rows, reason="disk full", detail=str(error))]
            return [self._try_again(group[0], rows=rows, error=error)]
        seconds = (time.perf_counter() - started) / len(group)
        return [
            self._keep(clip, outcome, seconds=seconds)
            for clip, outcome in zip(group, outcomes, strict=True)
        ]

    def _work(self, group: list[Clip]) -> list[Outcome]:
        """Do a group; where the device is full, in smaller and smaller pieces."""
        try:
            outcomes = self._stage.work(group)
            for clip, outcome in zip(group, outcomes, strict=True):
                files = outcome.files if isinstance(outcome, Kept) else {}
                for suffix, content in files.items():
                    self._write_file(clip, suffix, content)
            return outcomes
        except torch.OutOfMemoryError as error:
            # With it go the frames of the call, which hold what filled the device.
            message = str(error).partition("\n")[0]
        free_device_memory()
        if len(group) > 1:
            half = len(group) // 2
            _log.warning("%s: device full with %d clips: halved", self._stage.name, len(group))
            return self._work(group[:half]) + self._work(group[half:])
        if self._stage.shrink():
            _log.warning("%s: device full with one clip: smaller pieces", self._stage.name)
            return self._work(group)
        return [Flagged(reason="out of GPU memory", detail=message)]

    def _write_file(self, clip: Clip, suffix: str, content: bytes) -> None:
        name = f"{clip.key}.{suffix}"
        self._patiently(lambda: self._store.write_file(self._stage.name, clip.part, name, content))

    def _patiently(self, write: Callable[[], None]) -> None:
        patiently(write, where=self._store.root, seconds=self._settings.disk_full_seconds)

    def _keep(self, clip: Clip, outcome: Outcome, *, seconds: float) -> Row:
        seconds = round(seconds, 3)
        columns = outcome.columns if not isinstance(outcome, Flagged) else {}
        try:
            json.dumps(columns, allow_nan=False)
        except ValueError as error:
            outcome = Flagged(reason="not a number", detail=f"{error}: {columns}"[:200])
        if isinstance(outcome, Kept):
            return Row(key=clip.key, status="kept", seconds=seconds, columns=outcome.columns)
        return Row(
            key=clip.key,
            status="dropped" if isinstance(outcome, Dropped) else "failed",
            reason=outcome.reason,
            detail=outcome.detail,
            seconds=seconds,
            columns=outcome.columns if isinstance(outcome, Dropped) else {},
        )

    def _try_again(self, clip: Clip, *, rows: dict[str, Row], error: Exception) -> Row:
        row = rows.get(clip.key) or Row(key=clip.key, status="again")
        attempts = row.attempts + 1
        message = f"{type(error).__name__}: {error}".partition("\n")[0]
        _log.warning("%s: %s: attempt %d: %s", self._stage.name, clip.key, attempts, message)
        if attempts >= self._settings.attempts:
            return self._flag(clip, rows=rows, reason="error", detail=message, attempts=attempts)
        return replace(row, status="again", detail=message, attempts=attempts)

    def _flag(
        self, clip: Clip, *, rows: dict[str, Row], reason: str, detail: str, attempts: int = 1
    ) -> Row:
        deaths = rows[clip.key].deaths if clip.key in rows else 0
        return Row(
            key=clip.key,
            status="failed",
            reason=reason,
            detail=detail,
            attempts=attempts,
            deaths=deaths,
        )

    def _note_deaths(
        self, part: int, rows: dict[str, Row], *, clips: Sequence[Clip], claim: claims.Claim
    ) -> None:
        orphans = [c for c in clips if c.key in claim.orphans and not _is_done(rows, c)]
        for clip in orphans:
            row = rows.get(clip.key) or Row(key=clip.key, status="again")
            deaths = row.deaths + 1
            rows[clip.key] = replace(row, deaths=deaths)
            if deaths >= self._settings.deaths:
                detail = f"the process was gone {deaths} times while it worked on this clip"
                flagged = self._flag(clip, rows=rows, reason="killed the process", detail=detail)
                rows[clip.key] = flagged
        if orphans:
            self._write(part, rows, clips=clips)
        if claim.orphans:
            claims.settle_orphans(claim)

    def _load(self) -> None:
        if not self._is_loaded:
            self._stage.load()
            self._is_loaded = True
            self._loaded()

    def _watch(self, made: Sequence[Row]) -> None:
        for row in made:
            if row.is_final:
                failed = row.status == "failed"
                self._failures_in_a_row = self._failures_in_a_row + 1 if failed else 0
        if self._failures_in_a_row >= self._settings.most_failures_in_a_row:
            raise TooManyFailuresError(
                f"{self._stage.name}: {self._failures_in_a_row} clips failed in a row, the last "
                f"one with: {made[-1].detail}; --retry failed tries them again"
            )


def _is_done(rows: dict[str, Row], clip: Clip) -> bool:
    return clip.key in rows and rows[clip.key].is_final


def _is_suspect(rows: dict[str, Row], clip: Clip) -> bool:
    row = rows.get(clip.key)
    return row is not None and (row.attempts > 0 or row.deaths >= _DEATHS_TO_PART)


def _is_lost_device(error: Exception) -> bool:
    """Whether CUDA is in a state in which every further call fails."""
    if isinstance(error, torch.OutOfMemoryError):
        return False
    lost = getattr(torch, "AcceleratorError", None)
    return (lost is not None and isinstance(error, lost)) or "CUDA error" in str(error)


def check_run(settings: RunSettings) -> None:
    """Check what the program can know beforehand.

    Raises:
        DataError: A setting is out of range; names it.
    """
    for name in ("clips_per_part", "attempts", "deaths", "most_failures_in_a_row"):
        value = getattr(settings, name)
        if value < 1:
            raise DataError(f"run.{name}: expected an integer >= 1, got {value}")
    for name in ("claim_seconds", "wait_seconds"):
        value = getattr(settings, name)
        if value <= 0:
            raise DataError(f"run.{name}: expected seconds > 0, got {value}")
