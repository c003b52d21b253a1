"""Read every byte of a folder of shards and name all that is wrong with it.

It goes on after a fault: a folder is mended in one go. Reading a damaged tar in order, as
webdataset does, ends at the first fault, most kinds of them without an error; here every member is
looked for where the index says it is.
"""

import hashlib
import json
import tarfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

from data_loaders.decode import decode_labels, frames_and_facts
from data_loaders.schema import DataError, check_record
from data_loaders.shard_files import CachedFiles, LocalFiles, ShardFiles, check_size
from data_loaders.shard_format import (
    CLIPS,
    LABEL_MEMBERS,
    MANIFEST,
    REQUIRED_MEMBERS,
    RGB_MEMBERS,
    Manifest,
    ShardInfo,
    Totals,
    count_members,
    total_of,
)
from data_loaders.shard_stats import ClipStats
from data_loaders.shards import open_manifest
from data_loaders.transfer import TransportError
from data_loaders.worker_pool import ordered_map

_TAR_BLOCK = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardReport:
    """What reading one shard found."""

    name: str
    faults: tuple[str, ...]
    """One line each; the shard, the sample and the member are named."""
    keys: tuple[str, ...]
    """Of its samples, as far as its index could be read."""
    bytes_read: int


def verify(files: ShardFiles, *, workers: int = 0, decode: bool = False) -> Iterator[ShardReport]:
    """Verify a folder of shards.

    Args:
        files: Of the folder. Of an address every shard is fetched anew, beside the copies that
            are kept, and removed when it has been read.
        workers: Processes, each on a shard of its own; 0 = this one.
        decode: Decode every video and label of clips too.

    Yields:
        A report per shard, in order, and a last one of the folder itself.

    Raises:
        DataError: The manifest cannot be read: nothing else can be verified.
        TransportError: It cannot be fetched.
    """
    if isinstance(files, CachedFiles):
        # Copies of earlier uses say nothing of the server.
        files.cache_dir.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=files.cache_dir, prefix="verify-") as fresh:
            cached = replace(files, cache_dir=Path(fresh), max_cache_bytes=None)
            yield from _verify(cached, workers=workers, decode=decode)
    else:
        yield from _verify(files, workers=workers, decode=decode)


def _verify(files: ShardFiles, *, workers: int, decode: bool) -> Iterator[ShardReport]:
    manifest = open_manifest(files)
    work = partial(_verify_shard, files=files, kind=manifest.kind, decode=decode)
    home: dict[str, str] = {}
    with closing(
        ordered_map(work, manifest.shards, workers=workers, describe=lambda shard: shard.name)
    ) as reports:
        for report in reports:
            twice = [
                f"{report.name}: sample {key!r}: expected every key once, it is in {home[key]} too"
                for key in report.keys
                if key in home
            ]
            home.update(dict.fromkeys(report.keys, report.name))
            yield ShardReport(
                name=report.name,
                faults=(*report.faults, *twice),
                keys=report.keys,
                bytes_read=report.bytes_read,
            )
    faults = (*_wrong_totals(manifest), *_strays(files, manifest))
    yield ShardReport(name=MANIFEST, faults=faults, keys=(), bytes_read=0)


def _wrong_totals(manifest: Manifest) -> Iterator[str]:
    expected = total_of(manifest.shards)
    yield from _differences(
        f"{MANIFEST}: the sum over its shards", expected=expected, found=manifest.totals
    )


def _differences(where: str, *, expected: Totals, found: Totals) -> Iterator[str]:
    """Figures of `Totals` that are not equal, the manifest's being `found`."""
    for name in (field.name for field in fields(Totals)):
        truth, claim = getattr(expected, name), getattr(found, name)
        if truth != claim:
            yield f"{where}: {name}: expected {_brief(truth)}, {MANIFEST} says {_brief(claim)}"


def _brief(value: object) -> str:
    text = str(value)
    return text if len(text) <= 120 else text[:117] + "..."


