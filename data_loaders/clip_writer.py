"""Make shards of clips, on several processes if asked: workers make and encode, one writes."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from operator import length_hint
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from data_loaders.decode import RGB_ENCODINGS, RgbCodec, encode_labels, encode_rgb
from data_loaders.schema import (
    DataError,
    Sample,
    metadata_record,
    record_to_json,
    validate_sample,
)
from data_loaders.shard_format import LABEL_MEMBERS, ShardInfo, shard_name
from data_loaders.shard_stats import ClipStats
from data_loaders.shard_writer import (
    Entry,
    claim_folder,
    remove_shards,
    write_manifest,
    write_shard,
)
from data_loaders.worker_pool import ordered_map

_Item = TypeVar("_Item")

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
    return files | record_members(metadata_record(sample))


def record_members(record: dict[str, Any]) -> dict[str, bytes]:
    """The files of a sample that hold text, by member name.

    Args:
        record: See `schema.make_record`.
    """
    return {
        "txt": record["caption_short"].encode(),
        "long.txt": record["caption_long"].encode(),
        "json": record_to_json(record).encode(),
    }


def write_shards(  # noqa: PLR0913 - options of one command, all but two with defaults
    samples: Iterable[Sample],
    out: Path,
    *,
    samples_per_shard: int = 64,
    overwrite: bool = False,
    rgb_codec: str = "auto",
    workers: int = 0,
) -> Path:
    """Write a data set of clips.

    Every file is written under another name, flushed to the disk and renamed, the manifest last. On
    an error what was written is removed. Equal samples give equal bytes for any number of
    workers.

    Args:
        samples: Clips; consumed one at a time, so a generator keeps memory small.
        out: Folder, made if missing.
        samples_per_shard: Samples in each tar but the last.
        overwrite: Replace shards that are there.
        rgb_codec: 'h264', 'vp9', 'ffv1' (exact), or 'auto': ffv1 for pictures up to 256 x 256
            pixels, where 4:2:0 and block coding would show, else h264.
        workers: Processes that encode; 0 = this one. `make_shards` lets them make the clips too.

    Returns:
        Path of the manifest.

    Raises:
        DataError: Shards are there and `overwrite` is off; no samples; a key came twice; a sample
            that is not valid; an unknown codec; a worker was killed.
        OSError: The disk is full or not writable.
    """
    return make_shards(
        _as_it_is,
        samples,
        out,
        samples_per_shard=samples_per_shard,
        overwrite=overwrite,
        rgb_codec=rgb_codec,
        workers=workers,
        describe=lambda sample: f"sample {sample.key!r}",
    )


def _as_it_is(sample: Sample) -> Sample:
    return sample


def make_shards(  # noqa: PLR0913 - as write_shards
    make: Callable[[_Item], Sample | None],
    items: Iterable[_Item],
    out: Path,
    *,
    samples_per_shard: int = 64,
    overwrite: bool = False,
    rgb_codec: str = "auto",
    workers: int = 0,
    describe: Callable[[_Item], str] = str,
    progress: str = "",
) -> Path:
    """`write_shards` of clips that workers make as well as encode.

    Args:
        make: Clip of an item, None = leave it out; picklable where there are workers.
        items: What clips are made of, in their order in the shards.
        out: Folder, made if missing.
        samples_per_shard: Samples in each tar but the last.
        overwrite: Replace shards that are there.
        rgb_codec: As for `write_shards`.
        workers: Processes that make and encode; at most 2 clips for each are in memory. 0 = this
            process.
        describe: Name of an item, for the error when a worker is killed.
        progress: Title of a progress bar; '' = none.

    Returns:
        Path of the manifest.

    Raises:
        DataError: As for `write_shards`.
        OSError: The disk is full or not writable.
        Exception: What `make` raised.
    """
    if samples_per_shard < 1:
        raise DataError(f"samples_per_shard: expected an integer >= 1, got {samples_per_shard}")
    if rgb_codec not in (*RGB_ENCODINGS, "auto"):
        known = ", ".join((*RGB_ENCODINGS, "auto"))
        raise DataError(f"rgb_codec: expected one of {known}, got {rgb_codec!r}")
    out = Path(out)
    claim_folder(out, overwrite=overwrite)
    work = partial(_make_and_encode, make=make, rgb_codec=rgb_codec)
    total = length_hint(items) or None
    # disable=None: no bar where there is no terminal.
    hidden = None if progress else True
    try:
        with closing(ordered_map(work, items, workers=workers, describe=describe)) as results:
            bar = tqdm(results, desc=progress, unit="clip", total=total, disable=hidden)
            shards = _write_all(iter(bar), out, samples_per_shard=samples_per_shard)
        return write_manifest(out, shards)
    except BaseException:
        remove_shards(out)
        raise


@dataclass(frozen=True, kw_only=True, slots=True)
class _Encoded:
    """What a worker hands over."""

    entry: Entry
    stats: ClipStats


def _make_and_encode(
    item: Any, *, make: Callable[[Any], Sample | None], rgb_codec: str
) -> _Encoded | None:
    sample = make(item)
    if sample is None:
        return None
    members = sample_members(sample, rgb_codec=codec_for(sample.rgb, rgb_codec=rgb_codec))
    return _Encoded(
        entry=Entry(key=sample.key, members=members), stats=ClipStats.of(metadata_record(sample))
    )


def _write_all(
    results: Iterable[_Encoded | None], out: Path, *, samples_per_shard: int
) -> list[ShardInfo]:
    shards: list[ShardInfo] = []
    encoded = _checked(result for result in results if result is not None)
    while first := next(encoded, None):
        stats: list[ClipStats] = []
        rest = islice(encoded, samples_per_shard - 1)
        entries = _entries(_chain(first, rest), stats=stats)
        shard = write_shard(out / shard_name(len(shards)), entries)
        shards.append(replace(shard, stats=ClipStats.total(stats)))
    if not shards:
        raise DataError(f"{out}: expected at least one sample to write, got none")
    return shards


def _checked(results: Iterable[_Encoded]) -> Iterator[_Encoded]:
    keys: set[str] = set()
    for result in results:
        key = result.entry.key
        if key in keys:
            raise DataError(f"sample {key!r}: expected every key once, got it twice")
        keys.add(key)
        yield result


def _entries(results: Iterable[_Encoded], *, stats: list[ClipStats]) -> Iterator[Entry]:
    for result in results:
        stats.append(result.stats)
        yield result.entry


def _chain(first: _Encoded, rest: Iterable[_Encoded]) -> Iterator[_Encoded]:
    yield first
    yield from rest


def codec_for(rgb: UInt8[np.ndarray, "t h w 3"], *, rgb_codec: str) -> RgbCodec:
    """The codec that `rgb_codec` comes to for a clip; see `write_shards`."""
    if rgb_codec == "auto":
        height, width = rgb.shape[1:3]
        return "ffv1" if height * width <= _EXACT_PIXELS else "h264"
    return cast(RgbCodec, rgb_codec)
