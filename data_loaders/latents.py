r"""Encode clips and captions once, so that training need not: shards to a cache of latents.

    python -m data_loaders.latents --base configs/tiny.yaml --shards DIR --output CACHE \
        --recolourings 2

Any number of processes may share the work, on GPUs where there are some (torchrun, srun, mpirun):

    torchrun --nproc_per_node 8 -m data_loaders.latents --base configs/5b.yaml ...

Every process takes shards of its own and writes each whole or not at all. To go on after an
interruption, with however many processes, run the same command again. Train with
`data.source=latents data.latents=CACHE`.
"""

import argparse
import hashlib
import json
import logging
import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from data_loaders.atomic_file import write_atomically
from data_loaders.batches import to_floats
from data_loaders.captions import name_task
from data_loaders.damage import DamageCount
from data_loaders.differences import difference
from data_loaders.examples import open_shards
from data_loaders.latent_cache import cache_settings
from data_loaders.latent_format import EMPTY, KIND, caption_member, named_tasks
from data_loaders.latent_views import ViewMaker, Views
from data_loaders.progress_bar import progress_bar
from data_loaders.reader_pool import LostReaderError, ReaderPool
from data_loaders.schema import DataError
from data_loaders.shard_files import files_at
from data_loaders.shard_format import MANIFEST, ShardInfo
from data_loaders.shard_writer import Entry, claim_folder, write_manifest, write_shard
from data_loaders.shards import ShardIndex, open_manifest
from sat_udpdiff.config import Config
from sat_udpdiff.config_io import parse_cli
from sat_udpdiff.distributed import Place, find_place
from sat_udpdiff.encoders.identity import require_encoders
from sat_udpdiff.encoders.latents import latent_size
from sat_udpdiff.encoders.source import DTYPES
from sat_udpdiff.encoders.text import TextEncoder
from sat_udpdiff.encoders.vae import VideoCodec

_GO_ON = "shards that are whole stay: to go on, run the same command again"
_SETTINGS, _DONE = "settings.json", ".done.json"


class Encoding:
    """The frozen encoders, for members of the cache.

    Args:
        config: Names the weights.
        device: Where they run.

    Raises:
        ValueError: Weights are missing; names the key and where they are to be had.
    """

    def __init__(self, config: Config, *, device: torch.device) -> None:
        self._config = config
        self._text = TextEncoder.load(
            config.text,
            text_length=config.model.text_length,
            text_dim=config.model.text_dim,
            device=device,
        )
        self._codec = VideoCodec.load(config.codec, device=device)

    def empty(self) -> dict[str, bytes]:
        """The file of no caption, where that is not zeros."""
        if self._config.text.unconditional == "zeros":
            return {}
        return {EMPTY: _to_bytes(text=self._text.encode([""])[0].cpu())}

    def members(self, views: Views) -> dict[str, bytes]:
        """The files of one sample."""
        record = views.record
        files = {"json": json.dumps(record, sort_keys=True).encode()}
        pixels = torch.from_numpy(np.stack(list(views.videos.values())))
        posterior = self._codec.encode_unscaled(to_floats(pixels.to(self._codec.device)))
        means, logvars = posterior.mean.cpu(), posterior.logvar.cpu()
        for member, mean, logvar in zip(views.videos, means, logvars, strict=True):
            files[member] = _to_bytes(mean=mean, logvar=logvar)
        captions = _captions(record, config=self._config)
        # One at a time: how many there are would otherwise show in the last bits.
        for member, caption in captions.items():
            files[member] = _to_bytes(text=self._text.encode([caption])[0].cpu())
        return files


def _captions(record: dict[str, Any], *, config: Config) -> dict[str, str]:
    """Member of the cache -> caption."""
    short, long = record["caption_short"], record["caption_long"]
    found = {}
    for task in named_tasks(config):
        for is_long, caption in ((False, short), (True, long)):
            if not is_long or long != short:
                text = caption if task is None else name_task(caption, task=task)
                found[caption_member(is_long=is_long, task=task)] = text
    return found


def _to_bytes(**tensors: Tensor) -> bytes:
    return save({name: tensor.contiguous() for name, tensor in tensors.items()})


