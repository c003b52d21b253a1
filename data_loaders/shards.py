"""Shards: webdataset tars with an index, written whole or not at all, read at any position.

A folder of shards holds, per shard, `shard-000000.tar` and `shard-000000.index.json`, and one
`manifest.json`, written last: a folder without it is not finished. A sample is these tar members:

    {key}.mp4 | .webm | .mkv   RGB (lossy, or exact ffv1)
    {key}.seg.mkv              entity ids, exact                        (where there are any)
    {key}.depth.mkv            disparity, 16 bit, exact                 (where there is any)
    {key}.txt  {key}.long.txt  captions
    {key}.json                 schema.metadata_record

Any webdataset reader can read them in order; `ShardIndex` reads any one sample by its byte offsets.
The manifest grows with the shards and not with the samples, so that opening stays quick.
"""

import hashlib
import json
import os
import re
import tarfile
import zlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from io import BytesIO
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import UInt8, UInt16

from data_loaders.decode import (
    RGB_ENCODINGS,
    RgbCodec,
    decode_labels,
    decode_rgb,
    encode_labels,
    encode_rgb,
)
from data_loaders.schema import (
    SCHEMA_VERSION,
    DataError,
    Sample,
    metadata_to_json,
    sample_from_metadata,
    validate_sample,
)

MANIFEST = "manifest.json"
RGB_MEMBERS = tuple(way.member for way in RGB_ENCODINGS.values())
LABEL_MEMBERS = {"entity_ids": "seg.mkv", "depth": "depth.mkv"}
REQUIRED_MEMBERS = ("txt", "long.txt", "json")