def _strays(files: ShardFiles, manifest: Manifest) -> Iterator[str]:
    if not isinstance(files, LocalFiles):
        return
    known = {shard.name for shard in manifest.shards}
    for path in sorted(files.folder.glob("*")):
        if path.suffix == ".tar" and path.name not in known:
            yield f"{path.name}: a tar that {MANIFEST} does not name"
        elif path.suffix == ".partial":
            yield f"{path.name}: left by a run that did not end"


def _verify_shard(shard: ShardInfo, *, files: ShardFiles, kind: str, decode: bool) -> ShardReport:
    faults: list[str] = []
    rows = _read_rows(shard, files=files, faults=faults)
    keys = tuple(row["key"] for row in rows)
    bytes_read = 0
    try:
        path = files.tar(shard)
        bytes_read = _check_whole(path, shard=shard, faults=faults)
        reader = _ShardReader(shard=shard, kind=kind, decode=decode, faults=faults)
        with path.open("rb") as tar:
            reader.read_all(tar, rows=rows)
    except (DataError, TransportError) as error:
        faults.append(str(error))
    except OSError as error:
        faults.append(f"{shard.name}: cannot be read: {error}")
        faults += [f"{shard.name}: sample {key!r}: lost with its shard" for key in keys]
    finally:
        if isinstance(files, CachedFiles):
            files.drop(shard)
    return ShardReport(name=shard.name, faults=tuple(faults), keys=keys, bytes_read=bytes_read)


