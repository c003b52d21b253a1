"""Batches from shards, in an order that depends on (seed, sample number) alone.

The state of the data is one integer: how many samples the whole job has consumed. Rank r takes
slots r * b .. r * b + b - 1 of every world_size * b consecutive numbers, so 2 ranks of 1 see what
1 rank of 2 sees, and `start` costs the same for any value.

Workers are threads: PyAV, OpenCV and numpy release the interpreter lock while they work.
"""

import logging
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from threading import Lock
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from data_loaders.captions import name_task
from data_loaders.geometry import fit_depth, fit_ids, fit_rgb
from data_loaders.order import color_generator, draws, frame_indices, sample_at
from data_loaders.schema import DataError
from data_loaders.shards import ShardIndex, StoredSample
from sat_udpdiff.colormaps import depth as depth_colormap
from sat_udpdiff.colormaps import location_aware, pixelplanes
from sat_udpdiff.config import Config, Task

_log = logging.getLogger(__name__)

_LABEL_OF_TASK: dict[Task, str] = {"segmentation": "entity_ids", "depth": "depth"}
_MOST_REPLACEMENTS = 16
"""Clips tried in place of a damaged one before the run stops."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One micro-batch of one rank."""

    rgb: Float[Tensor, "b t 3 h w"]
    """In [-1, 1]."""
    dense: Float[Tensor, "b t 3 h w"] | None
    """The dense map of each sample's task as colours in [-1, 1]; None for `dense_groups: 0`."""
    task: Int64[Tensor, "b"]
    """Row of the task table: 0 = segmentation, 1 = depth."""
    captions: list[str]
    drop_caption: Bool[Tensor, "b"]
    """True where the text is to be replaced by the unconditional one, at `caption_dropout`."""
    keys: list[str]
    numbers: Int64[Tensor, "b"]
    """Global sample numbers: key of all further randomness of a sample."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One sample of a batch, before it becomes a tensor."""

    number: int
    key: str
    task_id: int
    caption: str
    drop_caption: bool
    rgb: UInt8[np.ndarray, "t h w 3"]
    dense: UInt8[np.ndarray, "t h w 3"] | None


def color_dense(
    stored: StoredSample, *, task: Task, indices: list[int], epoch: int, config: Config
) -> UInt8[np.ndarray, "t h w 3"]:
    """The dense map of a clip as colours, at the configured size.

    Args:
        stored: Clip.
        task: Which map.
        indices: Frames.
        epoch: Seeds the colours with `config.seed` and the clip's key.
        config: Size and colormaps.
    """
    size: dict[str, Any] = {"height": config.data.height, "width": config.data.width}
    labels = stored.labels(_LABEL_OF_TASK[task], indices=indices)
    if task == "depth":
        disparity = fit_depth(labels, **size).astype(np.float32) / np.float32(65535)
        return depth_colormap.encode(disparity)
    ids = _consecutive(fit_ids(labels, **size))
    if config.colormap.segmentation == "location_aware":
        return location_aware.encode(ids, grid=config.colormap.location_grid)
    generator = color_generator(seed=config.seed, epoch=epoch, key=stored.key)
    count, distance = int(ids.max()), config.colormap.min_distance
    try:
        colors = pixelplanes.draw_colors(count, generator=generator, min_distance=distance)
    except ValueError:
        raise DataError(
            f"sample {stored.key!r}: its {count} entities have no colours so far apart as "
            f"colormap.min_distance={distance:g}; lower it"
        ) from None
    return pixelplanes.encode(ids, colors=colors)


def _consecutive(ids: np.ndarray) -> np.ndarray:
    """Ids as 1, 2, ... without gaps (0 stays 0): colours are drawn for what is to be seen only."""
    present = np.flatnonzero(np.bincount(ids.ravel(), minlength=1))
    present = present[present > 0]
    table = np.zeros(int(ids.max()) + 1, np.uint16)
    table[present] = np.arange(1, len(present) + 1)
    return table[ids]


