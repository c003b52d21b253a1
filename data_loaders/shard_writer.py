"""Write any shards: every file whole or not at all, the manifest last. Format: `shards.py`."""

import hashlib
import json
import tarfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from data_loaders.atomic_file import atomic_file, write_atomically
from data_loaders.schema import DataError, valid_key
from data_loaders.shard_format import (
    CLIPS,
    MANIFEST,
    OUR_FILES,
    Manifest,
    ShardInfo,
    count_members,
    total_of,
)

_TAR_BLOCK = 512
# ustar keeps longer names in extra headers, which would shift the offsets.
_LONGEST_NAME = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One sample of a shard, as files."""

    key: str
    """Unique in the folder; letters, digits, '_' and '-' only."""
    members: Mapping[str, bytes]
    """Content by member name; none at all says that the sample is known to be damaged."""
    note: str = ""
    """Free text that the index keeps, such as why a sample is damaged."""


def write_shard(path: Path, entries: Iterable[Entry]) -> ShardInfo:
    """Write one tar and its index; for clips use `write_shards`.

    Args:
        path: Tar, named by `shard_format.shard_name`; the index is put beside it.
        entries: Samples; consumed one at a time.

    Returns:
        What the manifest says of the shard, without figures of clips (`stats` None).

    Raises:
        DataError: No entries, a key twice or impossible, or a name too long for a tar. Nothing is
            left of the shard.
        OSError: The disk is full or not writable. Nothing is left of the shard.
    """
    index: dict[str, dict[str, Any]] = {}
    with atomic_file(path) as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for entry in entries:
                if not valid_key(entry.key) or entry.key in index:
                    raise DataError(
                        f"sample {entry.key!r}: expected a key of letters, digits, '_' and '-', "
                        "every one once"
                    )
                members = {
                    name: _add(tar, file, name=f"{entry.key}.{name}", content=content)
                    for name, content in entry.members.items()
                }
                note = {"note": entry.note} if entry.note else {}
                index[entry.key] = {"key": entry.key, "members": members, **note}
        if not index:
            raise DataError(f"{path}: expected at least one sample to write, got none")
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    content = json.dumps({"samples": list(index.values())}, separators=(",", ":")).encode()
    info = ShardInfo(
        name=path.name,
        num_bytes=path.stat().st_size,
        sha256=sha256,
        index_sha256=hashlib.sha256(content).hexdigest(),
        stats=None,
        **count_members(entry["members"] for entry in index.values()),
    )
    try:
        write_atomically(path.with_name(info.index_name), content)
    except BaseException:
        path.unlink()
        raise
    return info


def write_manifest(
    folder: Path,
    shards: Sequence[ShardInfo],
    *,
    kind: str = CLIPS,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write the manifest, which makes a folder of shards whole; to be done last.

    Args:
        folder: Where the shards are.
        shards: In the order of their samples.
        kind: What the samples are; readers must ask for it by this name.
        extra: JSON object kept in `Manifest.extra`.

    Returns:
        Path of the manifest.

    Raises:
        DataError: No shards, one twice, or a value that JSON cannot keep.
        OSError: The disk is full or not writable.
    """
    path = folder / MANIFEST
    manifest = Manifest(
        kind=kind, shards=tuple(shards), totals=total_of(shards), extra=dict(extra or {})
    )
    try:
        content = manifest.to_json()
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: extra: expected JSON values: {error}") from error
    Manifest.from_json(content, name=str(path))
    write_atomically(path, content)
    return path


def _add(tar: tarfile.TarFile, file: BinaryIO, *, name: str, content: bytes) -> list[int]:
    """Append one file; returns [offset, size, crc32] of its content."""
    if len(name) > _LONGEST_NAME:
        raise DataError(f"member {name!r}: expected at most {_LONGEST_NAME} characters in a name")
    info = tarfile.TarInfo(name)
    info.size = len(content)
    offset = file.tell() + _TAR_BLOCK
    tar.addfile(info, BytesIO(content))
    return [offset, len(content), zlib.crc32(content)]


def claim_folder(out: Path, *, overwrite: bool) -> None:
    """Make a folder ready for shards: there, and without older ones.

    Args:
        out: Folder, made if missing.
        overwrite: Remove the shards that are there; other files stay.

    Raises:
        DataError: It is a file, or holds shards and `overwrite` is off.
    """
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: expected a folder, found a file")
    files = _our_files(out)
    if files and not overwrite:
        state = "a data set" if files[0].name == MANIFEST else "shards of a run that did not end"
        raise DataError(
            f"{out}: expected no shards, found {state}; give --overwrite (overwrite=True) to "
            "replace them, or choose another folder"
        )
    remove_shards(out)
    out.mkdir(parents=True, exist_ok=True)


def _our_files(out: Path) -> list[Path]:
    if not out.is_dir():
        return []
    # The manifest first: without it the folder no longer claims to be whole.
    files = [path for path in out.iterdir() if OUR_FILES.fullmatch(path.name)]
    return sorted(files, key=lambda path: (not path.name.startswith(MANIFEST), path.name))


def remove_shards(out: Path) -> None:
    """Remove shards, indices and manifest of a folder, whole or not; other files stay."""
    for path in _our_files(out):
        path.unlink()