_OURS = re.compile(r"shard-\d{6}\.(tar|index\.json)(\.partial)?|manifest\.json(\.partial)?")
_TAR_BLOCK = 512
# ustar keeps longer names in extra headers, which would shift the offsets.
_LONGEST_NAME = 100
_HOW_TO_MAKE = (
    "make shards with `python -m data_loaders.synthetic OUT` or "
    "`python -m data_loaders.ingest VIDEOS OUT --captions captions.jsonl`"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """Where one file of a sample lies in its tar."""

    offset: int
    """First byte of the content."""
    size: int
    """Bytes."""
    crc32: int
    """Of the content: ffv1 decoders conceal damage without an error."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardInfo:
    """One shard, as the manifest has it."""

    name: str
    """File name of the tar."""
    num_samples: int
    num_bytes: int
    """Size of the tar."""
    sha256: str
    """Of the tar."""
    index_sha256: str
    """Of the index file beside it."""
    members: dict[str, int]
    """How many samples have each member."""

    @property
    def index_name(self) -> str:
        """File name of the index."""
        return self.name.removesuffix(".tar") + ".index.json"


# --------------------------------------------------------------------------------------- writing


def sample_members(sample: Sample, *, rgb_codec: RgbCodec) -> dict[str, bytes]:
    """The files of one sample, by member name.

    Args:
        sample: Clip with its labels.
        rgb_codec: See `decode.encode_rgb`.

    Raises:
        DataError: The sample is not valid, or the codec does not take it.
    """
    validate_sample(sample)
    try:
        rgb = encode_rgb(sample.rgb, fps=sample.fps, codec=rgb_codec)
    except DataError as error:
        raise DataError(f"sample {sample.key!r}: {error}") from error
    files = {RGB_ENCODINGS[rgb_codec].member: rgb}
    for name, member in LABEL_MEMBERS.items():
        labels = getattr(sample, name)
        if labels is not None:
            files[member] = encode_labels(labels, fps=sample.fps)
    files["txt"] = sample.caption_short.encode()
    files["long.txt"] = sample.caption_long.encode()
    files["json"] = metadata_to_json(sample).encode()
    return files


def write_shards(
    samples: Iterable[Sample],
    out: Path,
    *,
    samples_per_shard: int = 64,
    overwrite: bool = False,
    rgb_codec: RgbCodec = "h264",
) -> Path:
    """Write a data set.

    Every file is written under another name, flushed to the disk and renamed, the manifest last. On
    an error what was written is removed. Equal samples give equal bytes.

    Args:
        samples: Clips; consumed one at a time, so a generator keeps memory small.
        out: Folder, made if missing.
        samples_per_shard: Samples in each tar but the last.
        overwrite: Replace shards that are there.
        rgb_codec: 'h264' for real clips; 'ffv1' is exact, for small ones.

    Returns:
        Path of the manifest.

    Raises:
        DataError: Shards are there and `overwrite` is off; no samples; a key came twice; a sample
            that is not valid.
        OSError: The disk is full or not writable.
    """
    if samples_per_shard < 1:
        raise DataError(f"samples_per_shard: expected an integer >= 1, got {samples_per_shard}")
    out = Path(out)
    _make_room(out, overwrite=overwrite)
    out.mkdir(parents=True, exist_ok=True)
    shards: list[ShardInfo] = []
    iterator = _checked(samples)
    try:
        while chunk := next(iterator, None):
            rest = islice(iterator, samples_per_shard - 1)
            name = f"shard-{len(shards):06d}.tar"
            shards.append(_write_shard(chunk, rest, out / name, rgb_codec=rgb_codec))
        if not shards:
            raise DataError(f"{out}: expected at least one sample to write, got none")
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "num_samples": sum(shard.num_samples for shard in shards),
            "shards": [asdict(shard) for shard in shards],
        }
        _write_atomically(out / MANIFEST, json.dumps(manifest, indent=1).encode())
    except BaseException:
        _remove_ours(out)
        raise
    return out / MANIFEST


def _checked(samples: Iterable[Sample]) -> Iterator[Sample]:
    keys: set[str] = set()
    for sample in samples:
        if sample.key in keys:
            raise DataError(f"sample {sample.key!r}: expected every key once, got it twice")
        keys.add(sample.key)
        yield sample


def _write_shard(
    first: Sample, rest: Iterable[Sample], path: Path, *, rgb_codec: RgbCodec
) -> ShardInfo:
    entries: list[dict[str, Any]] = []
    counts: Counter[str] = Counter()
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for sample in _chain(first, rest):
                files = sample_members(sample, rgb_codec=rgb_codec)
                members = {
                    name: _add(tar, file, name=f"{sample.key}.{name}", content=content)
                    for name, content in files.items()
                }
                counts.update(files.keys())
                entries.append({"key": sample.key, "members": members})
        file.flush()
        os.fsync(file.fileno())
    with partial.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    os.replace(partial, path)
    index = json.dumps({"samples": entries}, separators=(",", ":")).encode()
    info = ShardInfo(
        name=path.name,
        num_samples=len(entries),
        num_bytes=path.stat().st_size,
        sha256=sha256,
        index_sha256=hashlib.sha256(index).hexdigest(),
        members=dict(counts),
    )
    _write_atomically(path.with_name(info.index_name), index)
    return info


def _chain(first: Sample, rest: Iterable[Sample]) -> Iterator[Sample]:
    yield first
    yield from rest


def _add(tar: tarfile.TarFile, file: BinaryIO, *, name: str, content: bytes) -> list[int]:
    """Append one file; returns [offset, size, crc32] of its content."""
    if len(name) > _LONGEST_NAME:
        raise DataError(f"member {name!r}: expected at most {_LONGEST_NAME} characters in a name")
    info = tarfile.TarInfo(name)
    info.size = len(content)
    offset = file.tell() + _TAR_BLOCK
    tar.addfile(info, BytesIO(content))
    return [offset, len(content), zlib.crc32(content)]


def _write_atomically(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _our_files(out: Path) -> list[Path]:
    if not out.is_dir():
        return []
    # The manifest first: without it the folder no longer claims to be whole.
    files = [path for path in out.iterdir() if _OURS.fullmatch(path.name)]
    return sorted(files, key=lambda path: (not path.name.startswith(MANIFEST), path.name))


def _make_room(out: Path, *, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: expected a folder, found a file")
    files = _our_files(out)
    if not files:
        return
    if not overwrite:
        state = "a data set" if files[0].name == MANIFEST else "shards of a run that did not end"
        raise DataError(
            f"{out}: expected no shards, found {state}; ask to overwrite it, or choose "
            "another folder"
        )
    _remove_ours(out)


def _remove_ours(out: Path) -> None:
    for path in _our_files(out):
        path.unlink()


# --------------------------------------------------------------------------------------- reading


@lru_cache(maxsize=64)
def _read_index(path: Path, sha256: str) -> tuple[tuple[str, dict[str, list[int]]], ...]:
    """(key, members) per sample; cached, because neighbours in the order share a shard."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: expected the index of a shard: {error}") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DataError(f"{path}: expected the index that {MANIFEST} names, got another (sha256)")
    return tuple((entry["key"], entry["members"]) for entry in json.loads(content)["samples"])


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredSample:
    """One sample on the disk; each part is read and decoded when asked for."""

    path: Path
    """Tar."""
    key: str
    members: dict[str, Member]

    def read_bytes(self, member: str) -> bytes:
        """Content of one member.

        Raises:
            DataError: There is no such member, the tar cannot be read, or the content is damaged.
        """
        where = f"shard {self.path.name}, sample {self.key!r}, member {member!r}"
        if member not in self.members:
            raise DataError(f"{where}: expected in the shard, found {', '.join(self.members)}")
        at = self.members[member]
        try:
            with self.path.open("rb") as file:
                file.seek(at.offset)
                content = file.read(at.size)
        except OSError as error:
            raise DataError(f"{where}: cannot be read: {error}") from error
        if len(content) != at.size or zlib.crc32(content) != at.crc32:
            raise DataError(
                f"{where}: damaged (expected crc32 {at.crc32:08x} of {at.size} bytes, "
                f"got {zlib.crc32(content):08x} of {len(content)})"
            )
        return content

    def _name(self, member: str) -> str:
        return f"{self.path.name}:{self.key}.{member}"

    def record(self) -> dict[str, Any]:
        """`schema.metadata_record` of the sample."""
        content = self.read_bytes("json")
        try:
            return json.loads(content)
        except ValueError as error:
            raise DataError(f"{self._name('json')}: expected JSON: {error}") from error

    def rgb(self, *, indices: Sequence[int] | None = None) -> UInt8[np.ndarray, "t h w 3"]:
        """Frames 0..255; `indices` None = all."""
        for member in RGB_MEMBERS:
            if member in self.members:
                content = self.read_bytes(member)
                return decode_rgb(content, name=self._name(member), indices=indices)
        raise DataError(
            f"shard {self.path.name}, sample {self.key!r}: expected a video "
            f"({', '.join(RGB_MEMBERS)}), found {', '.join(self.members)}"
        )

    def labels(
        self, name: str, *, indices: Sequence[int] | None = None
    ) -> UInt16[np.ndarray, "t h w"]:
        """`entity_ids` or `depth` of the schema; `indices` None = all frames."""
        member = LABEL_MEMBERS[name]
        return decode_labels(self.read_bytes(member), name=self._name(member), indices=indices)


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """A folder of shards, read at any position; `open` makes it."""

    folder: Path
    shards: tuple[ShardInfo, ...]
    ends: tuple[int, ...]
    """Samples up to and with each shard."""

    @classmethod
    def open(cls, folder: Path | str) -> "ShardIndex":
        """Open and check a folder of shards, without reading the samples.

        Args:
            folder: What `write_shards` was given.

        Raises:
            DataError: No manifest, another schema, a shard missing or of another size, or a sample
                without video or captions; names the file and the key.
        """
        if ":" in str(folder).split("/")[0]:
            raise DataError(
                f"data.shards: expected a local folder, got {folder!r}; addresses with "
                "a scheme (pipe: would run a shell) are refused"
            )
        folder = Path(folder)
        shards = _read_manifest(folder)
        for shard in shards:
            _check_shard(folder, shard)
        ends = tuple(accumulate(shard.num_samples for shard in shards))
        return cls(folder=folder, shards=shards, ends=ends)

    def __len__(self) -> int:
        return self.ends[-1]

    def sample(self, i: int) -> StoredSample:
        """Sample i of the folder, in writing order; nothing is decoded yet."""
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        number = bisect_right(self.ends, i)
        shard = self.shards[number]
        row = i - (self.ends[number] - shard.num_samples)
        key, members = _read_index(self.folder / shard.index_name, shard.index_sha256)[row]
        return StoredSample(
            path=self.folder / shard.name,
            key=key,
            members={
                name: Member(offset=offset, size=size, crc32=crc32)
                for name, (offset, size, crc32) in members.items()
            },
        )

    def read(self, i: int) -> Sample:
        """Sample i, decoded and validated.

        Raises:
            DataError: It is damaged; names the shard, the key and the member.
        """
        stored = self.sample(i)
        labels = {
            name: stored.labels(name) if member in stored.members else None
            for name, member in LABEL_MEMBERS.items()
        }
        return sample_from_metadata(stored.record(), rgb=stored.rgb(), **labels)

    def require_labels(self, name: str, *, reason: str) -> None:
        """Check that every sample has a label.

        Args:
            name: `entity_ids` or `depth`.
            reason: Who needs it, for the message.

        Raises:
            DataError: Names a shard and a key that lacks it.
        """
        member = LABEL_MEMBERS[name]
        for shard in self.shards:
            if shard.members.get(member, 0) < shard.num_samples:
                key = _key_without(self.folder, shard, member)
                raise DataError(
                    f"{reason} needs {name}, but shard {shard.name}, sample {key!r} of "
                    f"{self.folder} has no member {member!r}"
                )