@dataclass(kw_only=True)
class ExampleReader:
    """Makes the example of a sample number; safe to call from several threads."""

    config: Config
    index: ShardIndex
    damaged: dict[str, str] = field(default_factory=dict)
    """Clips that could not be used so far: key -> why."""
    _lock: Lock = field(default_factory=Lock, repr=False)

    @classmethod
    def open(cls, config: Config) -> "ExampleReader":
        """Open the shards and check that they hold what the configured tasks need.

        Raises:
            DataError: The folder is not whole, or lacks a task's labels.
        """
        index = ShardIndex.open(config.data.shards)
        if config.model.dense_groups > 1:
            raise DataError(
                "model.dense_groups: the data give one dense map per sample: expected 0 or 1, "
                f"got {config.model.dense_groups}"
            )
        if config.model.dense_groups:
            for task in config.data.tasks:
                index.require_labels(_LABEL_OF_TASK[task], reason=f"data.tasks: {task}")
        return cls(config=config, index=index)

    def example(self, n: int) -> Example:
        """The example of global sample number n.

        A damaged clip is replaced by the one after it in the data set, which depends on the data
        only and so is the same on every run.

        Raises:
            DataError: More than `data.max_bad_share` of the data set's clips are damaged.
        """
        place = sample_at(n, seed=self.config.seed, num_samples=len(self.index))
        for attempt in range(_MOST_REPLACEMENTS):
            i = (place.index + attempt) % len(self.index)
            try:
                return self._make(n, index=i, epoch=place.epoch)
            except DataError as error:
                self._note(self.index.sample(i).key, str(error))
        raise DataError(
            f"{self.index.folder}: {_MOST_REPLACEMENTS} clips in a row are damaged: "
            f"{self._report()}"
        )

    def _make(self, n: int, *, index: int, epoch: int) -> Example:
        config, data = self.config, self.config.data
        stored = self.index.sample(index)
        record = stored.record()
        drawn = draws(n, seed=config.seed, data=data)
        caption = record["caption_long" if drawn.use_long_caption else "caption_short"]
        if not caption.strip():
            raise DataError(f"sample {stored.key!r}: expected a caption, got an empty one")
        if config.model.task_signal == "prompt":
            caption = name_task(caption, task=drawn.task)
        indices = frame_indices(
            num_frames=data.num_frames,
            fps=data.fps,
            source_frames=record["frames"],
            source_fps=record["fps"],
        )
        rgb = fit_rgb(stored.rgb(indices=indices), height=data.height, width=data.width)
        dense = None
        if config.model.dense_groups:
            dense = color_dense(
                stored, task=drawn.task, indices=indices, epoch=epoch, config=config
            )
        return Example(
            number=n,
            key=stored.key,
            task_id=drawn.task_id,
            caption=caption,
            drop_caption=drawn.drop_uniform < config.train.caption_dropout,
            rgb=rgb,
            dense=dense,
        )

    def _note(self, key: str, reason: str) -> None:
        with self._lock:
            if key not in self.damaged:
                _log.warning("skipped damaged clip %s: %s", key, reason)
            self.damaged[key] = reason
            share = len(self.damaged) / len(self.index)
            allowed = self.config.data.max_bad_share
            if share > allowed:
                raise DataError(
                    f"{self.index.folder}: {len(self.damaged)} of {len(self.index)} clips are "
                    f"damaged ({share:.1%}; data.max_bad_share allows {allowed:.1%}): "
                    f"{self._report()}"
                )

    def _report(self, most: int = 10) -> str:
        lines = [f"{key}: {reason}" for key, reason in list(self.damaged.items())[:most]]
        left = len(self.damaged) - len(lines)
        return "; ".join(lines) + (f"; and {left} more" if left > 0 else "")


def _to_tensor(videos: list[np.ndarray]) -> Tensor:
    """uint8 (t, h, w, 3) each -> float32 (b, t, 3, h, w) in [-1, 1]."""
    stacked = torch.from_numpy(np.stack(videos))
    return rearrange(stacked, "b t h w c -> b t c h w").to(torch.float32).div_(127.5).sub_(1.0)


def collate(examples: list[Example]) -> Batch:
    """Join examples to a batch, in the order given."""
    dense = [example.dense for example in examples if example.dense is not None]
    return Batch(
        rgb=_to_tensor([example.rgb for example in examples]),
        dense=_to_tensor(dense) if dense else None,
        task=torch.tensor([example.task_id for example in examples], dtype=torch.int64),
        captions=[example.caption for example in examples],
        drop_caption=torch.tensor([example.drop_caption for example in examples]),
        keys=[example.key for example in examples],
        numbers=torch.tensor([example.number for example in examples], dtype=torch.int64),
    )


def batch_numbers(
    micro_step: int, *, start: int, micro_batch_size: int, place_rank: int, world_size: int
) -> range:
    """Sample numbers of one rank's micro-batch, counted from `start`.

    With m = step * accumulation_steps + micro-step: start + (m * world_size + rank) * b + slot.
    """
    first = start + (micro_step * world_size + place_rank) * micro_batch_size
    return range(first, first + micro_batch_size)


def batches(
    config: Config, *, place_rank: int = 0, world_size: int = 1, start: int = 0
) -> Iterator[Batch]:
    """Endless micro-batches of one rank; `accumulation_steps` of them make an optimizer step.

    The shards are opened and checked at the call, before the first batch is asked for.

    Args:
        config: Data, task shares, batch size, seed.
        place_rank: Data-parallel rank.
        world_size: Data-parallel ranks.
        start: Samples that the whole job has consumed.

    Raises:
        DataError: The shards are not whole or lack what the tasks need; later, too many damaged.
    """
    if not 0 <= place_rank < world_size or start < 0:
        raise ValueError(
            "expected 0 <= place_rank < world_size and start >= 0, got "
            f"{place_rank}, {world_size} and {start}"
        )
    reader = ExampleReader.open(config)
    micro_steps = (
        batch_numbers(
            m,
            start=start,
            micro_batch_size=config.train.micro_batch_size,
            place_rank=place_rank,
            world_size=world_size,
        )
        for m in count()
    )
    if config.data.num_workers == 0:
        return (collate([reader.example(n) for n in numbers]) for numbers in micro_steps)
    return _threaded(reader, micro_steps)


def _threaded(reader: ExampleReader, micro_steps: Iterator[range]) -> Iterator[Batch]:
    data = reader.config.data
    # At least one batch ahead, else nothing would happen while the consumer computes.
    ahead = max(1, data.num_workers * data.prefetch)
    pool = ThreadPoolExecutor(data.num_workers, thread_name_prefix="data")
    waiting: deque[list[Future[Any]]] = deque()
    try:
        for numbers in micro_steps:
            waiting.append([pool.submit(reader.example, n) for n in numbers])
            if len(waiting) > ahead:
                yield collate([future.result() for future in waiting.popleft()])
    finally:
        # What is being decoded is finished (a fraction of a second), the rest is dropped.
        pool.shutdown(wait=True, cancel_futures=True)