@dataclass(kw_only=True)
class CacheWriter:
    """Writes this process's share of a cache.

    Args:
        config: `data.shards` names the clips.
        output: The cache.
        recolourings: Colourings of the ids; 0 without segmentation.
        place: Of this process.
    """

    config: Config
    output: Path
    recolourings: int
    place: Place

    def run(self, *, overwrite: bool) -> bool:
        """Encode what is not there yet; returns whether the whole cache is there now.

        Raises:
            DataError: The folder holds a cache of other settings; too many clips are damaged.
            ValueError: An encoder's weights are missing.
            OSError: The disk is full or not writable; shards that are written stay.
        """
        make = ViewMaker(self.config, recolourings=self.recolourings)
        shards = make.index.shards
        require_encoders(self.config)
        settings = cache_settings(self.config, recolourings=self.recolourings)
        # One digest of all: a cache of other clips is never taken for this one.
        sha256s = "".join(shard.sha256 for shard in shards).encode()
        settings["clips"] = hashlib.sha256(sha256s).hexdigest()
        progress = _Progress(self.output, settings=settings)
        progress.claim(is_main=self.place.is_main, overwrite=overwrite)
        ours = range(self.place.rank, len(shards), self.place.world_size)
        todo = [number for number in ours if progress.find(shards[number]) is None]
        if len(todo) < len(ours):
            _say(f"{len(ours) - len(todo)} of {len(ours)} shard(s) were there already")
        if todo:
            self._encode(todo, make=make, progress=progress)
        found = [progress.find(shard) for shard in shards]
        infos = [info for info in found if info is not None]
        if len(infos) < len(shards):
            return False
        self._check_damage(infos)
        progress.finish(infos, clips=shards)
        return True

    def _check_damage(self, infos: Sequence[ShardInfo]) -> None:
        """Of all processes together; each has looked after its own share only."""
        damaged = sum(info.num_damaged for info in infos)
        total, allowed = sum(info.num_samples for info in infos), self.config.data.max_bad_share
        if damaged > allowed * total:
            raise DataError(
                f"{self.output}: {damaged} of {total} clips are damaged ({damaged / total:.1%}; "
                f"data.max_bad_share allows {allowed:.1%}); the shards' index files say which"
            )

    def _encode(self, todo: list[int], *, make: ViewMaker, progress: "_Progress") -> None:
        data, index = self.config.data, make.index
        damage = DamageCount(
            source=str(index.folder), num_clips=len(index), allowed=data.max_bad_share
        )
        encoding = Encoding(self.config, device=self.place.device)
        total = sum(index.shards[number].num_samples for number in todo)
        bar = progress_bar(total=total, desc="encode", unit="clip", disable=not self.place.is_main)
        workers = max(1, data.num_workers)
        pool = ReaderPool(make, num_workers=workers, deadline_seconds=data.decode_seconds)

        def entries(clips: ShardInfo) -> Iterator[Entry]:
            # Once per shard: it is the same for all.
            empty = encoding.empty()
            for _ in range(clips.num_samples):
                bar.update()
                key = ahead.key()
                try:
                    members = encoding.members(next(ahead))
                except (DataError, LostReaderError) as error:
                    damage.note(key, str(error))
                    yield Entry(key=key, members={}, note=str(error))
                else:
                    yield Entry(key=key, members=members | empty)
                    empty = {}

        with closing(pool), bar:
            ahead = _Ahead(pool, shards=todo, index=index, ahead=workers * data.prefetch)
            for number in todo:
                clips = index.shards[number]
                info = write_shard(self.output / clips.name, entries(clips))
                progress.note(info, clips=clips)