def _read_rows(shard: ShardInfo, *, files: ShardFiles, faults: list[str]) -> list[dict[str, Any]]:
    """Entries of the index; of a changed one too, where it can still be read as one."""
    name = shard.index_name
    try:
        content = files.index(shard).read_bytes()
    except (OSError, DataError) as error:
        faults.append(f"{name}: cannot be read, so that its samples are not verified: {error}")
        return []
    if hashlib.sha256(content).hexdigest() != shard.index_sha256:
        faults.append(f"{name}: sha256 is not that of {MANIFEST}: damaged or changed")
    try:
        rows = json.loads(content)["samples"]
        for row in rows:
            if not isinstance(row["key"], str):
                raise TypeError(f"key {row['key']!r}")
            for offset, size, crc32 in row["members"].values():
                if min(offset - _TAR_BLOCK, size, crc32) < 0:
                    raise ValueError(f"place of {row['key']!r}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        faults.append(f"{name}: no index, so that its samples are not verified: {error!r}")
        return []
    return rows


def _check_whole(path: Path, *, shard: ShardInfo, faults: list[str]) -> int:
    """Size and checksum of a tar; returns the bytes read."""
    try:
        check_size(path, expected=shard.num_bytes)
    except DataError as error:
        faults.append(str(error))
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != shard.sha256:
            faults.append(f"{shard.name}: sha256: expected {shard.sha256}, got {digest}")
        return file.tell()


@dataclass(frozen=True, kw_only=True, slots=True)
class _ShardReader:
    """Reads the samples of one shard and notes what is wrong with them."""

    shard: ShardInfo
    kind: str
    decode: bool
    faults: list[str]

    def read_all(self, tar: BinaryIO, *, rows: Sequence[Mapping[str, Any]]) -> None:
        seen: set[str] = set()
        stats: list[ClipStats] = []
        end = 0
        for row in rows:
            key = row["key"]
            if key in seen:
                self._note(key, "expected every key once, it is twice in the shard")
            seen.add(key)
            files: dict[str, bytes] = {}
            for member, (offset, size, crc32) in row["members"].items():
                if offset - _TAR_BLOCK != end:
                    self._note(key, f"{end} is where its header should be in the tar", member)
                end = offset + -(-size // _TAR_BLOCK) * _TAR_BLOCK
                fault, content = _read_member(
                    tar, name=f"{key}.{member}", offset=offset, size=size, crc32=crc32
                )
                if fault:
                    self._note(key, fault, member)
                else:
                    files[member] = content
            if self.kind == CLIPS:
                stats += self._check_clip(key, files, listed=row["members"])
        if rows:
            self._check_figures(rows, stats=stats)

    def _note(self, key: str, what: str, member: str = "") -> None:
        where = f"{self.shard.name}: sample {key!r}"
        self.faults.append(f"{where}, member {member!r}: {what}" if member else f"{where}: {what}")

    def _check_figures(
        self, rows: Sequence[Mapping[str, Any]], *, stats: Sequence[ClipStats]
    ) -> None:
        # Figures of clips say something only when every record could be read.
        complete = self.kind == CLIPS and len(stats) == len(rows)
        expected = Totals(
            num_bytes=self.shard.num_bytes,
            stats=ClipStats.total(stats) if complete else self.shard.stats,
            **count_members(row["members"] for row in rows),
        )
        self.faults.extend(_differences(self.shard.name, expected=expected, found=self.shard))

    def _check_clip(
        self, key: str, files: Mapping[str, bytes], *, listed: Iterable[str]
    ) -> list[ClipStats]:
        """Check a clip; its figures, or nothing where it has no sound record."""
        listed = set(listed)
        for member in REQUIRED_MEMBERS:
            if member not in listed:
                self._note(key, f"expected a member {member!r}, found {', '.join(listed)}")
        if not listed & set(RGB_MEMBERS):
            self._note(key, f"expected a video ({', '.join(RGB_MEMBERS)})")
        if "json" not in files:
            return []
        try:
            record = check_record(files["json"])
        except DataError as error:
            self._note(key, str(error), "json")
            return []
        self._compare(key, files, record=record, listed=listed)
        if self.decode:
            self._decode_all(key, files, record=record)
        return [ClipStats.of(record)]

    def _compare(
        self,
        key: str,
        files: Mapping[str, bytes],
        *,
        record: Mapping[str, Any],
        listed: Collection[str],
    ) -> None:
        """Compare a record with the other files of its sample."""
        for what, truth, said in (
            ("key", key, record["key"]),
            ("has_entity_ids", LABEL_MEMBERS["entity_ids"] in listed, record["has_entity_ids"]),
            ("has_depth", LABEL_MEMBERS["depth"] in listed, record["has_depth"]),
        ):
            if truth != said:
                self._note(key, f"{what}: expected {truth!r}, the record says {said!r}", "json")
        for member, name in (("txt", "caption_short"), ("long.txt", "caption_long")):
            if member in files and files[member] != record[name].encode():
                self._note(key, f"not the {name} of the record", member)

    def _decode_all(
        self, key: str, files: Mapping[str, bytes], *, record: Mapping[str, Any]
    ) -> None:
        expected = (record["frames"], record["height"], record["width"])
        for member in (*RGB_MEMBERS, *LABEL_MEMBERS.values()):
            if member not in files:
                continue
            name = f"{key}.{member}"
            try:
                shape, fps = frames_and_facts(files[member], name=name)
                if member in LABEL_MEMBERS.values():
                    shape = decode_labels(files[member], name=name).shape
            except DataError as error:
                self._note(key, str(error), member)
                continue
            if tuple(shape) != expected:
                self._note(key, f"frames, height, width: expected {expected}, got {shape}", member)
            # As exact as the containers keep it: `decode._encode`.
            rate = float(Fraction(record["fps"]).limit_denominator(1001))
            if abs(fps - rate) > 1e-3 * rate:
                self._note(key, f"frames per second: expected {rate:g}, got {fps:g}", member)


def _read_member(
    tar: BinaryIO, *, name: str, offset: int, size: int, crc32: int
) -> tuple[str, bytes]:
    """(fault or '', content) of one file of a tar."""
    tar.seek(offset - _TAR_BLOCK)
    header, content = tar.read(_TAR_BLOCK), tar.read(size)
    if len(header) < _TAR_BLOCK:
        return "missing: the tar ends before its header or in it", b""
    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
    except (tarfile.HeaderError, UnicodeDecodeError) as error:
        return f"damaged tar header: {error}", b""
    if (info.name, info.size, info.isreg()) != (name, size, True):
        return f"tar header: expected {name!r} of {size} bytes, got {info.name!r}, {info.size}", b""
    if len(content) < size:
        return f"truncated: expected {size} bytes, the tar ends after {len(content)}", b""
    if zlib.crc32(content) != crc32:
        return f"damaged: expected crc32 {crc32:08x}, got {zlib.crc32(content):08x}", b""
    return "", content
