"""Stage 1: which clips there are, and where. Nothing is downloaded, and no video is opened here."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from data_loaders.panda_dense.caption_rows import (
    VIDEO_SUFFIXES,
    Captions,
    caption_rows,
    resolve_video,
)
from data_loaders.panda_dense.panda_csv import PandaClip, PandaCsv
from data_loaders.panda_dense.panda_table import PandaTable
from data_loaders.panda_dense.sidecars import (
    ClipSource,
    parse_record,
    plain,
    span_key,
    with_sidecars,
)
from data_loaders.panda_dense.tally import Tally
from data_loaders.panda_dense.tar_files import read_member, tar_index
from data_loaders.schema import DataError
from data_loaders.shard_format import MANIFEST
from data_loaders.shards import ShardIndex

Layout = Literal["files", "tars", "raw", "shards"]
PANDA = "panda70m"


@dataclass(frozen=True, kw_only=True, slots=True)
class IngestSettings:
    """Where the videos and what is known of them are."""

    videos: str = ""
    """Folder, searched with its subfolders."""
    csv: str | None = None
    """Panda-70M's CSV: cuts whole source videos named <videoID>.<ext> by its time stamps, or adds
    its filter columns to clips that were cut by the downloader. None = there is none."""
    captions: str | None = None
    """JSON lines or parquet of {path, caption} or {path, caption_short, caption_long}; paths are
    relative to it or to `videos`. Without a caption a clip is kept: the caption stage makes one."""
    layout: Literal["auto", "files", "tars", "raw", "shards"] = "auto"
    """files: each video is a clip, with its .txt and .json if they are there (video2dataset's
    'files', or any folder); tars: webdataset's (video2dataset's too); raw: source videos to be cut
    by `csv`; shards: our own, with their labels. auto: shards where `videos` has a manifest.json,
    tars where it has tars, raw where there is a CSV and no .json beside the first video, else
    files."""
    dataset: str | None = None
    """Name of the source in the data; None = 'panda70m' with a CSV or the downloader's files, what
    the record says for shards, else 'videos'."""


def check_ingest(settings: IngestSettings, *, section: str) -> None:
    """Check the settings and that the places are there.

    Raises:
        DataError: Names the setting.
    """
    if not settings.videos or not Path(settings.videos).is_dir():
        raise DataError(f"{section}.videos: expected a folder, got {settings.videos!r}")
    for name in ("csv", "captions"):
        value = getattr(settings, name)
        if value is not None and not Path(value).is_file():
            raise DataError(f"{section}.{name}: expected a file, got {value!r}")
    if settings.layout == "raw" and settings.csv is None:
        raise DataError(f"{section}.csv: expected Panda-70M's CSV for layout 'raw', got None")
    if settings.dataset is not None and not settings.dataset.strip():
        raise DataError(f"{section}.dataset: expected a name or None, got {settings.dataset!r}")


def list_clips(settings: IngestSettings, *, section: str = "ingest") -> "Listing":
    """Find the clips.

    Args:
        settings: Where to look.
        section: Name of the settings in messages.

    Returns:
        A listing; iterate it for the clips, then see its `tally`.

    Raises:
        DataError: A setting that cannot be used, a CSV without its columns, captions that cannot
            be read, or a folder without any video.
    """
    check_ingest(settings, section=section)
    root = Path(settings.videos)
    layout = settings.layout if settings.layout != "auto" else _layout_of(root, settings=settings)
    if layout == "raw" and settings.captions is not None:
        raise DataError(
            f"{section}.captions: expected None for source videos that {section}.csv cuts: the "
            f"captions are in it; got {settings.captions!r}"
        )
    csv = None if settings.csv is None else PandaCsv(Path(settings.csv))
    return Listing(settings=settings, root=root, layout=layout, csv=csv)


@dataclass(kw_only=True)
class Listing:
    """Clips in a fixed order; every iteration looks anew."""

    settings: IngestSettings
    root: Path
    layout: Layout
    """What `layout` 'auto' came to."""
    csv: PandaCsv | None

    def __post_init__(self) -> None:
        self.tally = Tally()
        """What the last iteration left out, and 'missing video', which it gave without a path."""

    def __iter__(self) -> Iterator[ClipSource]:
        """Clips: by the CSV's order for raw videos, else by path.

        Raises:
            DataError: The captions or shards cannot be read.
        """
        self.tally = Tally()
        if self.layout == "raw":
            yield from self._raw()
            return
        found = {"files": self._files, "tars": self._tars, "shards": self._shards}[self.layout]()
        if self.csv is not None:
            found = self._with_columns(found)
        if self.settings.captions is not None:
            found = self._with_captions(found)
        yield from self._unique(found)

    def _files(self) -> Iterator[ClipSource]:
        for folder, names in _walk(self.root):
            present = set(names)
            videos = [name for name in names if _is_video(name)]
            stems = {name.rpartition(".")[0] for name in videos}
            for name in videos:
                path = folder / name
                stem = name.rpartition(".")[0]
                record = self._record(folder / f"{stem}.json") if f"{stem}.json" in present else {}
                text = _text_of(folder / f"{stem}.txt") if f"{stem}.txt" in present else ""
                yield self._clip(path.relative_to(self.root), path=path, text=text, record=record)
            for name in names:
                if name.endswith(".json") and name.removesuffix(".json") not in stems:
                    self._count_failed(folder / name)

    def _count_failed(self, path: Path) -> None:
        """Note a video that the downloader did not get: its .json lies alone."""
        try:
            record = parse_record(path.read_bytes())
        except (DataError, OSError):
            return
        if record.get("status", "success") != "success":
            self.tally.add(f"missing video: {record['status']}", str(path.relative_to(self.root)))

    def _tars(self) -> Iterator[ClipSource]:
        for folder, names in _walk(self.root):
            for name in names:
                if name.endswith(".tar"):
                    yield from self._tar(folder / name)

    def _tar(self, path: Path) -> Iterator[ClipSource]:
        relative = path.relative_to(self.root)
        try:
            index = tar_index(path)
        except DataError as error:
            self.tally.add("unreadable tar", str(error))
            return
        if not index.is_whole:
            self.tally.add("damaged tar: the rest is missing", str(relative))
        for stem, members in index.members.items():
            place = f"{relative}: {stem}"
            ending = video_ending(members)
            record = self._parse(place, path, stem) if "json" in members else {}
            if ending is None:
                status = record.get("status", "no video in the sample")
                self.tally.add(f"missing video: {status}", place)
                continue
            text = b""
            if "txt" in members:
                text = read_member(path, key=stem, ending="txt")
            name = relative.with_suffix("") / f"{stem}.{ending}"
            clip = self._clip(name, path=path, text=text.decode(errors="replace"), record=record)
            yield replace(clip, member=stem)

    def _parse(self, place: str, path: Path, stem: str) -> dict[str, Any]:
        try:
            return parse_record(read_member(path, key=stem, ending="json"))
        except DataError as error:
            self.tally.add("kept, but its .json cannot be read", f"{place}: {error}")
            return {}

    def _record(self, path: Path) -> dict[str, Any]:
        try:
            return parse_record(path.read_bytes())
        except (DataError, OSError) as error:
            self.tally.add("kept, but its .json cannot be read", f"{path}: {error}")
            return {}

    def _clip(self, relative: Path, *, path: Path, text: str, record: dict[str, Any]) -> ClipSource:
        name = relative.with_suffix("").as_posix()
        # Of mp4 alone the ending is left out: clip.mp4 and clip.mov are two clips.
        key = plain(name if relative.suffix == ".mp4" else relative.as_posix())
        is_panda = self.csv is not None or "clips" in record
        clip = ClipSource(
            key=key,
            dataset=self.settings.dataset or (PANDA if is_panda else "videos"),
            video_id=name,
            is_cut=True,
            path=str(path),
        )
        return with_sidecars(clip, text=text, record=record)

    def _shards(self) -> Iterator[ClipSource]:
        index = ShardIndex.open(self.root)
        for i in range(len(index)):
            stored = index.sample(i)
            try:
                record = stored.record()
            except DataError as error:
                self.tally.add("damaged sample", str(error))
                continue
            short, long = record["caption_short"], record["caption_long"]
            video_id = record["meta"]["extra"].get("video_id") or stored.key
            yield ClipSource(
                key=stored.key,
                dataset=self.settings.dataset or record["meta"]["source"],
                video_id=str(video_id),
                is_cut=True,
                path=str(stored.path),
                member=stored.key,
                caption_short=short,
                caption_long=long if long != short else "",
            )

    def _raw(self) -> Iterator[ClipSource]:
        assert self.csv is not None  # checked before
        files: dict[str, Path] = {}
        for folder, names in _walk(self.root):
            for name in filter(_is_video, names):
                files.setdefault(name.rpartition(".")[0], folder / name)
        for clip in _without_repeats(self.csv, tally=self.tally):
            path = files.get(clip.video_id)
            if path is None:
                self.tally.add("missing video", clip.video_id)
            yield ClipSource(
                key=span_key(clip.video_id, start=clip.start, end=clip.end),
                dataset=self.settings.dataset or PANDA,
                video_id=clip.video_id,
                url=clip.url,
                start=clip.start,
                end=clip.end,
                path="" if path is None else str(path),
                caption_short=clip.caption,
                matching_score=clip.matching_score,
                desirable=clip.desirable,
                shots=clip.shots,
            )
        self._add_csv_faults(self.csv)

    def _with_columns(self, clips: Iterable[ClipSource]) -> Iterator[ClipSource]:
        assert self.csv is not None
        table = PandaTable.of(self.csv)
        self._add_csv_faults(self.csv)
        for clip in clips:
            filled = table.fill(clip)
            if filled is None:
                self.tally.add("kept, but not in the CSV", clip.key)
            yield filled or clip

    def _add_csv_faults(self, csv: PandaCsv) -> None:
        for reason, count in csv.tally.counts.items():
            self.tally.counts[f"CSV: {reason}"] = count
            self.tally.places[f"CSV: {reason}"] = csv.tally.places[reason]

    def _with_captions(self, clips: Iterable[ClipSource]) -> Iterator[ClipSource]:
        captions = self._captions(Path(self.settings.captions or ""))
        for clip in clips:
            known = captions.get(Path(clip.path).resolve()) if not clip.member else None
            if known is not None:
                long = known.long if known.long != known.short else ""
                clip = replace(clip, caption_short=known.short, caption_long=long)
            yield clip

    def _captions(self, path: Path) -> dict[Path, Captions]:
        found: dict[Path, Captions] = {}
        for place, row in caption_rows(path):
            if isinstance(row, DataError):
                self.tally.add("bad row of captions", f"{place}: {row}")
                continue
            name, captions = row
            video = resolve_video(name, folders=(path.parent, self.root, self.root.parent))
            if video in found:
                self.tally.add("captions of a video that has some", f"{place}: {name}")
            elif not video.is_file():
                self.tally.add("captions without a video", f"{place}: {name}")
            else:
                found[video] = captions
        return found

    def _unique(self, clips: Iterable[ClipSource]) -> Iterator[ClipSource]:
        seen: set[int] = set()
        for clip in clips:
            # 64 bits rather than the key: a third of the memory.
            mark = hash(clip.key)
            if mark in seen:
                self.tally.add("duplicate", clip.key)
                continue
            seen.add(mark)
            yield clip


def _without_repeats(clips: Iterable[PandaClip], *, tally: Tally) -> Iterator[PandaClip]:
    """Clips of a CSV without rows of a video that was there, and repeated spans of a row."""
    videos: set[str] = set()
    current, spans = "", set()
    for clip in clips:
        if clip.video_id != current:
            videos.add(current)
            current, spans = clip.video_id, set()
        if clip.video_id in videos or (clip.start, clip.end) in spans:
            tally.add("duplicate", span_key(clip.video_id, start=clip.start, end=clip.end))
            continue
        spans.add((clip.start, clip.end))
        yield clip


def video_ending(members: Iterable[str]) -> str | None:
    """Which member of a webdataset sample is the video; None = none."""
    return next((name for name in members if f".{name}" in VIDEO_SUFFIXES), None)


def _layout_of(root: Path, *, settings: IngestSettings) -> Layout:
    if (root / MANIFEST).is_file():
        return "shards"
    for _, names in _walk(root):
        if any(name.endswith(".tar") for name in names):
            return "tars"
        video = next((name for name in names if _is_video(name)), None)
        if video is not None:
            has_record = f"{video.rpartition('.')[0]}.json" in names
            return "raw" if settings.csv is not None and not has_record else "files"
    # With a CSV every video may be missing so far.
    if settings.csv is not None:
        return "raw"
    raise DataError(
        f"{root}: expected videos ({', '.join(VIDEO_SUFFIXES)}), tars or shards, found none"
    )


def _walk(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Folders with the names of their files, both sorted; links to folders are followed once."""
    entered: set[tuple[int, int]] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        facts = os.stat(folder)
        if (facts.st_dev, facts.st_ino) in entered:
            folders.clear()
            continue
        entered.add((facts.st_dev, facts.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        # Hidden: macOS' '._clip.mp4', and downloads under way.
        yield Path(folder), sorted(name for name in names if not name.startswith("."))


def _is_video(name: str) -> bool:
    return name.lower().endswith(VIDEO_SUFFIXES)


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