class _Progress:
    """Which shards of a cache are whole, as files that no process shares with another.

    Args:
        folder: The cache.
        settings: Of `cache_settings`.
    """

    def __init__(self, folder: Path, *, settings: dict[str, Any]) -> None:
        self._folder, self._settings = folder, settings
        content = json.dumps(settings, sort_keys=True).encode()
        self._sha256 = hashlib.sha256(content).hexdigest()

    def claim(self, *, is_main: bool, overwrite: bool) -> None:
        """Check that the folder is free or a cache of these settings, and mark it.

        Raises:
            DataError: It holds a cache of other settings, or other files of ours.
        """
        path = self._folder / _SETTINGS
        if overwrite and is_main:
            self._check_is_cache()
            claim_folder(self._folder, overwrite=True)
            for old in (path, *self._folder.glob(f"*{_DONE}")):
                old.unlink(missing_ok=True)
        if path.is_file():
            try:
                stored = json.loads(path.read_text())
            except ValueError as error:
                raise DataError(f"{path}: expected JSON: {error}") from error
            reason = difference(stored, json.loads(json.dumps(self._settings)))
            if reason:
                raise DataError(
                    f"{self._folder} holds latents of other settings or clips: {reason}; give "
                    "another --output, or --overwrite"
                )
            return
        if not any(self._folder.glob(f"*{_DONE}")):
            claim_folder(self._folder, overwrite=False)
        self._folder.mkdir(parents=True, exist_ok=True)
        # Whichever process is first; all write the same, each under a name of its own.
        own = path.with_name(f"{path.name}.{os.getpid()}")
        write_atomically(own, json.dumps(self._settings, indent=1).encode())
        os.replace(own, path)

    def _check_is_cache(self) -> None:
        """Raise DataError where the folder holds shards of clips, which are not ours to replace."""
        if not (self._folder / MANIFEST).is_file():
            return
        kind = open_manifest(files_at(self._folder)).kind
        if kind != KIND:
            raise DataError(f"--overwrite: {self._folder} holds {kind}; give another --output")

    def find(self, clips: ShardInfo) -> ShardInfo | None:
        """The finished shard of some clips, if it is whole and made of these very clips."""
        try:
            done = json.loads(self._path(clips).read_text())
            is_ours = done["settings_sha256"] == self._sha256
            info = ShardInfo(**done["shard"])
            size = (self._folder / info.name).stat().st_size
        except (OSError, ValueError, KeyError, TypeError):
            return None
        is_whole = size == info.num_bytes and (self._folder / info.index_name).is_file()
        return info if is_ours and is_whole and done["clips_sha256"] == clips.sha256 else None

    def note(self, info: ShardInfo, *, clips: ShardInfo) -> None:
        """A shard is whole."""
        done = {
            "settings_sha256": self._sha256,
            "clips_sha256": clips.sha256,
            "shard": asdict(info),
        }
        write_atomically(self._path(clips), json.dumps(done).encode())

    def finish(self, infos: Sequence[ShardInfo], *, clips: Sequence[ShardInfo]) -> None:
        """All shards are whole: write the manifest, as every process that sees it may."""
        extra = {"settings": self._settings, "clips": [shard.sha256 for shard in clips]}
        write_manifest(self._folder, infos, kind=KIND, extra=json.loads(json.dumps(extra)))

    def _path(self, clips: ShardInfo) -> Path:
        return self._folder / (clips.name.removesuffix(".tar") + _DONE)


class _Ahead(Iterator[Views]):
    """The views of the clips of some shards in order, the next ones on their way.

    Args:
        pool: Makes them.
        shards: Numbers of the shards.
        index: Of the clips.
        ahead: Clips to ask for before they are needed.
    """

    def __init__(
        self, pool: ReaderPool, *, shards: Sequence[int], index: ShardIndex, ahead: int
    ) -> None:
        self._pool, self._index, self._ahead = pool, index, ahead
        self._clips = self._all_clips(shards)
        self._waiting: deque[tuple[int, Future[Views]]] = deque()

    def key(self) -> str:
        """Of the next clip."""
        self._ask()
        return self._index.sample(self._waiting[0][0]).key

    def __next__(self) -> Views:
        """The views of the next clip, tried again where a process was lost.

        Raises:
            DataError: The clip is damaged.
            LostReaderError: Two processes were lost on it.
        """
        self._ask()
        i, future = self._waiting.popleft()
        try:
            return future.result()
        except LostReaderError:
            # It may have been ended from outside, and what is written here stays.
            return self._pool.submit(i).result()

    def _all_clips(self, shards: Sequence[int]) -> Iterator[int]:
        for place, number in enumerate(shards):
            # A long way to go is no fault of a clip: it is gone before the clip is asked for.
            self._index.files.fetch([self._index.shards[number]])
            self._index.files.prefetch(self._index.shards[n] for n in shards[place + 1 : place + 2])
            end = self._index.ends[number]
            yield from range(end - self._index.shards[number].num_samples, end)

    def _ask(self) -> None:
        while len(self._waiting) <= self._ahead and (i := next(self._clips, None)) is not None:
            self._waiting.append((i, self._pool.submit(i)))
        if not self._waiting:
            raise StopIteration


