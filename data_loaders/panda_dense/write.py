"""The last stage: shards for training, and others, of other source videos, for evaluation.

Each shard is claimed and written whole by one process. When all are there the manifests follow,
then the data set card, the statistics and the table of all clips.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from data_loaders.atomic_file import PARTIAL, write_atomically
from data_loaders.clip_writer import record_members
from data_loaders.panda_dense import claims
from data_loaders.panda_dense.manifest import write_manifest_table
from data_loaders.panda_dense.models import ModelFacts
from data_loaders.panda_dense.patience import patiently
from data_loaders.panda_dense.report import write_reports
from data_loaders.panda_dense.runner import RunSettings
from data_loaders.panda_dense.sampling import rank
from data_loaders.panda_dense.select import HELD_OUT, TRAIN
from data_loaders.panda_dense.stage import Clip, kept_by_all
from data_loaders.panda_dense.steps import Step, made_by
from data_loaders.panda_dense.store import Store
from data_loaders.schema import DataError, SampleMeta, check_record, make_record
from data_loaders.shard_format import ShardInfo, shard_name
from data_loaders.shard_stats import ClipStats
from data_loaders.shard_writer import Entry, remove_shards, write_manifest, write_shard

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class WriteSettings:
    """How the shards are made."""

    samples_per_shard: int = 64
    """Clips in each shard but the last: 64 of 49x480x720 with labels are about 0.5 GB, which a
    loader reads from front to back."""
    seed: int = 0
    """Of the order of the clips."""


def check_write(settings: WriteSettings, *, section: str) -> None:
    """Check the settings.

    Raises:
        DataError: One is out of range; names it.
    """
    if settings.samples_per_shard < 1:
        raise DataError(
            f"{section}.samples_per_shard: expected an integer >= 1, "
            f"got {settings.samples_per_shard}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Shard:
    """What is to be in a shard."""

    folder: Path
    name: str
    clips: tuple[tuple[int, str], ...]
    """(part, key) of each clip, in their order."""

    @property
    def label(self) -> str:
        """Names it among all shards."""
        return f"{self.folder.name}-{self.name.removesuffix('.tar')}"


class WriteStep(Step):
    """See the module.

    Args:
        store: The data set in the making.
        before: All stages before it.
        write: Settings of the shards.
        settings: How the work is done.
    """

    name = "write"

    def __init__(
        self,
        store: Store,
        *,
        before: Sequence[Step],
        write: WriteSettings,
        settings: RunSettings,
    ) -> None:
        super().__init__(store, settings=settings)
        self._before, self._write = tuple(before), write
        self._planned: list[_Shard] | None = None
        self._digest = ""
        self.reads = tuple(step.name for step in before)

    def settings(self) -> dict[str, Any]:
        """Of the shards."""
        return asdict(self._write)

    def check(self) -> None:
        """The numbers."""
        check_write(self._write, section="write")

    def is_ready(self) -> bool:
        """All stages before are complete."""
        return self._before[-1].is_complete()

    def is_complete(self) -> bool:
        """The shards hold what the stages before have kept by now."""
        if not self.is_ready():
            return False
        try:
            done = json.loads(self._done_file.read_text())
        except (OSError, ValueError):
            return False
        self._plan()
        return done.get("clips") == self._digest

    def advance(self) -> bool:
        """Write the shards that nobody has, and what follows when all are there."""
        self.check_settings()
        if not self.is_ready():
            return False
        if not self._plan():
            raise DataError(
                f"{self.store.root}: expected at least one clip that came through all stages, "
                "found none; `status` says why they were left out"
            )
        if not self._is_begun() and not self._begin():
            return False
        shards = self._plan()
        self.note_settings()
        written = sum(self._write_if_free(shard) for shard in shards)
        infos = [self._find(shard) for shard in shards]
        if any(info is None for info in infos):
            return written > 0
        return self._finish(shards, [info for info in infos if info is not None]) or written > 0

    def outlook(self) -> Iterator[str]:
        """How many shards there would be."""
        if not self.is_ready():
            yield f"waits for {self._before[-1].name}"
            return
        shards = self._plan()
        is_begun = self._is_begun()
        left = sum(not is_begun or self._find(shard) is None for shard in shards)
        clips = sum(len(shard.clips) for shard in shards)
        held_out = sum(len(shard.clips) for shard in shards if shard.folder.name == HELD_OUT)
        yield (
            f"{clips - held_out:,} clips for training and {held_out:,} held out, in "
            f"{len(shards):,} shard(s), {left:,} of them to be written"
        )

    @property
    def _done_file(self) -> Path:
        return self.store.folder(self.name) / "done.json"

    def _plan(self) -> list[_Shard]:
        """All shards, a function of the rows alone; read once the stages before are complete."""
        if self._planned is None:
            self._planned = self._make_plan()
        return self._planned

    def _make_plan(self) -> list[_Shard]:
        clips: dict[str, tuple[int, str]] = {}
        digest = hashlib.sha256()
        for part in self.store.whole_parts(self._before[-1].name):
            found = {step.name: self.store.read(step.name, part) for step in self._before}
            for key in kept_by_all(found):
                clips[key] = (part, found["select"][key].columns["split"])
                columns = [found[step.name][key].columns for step in self._before]
                digest.update(json.dumps([key, columns], sort_keys=True).encode())
        self._digest = digest.hexdigest()
        order = sorted(clips, key=lambda key: (rank(key, seed=self._write.seed), key))
        shards = []
        for folder in (TRAIN, HELD_OUT):
            keys = [key for key in order if clips[key][1] == folder]
            step = self._write.samples_per_shard
            for number, start in enumerate(range(0, len(keys), step)):
                chosen = tuple((clips[key][0], key) for key in keys[start : start + step])
                shards.append(
                    _Shard(folder=self.store.root / folder, name=shard_name(number), clips=chosen)
                )
        return shards

    @property
    def _begun_file(self) -> Path:
        return self.store.folder(self.name) / "clips.json"

    def _is_begun(self) -> bool:
        """Whether the shards that are there are of these clips and labels."""
        try:
            return json.loads(self._begun_file.read_text())["clips"] == self._digest
        except FileNotFoundError:
            return False

    def _begin(self) -> bool:
        """Make room: shards of another state of the data set go, so that no two are mixed.

        Returns:
            False where another process is at it, or found that the stages before have work again.
        """
        path = self.store.folder(self.name) / "begin.claim"
        claim = claims.take(path, stale_seconds=self.run_settings.claim_seconds)
        if claim is None:
            return False
        with claim:
            # What this process knows may be from before clips were taken back.
            for step in (*self._before, self):
                step.look_again()
            if not self.is_ready():
                return False
            self._plan()
            if self._is_begun():
                return True
            if self._begun_file.is_file():
                _log.info("write: other clips or labels than before: all shards are written anew")
                self._remove()
            # Last: until it says so, whoever goes on after a kill begins here again.
            write_atomically(self._begun_file, json.dumps({"clips": self._digest}).encode())
        return True

    def _write_if_free(self, shard: _Shard) -> bool:
        if self._find(shard) is not None:
            return False
        path = self.store.folder(self.name) / f"{shard.label}.claim"
        claim = claims.take(path, stale_seconds=self.run_settings.claim_seconds)
        if claim is None:
            return False
        with claim:
            if self._find(shard) is None:
                shard.folder.mkdir(parents=True, exist_ok=True)
                stats: list[ClipStats] = []

                def write() -> ShardInfo:
                    stats.clear()
                    return write_shard(shard.folder / shard.name, self._entries(shard, stats=stats))

                seconds = self.run_settings.disk_full_seconds
                info = patiently(write, where=shard.folder, seconds=seconds)
                info = replace(info, stats=ClipStats.total(stats))
                write_atomically(self._note(shard), json.dumps(asdict(info)).encode())
        return True

    def _note(self, shard: _Shard) -> Path:
        return self.store.folder(self.name) / f"{shard.label}.json"

    def _find(self, shard: _Shard) -> ShardInfo | None:
        """The shard, if it is written."""
        try:
            record = json.loads(self._note(shard).read_text())
            size = (shard.folder / shard.name).stat().st_size
            info = ShardInfo(**{**record, "stats": ClipStats.from_json(record["stats"])})
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return info if size == info.num_bytes else None

    def _entries(self, shard: _Shard, *, stats: list[ClipStats]) -> Iterator[Entry]:
        facts = {stage: maker.as_row() for stage, maker in self._makers().items()}
        for part, key in shard.clips:
            columns = {
                step.name: self.store.read(step.name, part)[key].columns for step in self._before
            }
            clip = Clip(key=key, part=part, columns=columns, store=self.store)
            entry, record = _entry(clip, facts=facts)
            stats.append(ClipStats.of(record))
            yield entry

    def _finish(self, shards: Sequence[_Shard], infos: Sequence[ShardInfo]) -> bool:
        """Manifests, reports and the table of all clips; by one process."""
        path = self.store.claim_file(self.name)
        claim = claims.take(path, stale_seconds=self.run_settings.claim_seconds)
        if claim is None:
            return False
        with claim:
            for folder in dict.fromkeys(shard.folder for shard in shards):
                own = [i for s, i in zip(shards, infos, strict=True) if s.folder == folder]
                write_manifest(folder, own, extra=self._extra(folder))
            names = [step.name for step in self._before]
            write_manifest_table(self.store, names)
            write_reports(self.store, names, makers=self._makers(), shards=shards[0].folder)
            self._sweep()
            write_atomically(
                self._done_file, json.dumps({"clips": self._digest}, indent=1).encode()
            )
        return True

    def _remove(self) -> None:
        """Remove the shards, and the notes that they are there."""
        self._done_file.unlink(missing_ok=True)
        for folder in (TRAIN, HELD_OUT):
            for note in self.store.folder(self.name).glob(f"{folder}-*.json"):
                note.unlink()
            remove_shards(self.store.root / folder)

    def look_again(self) -> None:
        """Read the rows anew."""
        self._planned = None

    def _sweep(self) -> None:
        """Remove what writers that were killed left, now that all is there."""
        root = self.store.root
        folders = [root, *(root / name for name in (TRAIN, HELD_OUT, self.name))]
        folders += [self.store.folder(step.name) for step in self._before]
        for folder in folders:
            for pattern in (f"*{PARTIAL}", "*.claim.*"):
                for left in folder.glob(pattern):
                    left.unlink(missing_ok=True)

    def _extra(self, folder: Path) -> dict[str, Any]:
        labels = {stage: maker.as_row() for stage, maker in self._makers().items()}
        return {"split": folder.name, "labels": labels}

    def _makers(self) -> dict[str, ModelFacts]:
        found = {step.name: made_by(self.store, step.name) for step in self._before}
        return {stage: facts for stage, facts in found.items() if facts is not None}

    def forget(self) -> None:
        """Remove the shards too."""
        self._remove()
        super().forget()


def _entry(clip: Clip, *, facts: Mapping[str, Mapping[str, str]]) -> tuple[Entry, dict[str, Any]]:
    """The files of a clip and its record."""
    source, cut = clip.columns["ingest"], clip.columns["cut"]
    tracked, depth, caption = (clip.columns[name] for name in ("propagate", "depth", "caption"))
    has_depth = bool(depth.get("has_depth", True))
    extra: dict[str, str | int | float] = {
        name: source[name]
        for name in ("video_id", "url", "start", "end", "matching_score")
        if source.get(name) not in (None, "")
    }
    extra |= {"caption_backend": _name(facts["caption"]), "caption_flag": caption["flag"]}
    record = make_record(
        key=clip.key,
        size=(cut["num_frames"], cut["height"], cut["width"]),
        fps=cut["fps"],
        captions=(caption["caption_short"], caption["caption_long"]),
        has_entity_ids=True,
        has_depth=has_depth,
        meta=SampleMeta(
            source=source["dataset"],
            segmentation_backend=" + ".join(
                dict.fromkeys(_name(facts[stage]) for stage in ("segment", "propagate"))
            ),
            depth_backend=_name(facts["depth"]) if has_depth else "",
            num_entities=tracked["num_entities"],
            extra=extra,
        ),
    )
    check_record(record)
    files = {cut["member"]: clip.read("cut", cut["member"])}
    files["seg.mkv"] = clip.read("propagate", "seg.mkv")
    if has_depth:
        files["depth.mkv"] = clip.read("depth", "depth.mkv")
    return Entry(key=clip.key, members=files | record_members(record)), record


def _name(facts: Mapping[str, str]) -> str:
    """'classical', or the model's name with its revision."""
    if not facts["model"]:
        return facts["backend"]
    return f"{facts['model']}@{facts['revision']}" if facts["revision"] else facts["model"]
