"""Shards: webdataset tars with an index, written whole or not at all, read at any position.

A folder of shards holds, per shard, `shard-000000.tar` and `shard-000000.index.json`, and one
`manifest.json`, written last: a folder without it is not finished. A sample is these tar members:

    {key}.mp4 | .webm | .mkv   RGB (lossy, or exact ffv1)
    {key}.seg.mkv              entity ids, exact                        (where there are any)
    {key}.depth.mkv            disparity, 16 bit, exact                 (where there is any)
    {key}.txt  {key}.long.txt  captions
    {key}.json                 schema.metadata_record

Any webdataset reader can read them in order; `ShardIndex` reads any one sample by its byte offsets.
The manifest grows with the shards and not with the samples, so that opening stays quick. The folder
may lie behind an address (`https://`, `s3://`, ...; `shard_files.py`).

    python -m data_loaders.shards verify DIR    read every byte, name what is damaged
    python -m data_loaders.shards inspect DIR   what is in it, as a table and as a page
"""

import hashlib
import json
import sys
import zlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import UInt8, UInt16

from data_loaders.clip_writer import make_shards, write_shards
from data_loaders.decode import decode_labels, decode_rgb
from data_loaders.schema import DataError, Sample, check_record, sample_from_metadata
from data_loaders.shard_files import ShardFiles, files_at
from data_loaders.shard_format import (
    CLIPS,
    LABEL_MEMBERS,
    MANIFEST,
    REQUIRED_MEMBERS,
    RGB_MEMBERS,
    Manifest,
    Member,
    ShardInfo,
)
from data_loaders.transfer import TransportError

__all__ = ["ShardIndex", "StoredSample", "make_shards", "open_manifest", "write_shards"]

_Row = tuple[str, dict[str, list[int]], str]