def _add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--shards", required=True, metavar="DIR", help="the clips: a folder of shards, or a URL")
    add("--output", required=True, type=Path, metavar="CACHE", help="folder of the latents")
    add(
        "--recolourings",
        type=int,
        default=1,
        metavar="K",
        help="colourings of the entities of each clip, which epochs take in turn (default 1)",
    )
    add("--overwrite", action="store_true", help="replace what is in CACHE")


def _check(options: argparse.Namespace, *, config: Config, place: Place) -> None:
    if options.output.resolve() == Path(options.shards).resolve():
        raise DataError(
            f"--output: expected a folder of its own, got that of --shards: {options.output}"
        )
    if options.recolourings < 1:
        raise DataError(f"--recolourings: expected at least 1, got {options.recolourings}")
    if config.data.crop != "center" or config.data.buckets:
        raise DataError("latents have one size and one crop: set data.crop=center data.buckets=[]")
    if options.overwrite and place.world_size > 1:
        raise DataError("--overwrite: expected one process; remove CACHE, then start several")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    options, config = parse_cli(argv, description=__doc__ or "", extra=_add_options)
    config = replace(config, data=replace(config.data, shards=options.shards))
    try:
        place, _ = find_place()
        _check(options, config=config, place=place)
        has_ids = config.model.dense_groups and "segmentation" in config.data.tasks
        writer = CacheWriter(
            config=config,
            output=options.output,
            recolourings=options.recolourings if has_ids else 0,
            place=place,
        )
        if options.dry_run:
            print(_plan(config, recolourings=writer.recolourings))
            return 0
        is_whole = writer.run(overwrite=options.overwrite)
    except OSError as error:
        # A write that fails does not say where.
        where = "" if error.filename or not error.strerror else f"{options.output}: "
        _say(f"error: {where}{error}; {_GO_ON}")
        return 1
    except ValueError as error:
        _say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        _say(f"interrupted; {_GO_ON}")
        return 130
    print(_summary(options.output) if is_whole else "this share is done; others are not yet")
    return 0


def _say(message: str) -> None:
    sys.stderr.write(f"{message}\n")


def _plan(config: Config, *, recolourings: int) -> str:
    """What a cache would be, without making it."""
    index, data, model = open_shards(config), config.data, config.model
    size = latent_size(
        config.codec, num_frames=data.num_frames, height=data.height, width=data.width
    )
    numbers = 2 * size.frames * model.latent_channels * size.height * size.width
    posterior = numbers * DTYPES[config.codec.dtype].itemsize
    caption = model.text_length * model.text_dim * DTYPES[config.text.dtype].itemsize
    views = 1 + recolourings + (model.dense_groups > 0 and "depth" in data.tasks)
    captions = 2 * len(named_tasks(config))
    total = views * posterior + captions * caption
    return (
        f"{len(index)} clips in {len(index.shards)} shard(s) of {index.folder}\n"
        f"each: {views} posterior(s) of {posterior / 1e6:.3g} MB and {captions} caption(s) of "
        f"{caption / 1e6:.3g} MB, {total / 1e6:.3g} MB\n"
        f"in all: {len(index) * total / 1e9:.4g} GB"
    )


def _summary(output: Path) -> str:
    """What is in a cache, in one line, with the bytes of each part."""
    index = ShardIndex.open(output, kind=KIND)
    total = index.manifest.totals
    count = total.num_samples - total.num_damaged
    parts = ", ".join(
        f"{name.removesuffix('.safetensors')} {size / max(1, total.members[name]) / 1e6:.3g}"
        for name, size in total.member_bytes.items()
    )
    damaged = f", {total.num_damaged} damaged" if total.num_damaged else ""
    return (
        f"{count} clips{damaged} in {len(index.shards)} shard(s), {total.num_bytes / 1e6:.4g} MB: "
        f"{output} (MB each: {parts})"
    )


if __name__ == "__main__":
    sys.exit(main())
