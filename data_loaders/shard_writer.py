"""Write shards: every file whole or not at all, the manifest last. Format: `shards.py`."""

import hashlib
import json
import os
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

from data_loaders.decode import RGB_ENCODINGS, RgbCodec, encode_labels, encode_rgb
from data_loaders.schema import (
    SCHEMA_VERSION,
    DataError,
    Sample,
    metadata_to_json,
    validate_sample,
)
from data_loaders.shard_format import LABEL_MEMBERS, MANIFEST, OUR_FILES, ShardInfo

_TAR_BLOCK = 512
# ustar keeps longer names in extra headers, which would shift the offsets.
_LONGEST_NAME = 100
_EXACT_PIXELS = 256 * 256


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
    rgb_codec: str = "auto",
) -> Path:
    """Write a data set.

    Every file is written under another name, flushed to the disk and renamed, the manifest last. On
    an error what was written is removed. Equal samples give equal bytes, but for videos in h264.

    Args:
        samples: Clips; consumed one at a time, so a generator keeps memory small.
        out: Folder, made if missing.
        samples_per_shard: Samples in each tar but the last.
        overwrite: Replace shards that are there.
        rgb_codec: 'h264', 'vp9', 'ffv1' (exact), or 'auto': ffv1 for pictures up to 256 x 256
            pixels, where 4:2:0 and block coding would show, else h264.

    Returns:
        Path of the manifest.

    Raises:
        DataError: Shards are there and `overwrite` is off; no samples; a key came twice; a sample
            that is not valid; an unknown codec.
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


def _write_shard(first: Sample, rest: Iterable[Sample], path: Path, *, rgb_codec: str) -> ShardInfo:
    entries: list[dict[str, Any]] = []
    counts: Counter[str] = Counter()
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for sample in _chain(first, rest):
                files = sample_members(sample, rgb_codec=_codec_for(sample, rgb_codec=rgb_codec))
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


def _codec_for(sample: Sample, *, rgb_codec: str) -> RgbCodec:
    if rgb_codec not in (*RGB_ENCODINGS, "auto"):
        known = ", ".join((*RGB_ENCODINGS, "auto"))
        raise DataError(f"rgb_codec: expected one of {known}, got {rgb_codec!r}")
    if rgb_codec == "auto":
        height, width = sample.rgb.shape[1:3]
        return "ffv1" if height * width <= _EXACT_PIXELS else "h264"
    return cast(RgbCodec, rgb_codec)


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
    files = [path for path in out.iterdir() if OUR_FILES.fullmatch(path.name)]
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
            f"{out}: expected no shards, found {state}; give --overwrite (overwrite=True) to "
            "replace them, or choose another folder"
        )
    _remove_ours(out)


def _remove_ours(out: Path) -> None:
    for path in _our_files(out):
        path.unlink()