@lru_cache(maxsize=64)
def _read_index(path: Path, sha256: str) -> tuple[_Row, ...]:
    """(key, members, note) per sample; cached, because neighbours in the order share a shard."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: expected the index of a shard: {error}") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DataError(f"{path}: expected the index that {MANIFEST} names, got another (sha256)")
    try:
        return tuple(_row(entry) for entry in json.loads(content)["samples"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: expected the index of a shard: {error!r}") from error


def _row(entry: dict[str, Any]) -> _Row:
    for place in entry["members"].values():
        if len(place) != 3 or not all(type(number) is int and number >= 0 for number in place):
            raise ValueError(f"place {place!r} in sample {entry['key']!r}")
    return str(entry["key"]), entry["members"], str(entry.get("note", ""))


def open_manifest(files: ShardFiles) -> Manifest:
    """Read the manifest of a folder of shards of any kind.

    Raises:
        DataError: There is none, or it cannot be used.
    """
    return Manifest.from_json(files.read_manifest(), name=f"{files.place}/{MANIFEST}")


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredSample:
    """One sample on the disk; each part is read and decoded when asked for."""

    files: ShardFiles
    shard: ShardInfo
    key: str
    members: dict[str, Member]
    """Empty where the sample was known to be damaged when the shard was written."""
    note: str = ""
    """What the writer said of the sample, such as why it is damaged."""

    @property
    def path(self) -> Path:
        """Tar on this machine; fetched first where it is remote."""
        return self.files.tar(self.shard)

    def read_bytes(self, member: str) -> bytes:
        """Content of one member.

        Raises:
            DataError: There is no such member, the tar cannot be read, or the content is damaged;
                of a remote shard, the content behind the address: a changed copy is fetched again.
            TransportError: The tar cannot be fetched.
        """
        where = f"shard {self.shard.name}, sample {self.key!r}, member {member!r}"
        if not self.members:
            raise DataError(f"{where}: the sample is damaged: {self.note or 'no members'}")
        if member not in self.members:
            raise DataError(f"{where}: expected in the shard, found {', '.join(self.members)}")
        at = self.members[member]
        content, fault = self._read(at)
        if fault and self.files.drop_changed(self.shard):
            content, fault = self._read(at)
        if fault:
            raise DataError(f"{where}: {fault}")
        return content

    def _read(self, at: Member) -> tuple[bytes, str]:
        """(content, fault or '')."""
        try:
            with self._open_tar() as file:
                file.seek(at.offset)
                content = file.read(at.size)
        except TransportError:
            raise
        except OSError as error:
            return b"", f"cannot be read: {error}"
        if len(content) == at.size and zlib.crc32(content) == at.crc32:
            return content, ""
        return b"", (
            f"damaged (expected crc32 {at.crc32:08x} of {at.size} bytes, "
            f"got {zlib.crc32(content):08x} of {len(content)})"
        )

    def _open_tar(self) -> BinaryIO:
        try:
            return self.path.open("rb")
        except FileNotFoundError:
            # A copy may be evicted between its path and its opening: that fetches it again.
            return self.path.open("rb")

    def _name(self, member: str) -> str:
        return f"{self.shard.name}:{self.key}.{member}"

    def record(self) -> dict[str, Any]:
        """`schema.metadata_record` of the sample, checked.

        Raises:
            DataError: It is damaged, no record, or that of another sample.
        """
        content = self.read_bytes("json")
        try:
            record = check_record(content)
        except DataError as error:
            raise DataError(f"{self._name('json')}: {error}") from error
        if record["key"] != self.key:
            raise DataError(
                f"{self._name('json')}: expected the record of {self.key!r}, got {record['key']!r}"
            )
        return record

    def rgb_file(self) -> tuple[str, bytes]:
        """Name, for messages, and content of the video file."""
        for member in RGB_MEMBERS:
            if member in self.members:
                return self._name(member), self.read_bytes(member)
        raise DataError(
            f"shard {self.shard.name}, sample {self.key!r}: expected a video "
            f"({', '.join(RGB_MEMBERS)}), found {', '.join(self.members)}"
        )

    def rgb(self, *, indices: Sequence[int] | None = None) -> UInt8[np.ndarray, "t h w 3"]:
        """Frames 0..255; `indices` None = all."""
        name, content = self.rgb_file()
        return decode_rgb(content, name=name, indices=indices)

    def labels(
        self,
        name: str,
        *,
        indices: Sequence[int] | None = None,
        record: Mapping[str, Any] | None = None,
    ) -> UInt16[np.ndarray, "t h w"]:
        """Decode labels and check that they lie on the pixels of the video.

        Args:
            name: `entity_ids` or `depth` of the schema.
            indices: Frames wanted; None = all.
            record: What `record` gave, to save reading it again.

        Raises:
            DataError: They are damaged, or of another size than the record.
        """
        member = LABEL_MEMBERS[name]
        labels = decode_labels(self.read_bytes(member), name=self._name(member), indices=indices)
        record = self.record() if record is None else record
        expected = (record["height"], record["width"])
        if labels.shape[1:] != expected:
            raise DataError(
                f"{self._name(member)}: expected labels of the record's "
                f"{expected[0]}x{expected[1]} pixels, got {labels.shape[1]}x{labels.shape[2]}"
            )
        return labels


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """A folder of shards, read at any position; `open` makes it."""

    files: ShardFiles
    shards: tuple[ShardInfo, ...]
    ends: tuple[int, ...]
    """Samples up to and with each shard."""
    manifest: Manifest

    @classmethod
    def open(
        cls,
        folder: Path | str,
        *,
        kind: str = CLIPS,
        cache_dir: Path | None = None,
        max_cache_bytes: int | None = None,
        is_checked: bool = False,
    ) -> "ShardIndex":
        """Open and check a folder of shards, without reading the samples.

        Args:
            folder: What `write_shards` was given, or its address (`shard_files.SCHEMES`).
            kind: What the samples must be; required members are those of clips.
            cache_dir: For copies of remote shards; see `shard_files.files_at`.
            max_cache_bytes: Of the tars there; see `shard_files.files_at`.
            is_checked: Leave the checks of the shards out, as another process has made them: one
                that is lost since then is found when it is read.

        Raises:
            DataError: No manifest, another schema or kind, a shard missing or of another size, a
                clip without video, captions or metadata (names the file and the key), or an
                address that is not allowed.
            TransportError: The address does not answer.
        """
        files = files_at(folder, cache_dir=cache_dir, max_cache_bytes=max_cache_bytes)
        manifest = open_manifest(files)
        if manifest.kind != kind:
            raise DataError(f"{files.place}: expected a folder of {kind}, found {manifest.kind}")
        shards = manifest.shards
        if not is_checked:
            files.check(shards)
        if kind == CLIPS and not is_checked:
            for shard in shards:
                _check_members(files, shard)
        ends = tuple(accumulate(shard.num_samples for shard in shards))
        return cls(files=files, shards=shards, ends=ends, manifest=manifest)

    @property
    def folder(self) -> Path | str:
        """Where the shards are: a folder, or an address as text."""
        return self.files.place

    def __len__(self) -> int:
        return self.ends[-1]

    def sample(self, i: int) -> StoredSample:
        """Sample i of the folder, in writing order; nothing is decoded yet."""
        number = self.shard_of(i)
        shard = self.shards[number]
        row = i - (self.ends[number] - shard.num_samples)
        rows = _read_index(self.files.index(shard), shard.index_sha256)
        if len(rows) != shard.num_samples:
            raise DataError(
                f"{shard.index_name}: expected the {shard.num_samples} samples of {MANIFEST}, "
                f"found {len(rows)}"
            )
        key, members, note = rows[row]
        return StoredSample(
            files=self.files,
            shard=shard,
            key=key,
            members={
                name: Member(offset=offset, size=size, crc32=crc32)
                for name, (offset, size, crc32) in members.items()
            },
            note=note,
        )

    def shard_of(self, i: int) -> int:
        """The number in `shards` of the shard that holds sample i."""
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        return bisect_right(self.ends, i)

    def read(self, i: int) -> Sample:
        """Sample i, decoded and validated.

        Raises:
            DataError: It is damaged; names the shard, the key and the member.
        """
        stored = self.sample(i)
        record = stored.record()
        labels = {
            name: stored.labels(name, record=record) if member in stored.members else None
            for name, member in LABEL_MEMBERS.items()
        }
        return sample_from_metadata(record, rgb=stored.rgb(), **labels)

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
                key = _key_without(self.files, shard, member)
                raise DataError(
                    f"{reason} needs {name}, but shard {shard.name}, sample {key!r} of "
                    f"{self.folder} has no member {member!r}"
                )


def _check_members(files: ShardFiles, shard: ShardInfo) -> None:
    for member in REQUIRED_MEMBERS:
        if shard.members.get(member, 0) != shard.num_samples:
            key = _key_without(files, shard, member)
            what = "a caption" if member.endswith("txt") else "metadata"
            raise DataError(
                f"shard {files.place}/{shard.name}, sample {key!r}: expected {what} in member "
                f"{member!r}, found none"
            )
    if sum(shard.members.get(member, 0) for member in RGB_MEMBERS) < shard.num_samples:
        rows = _read_index(files.index(shard), shard.index_sha256)
        key = next((key for key, members, _ in rows if not set(members) & set(RGB_MEMBERS)), "?")
        raise DataError(
            f"shard {files.place}/{shard.name}, sample {key!r}: expected a video in one of "
            f"{', '.join(RGB_MEMBERS)}, found none"
        )


def _key_without(files: ShardFiles, shard: ShardInfo, member: str) -> str:
    rows = _read_index(files.index(shard), shard.index_sha256)
    return next((key for key, members, _ in rows if member not in members), "?")


if __name__ == "__main__":
    from data_loaders.shard_cli import main

    sys.exit(main())
