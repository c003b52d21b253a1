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
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8, UInt16

from data_loaders.decode import decode_labels, decode_rgb
from data_loaders.schema import SCHEMA_VERSION, DataError, Sample, sample_from_metadata
from data_loaders.shard_format import (
    LABEL_MEMBERS,
    MANIFEST,
    REQUIRED_MEMBERS,
    RGB_MEMBERS,
    Member,
    ShardInfo,
)
from data_loaders.shard_writer import write_shards

__all__ = ["ShardIndex", "StoredSample", "write_shards"]

_HOW_TO_MAKE = (
    "make shards with `python -m data_loaders.synthetic OUT` or "
    "`python -m data_loaders.ingest VIDEOS OUT --captions captions.jsonl`"
)


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

    def rgb_file(self) -> tuple[str, bytes]:
        """Name, for messages, and content of the video file."""
        for member in RGB_MEMBERS:
            if member in self.members:
                return self._name(member), self.read_bytes(member)
        raise DataError(
            f"shard {self.path.name}, sample {self.key!r}: expected a video "
            f"({', '.join(RGB_MEMBERS)}), found {', '.join(self.members)}"
        )

    def rgb(self, *, indices: Sequence[int] | None = None) -> UInt8[np.ndarray, "t h w 3"]:
        """Frames 0..255; `indices` None = all."""
        name, content = self.rgb_file()
        return decode_rgb(content, name=name, indices=indices)

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