def _read_manifest(folder: Path) -> tuple[ShardInfo, ...]:
    path = folder / MANIFEST
    if not path.is_file():
        if not folder.is_dir():
            found = "no such folder"
        else:
            tars = sum(1 for _ in folder.glob("*.tar"))
            found = f"{tars} tar(s) without one (writing did not end?)" if tars else "no shards"
        raise DataError(f"{folder}: expected {MANIFEST}, found {found}; {_HOW_TO_MAKE}")
    try:
        manifest = json.loads(path.read_bytes())
        version = manifest["schema_version"]
        shards = tuple(ShardInfo(**shard) for shard in manifest["shards"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: expected a manifest of shards: {error!r}") from error
    if version != SCHEMA_VERSION:
        raise DataError(f"{path}: schema_version: expected {SCHEMA_VERSION}, got {version}")
    if not shards:
        raise DataError(f"{path}: expected at least one shard, found none; {_HOW_TO_MAKE}")
    return shards


def _check_shard(folder: Path, shard: ShardInfo) -> None:
    path = folder / shard.name
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(
            f"{path}: {MANIFEST} names this shard, but it cannot be read: {error.strerror}"
        ) from error
    if size != shard.num_bytes:
        state = "truncated" if size < shard.num_bytes else "changed"
        raise DataError(f"{path}: {state}: expected {shard.num_bytes} bytes, found {size}")
    for member in REQUIRED_MEMBERS:
        if shard.members.get(member, 0) != shard.num_samples:
            key = _key_without(folder, shard, member)
            what = "a caption" if member.endswith("txt") else "metadata"
            raise DataError(
                f"shard {path}, sample {key!r}: expected {what} in member {member!r}, found none"
            )


def _key_without(folder: Path, shard: ShardInfo, member: str) -> str:
    index = _read_index(folder / shard.index_name, shard.index_sha256)
    return next((key for key, members in index if member not in members), "?")
