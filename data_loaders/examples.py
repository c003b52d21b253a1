"""One sample number to one example: read, checked, decoded, cropped and painted.

What a data process does. It loads no torch: a process then starts in half a second and takes a
quarter of the memory.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from jaxtyping import UInt8, UInt16

from data_loaders.captions import name_task
from data_loaders.decode import decode_rgb
from data_loaders.geometry import fit_depth, fit_ids, fit_rgb
from data_loaders.order import (
    ClipSize,
    Place,
    SampleDraws,
    SampleOrder,
    color_generator,
    colors_epoch,
    draws,
    frame_indices,
)
from data_loaders.probe import StreamHeader, probe
from data_loaders.schema import DataError
from data_loaders.shards import ShardIndex, StoredSample
from sat_udpdiff.colormaps import depth as depth_colormap
from sat_udpdiff.colormaps import location_aware, pixelplanes
from sat_udpdiff.config import Config, Task

LabelKind = Literal["entity_ids", "depth"]
"""Field of `schema.Sample`."""
LABEL_OF_TASK: dict[Task, LabelKind] = {"segmentation": "entity_ids", "depth": "depth"}


@dataclass(frozen=True, kw_only=True, slots=True)
class ExampleTask:
    """What a data process is asked for."""

    number: int
    """Global sample number."""
    attempt: int
    """0, or the how manieth clip that stands in for a damaged one."""
    size: ClipSize


@dataclass(frozen=True, kw_only=True, slots=True)
class ExampleFacts:
    """What all forms of an example have in common."""

    number: int
    key: str
    epoch: int
    task: Task
    task_id: int
    caption: str
    drop_caption: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One sample of a batch, before it becomes a tensor."""

    facts: ExampleFacts
    rgb: UInt8[np.ndarray, "t h w 3"]
    dense: UInt8[np.ndarray, "t h w 3"] | None


def place_of(task: ExampleTask, *, order: SampleOrder) -> Place:
    """Clip of a task; the one after a damaged one in the data set stands in for it.

    That depends on the data alone, and so is the same in every run.
    """
    place = order.at(task.number)
    return Place(epoch=place.epoch, index=(place.index + task.attempt) % len(order))


def make_order(shard_sizes: Sequence[int], *, config: Config) -> SampleOrder:
    """The order in which a configuration reads shards of these sizes."""
    return SampleOrder(
        shard_sizes,
        seed=config.seed,
        shuffle_shards=config.data.shuffle_shards,
        shuffle_run=config.data.shuffle_run,
    )


def make_facts(
    number: int, *, epoch: int, record: dict[str, Any], drawn: SampleDraws, config: Config
) -> ExampleFacts:
    """Task and caption of a sample number, given the record of its clip.

    Raises:
        DataError: The caption is empty.
    """
    caption = record["caption_long" if drawn.use_long_caption else "caption_short"]
    if not caption.strip():
        raise DataError(f"sample {record['key']!r}: expected a caption, got an empty one")
    if config.model.task_signal == "prompt":
        caption = name_task(caption, task=drawn.task)
    return ExampleFacts(
        number=number,
        key=record["key"],
        epoch=epoch,
        task=drawn.task,
        task_id=drawn.task_id,
        caption=caption,
        drop_caption=drawn.drop_uniform < config.train.caption_dropout,
    )


def paint_ids(
    ids: UInt16[np.ndarray, "t h w"], *, key: str, epoch: int, config: Config
) -> UInt8[np.ndarray, "t h w 3"]:
    """Entity ids of a clip as colours.

    Args:
        ids: As they are to be seen; ids without a pixel draw no colour.
        key: Of the clip.
        epoch: Seeds the colours with `config.seed` and the key; or the number of a recolouring.
        config: The colormap.
    """
    ids = consecutive(ids)
    if config.colormap.segmentation == "location_aware":
        return location_aware.encode(ids, grid=config.colormap.location_grid)
    colors = draw_entity_colors(int(ids.max()), key=key, epoch=epoch, config=config)
    return pixelplanes.encode(ids, colors=colors)


def draw_entity_colors(
    count: int, *, key: str, epoch: int, config: Config
) -> UInt8[np.ndarray, "n 3"]:
    """The Pixelplanes colours of a clip in an epoch; see `paint_ids`.

    At least `colormap.min_distance` apart, or half of it and so on where there are too many.
    """
    distance = config.colormap.min_distance
    while True:
        # From the start, so that the colours do not depend on how many distances were tried.
        generator = color_generator(seed=config.seed, epoch=epoch, key=key)
        try:
            return pixelplanes.draw_colors(count, generator=generator, min_distance=distance)
        except ValueError:
            # A clip of so many entities is no damage, and no reason to end a run.
            distance = distance / 2 if distance > 1 else 0.0


def consecutive(ids: UInt16[np.ndarray, "t h w"]) -> UInt16[np.ndarray, "t h w"]:
    """Ids as 1, 2, ... without gaps (0 stays 0): colours are drawn for what is to be seen only."""
    is_present = np.zeros(int(ids.max()) + 1, bool)
    # Frame by frame: counting makes 64-bit integers of what it is given.
    for frame in ids:
        is_present |= np.bincount(frame.ravel(), minlength=len(is_present)) > 0
    present = np.flatnonzero(is_present)
    present = present[present > 0]
    table = np.zeros(len(is_present), np.uint16)
    table[present] = np.arange(1, len(present) + 1)
    return table[ids]


def paint_depth(disparity: UInt16[np.ndarray, "t h w"]) -> UInt8[np.ndarray, "t h w 3"]:
    """Disparity, 0..65535, as colours: `colormaps.depth.encode` of disparity / 65535."""
    bins, colors = _depth_bins(), depth_colormap.COLORS[:, None]
    rgb = np.empty((*disparity.shape, 3), np.uint8)
    for frame, into in zip(disparity, rgb, strict=True):
        # A third of the time of floats per pixel, and of their memory. Its types know Mat alone.
        cv2.applyColorMap(bins.take(frame), colors, dst=into)  # pyright: ignore
    return rgb


@lru_cache(maxsize=1)
def _depth_bins() -> UInt8[np.ndarray, "65536"]:
    """Row of the map's colours for each disparity."""
    every = np.arange(65536, dtype=np.float32) / np.float32(65535)
    rows = every * np.float32(depth_colormap.NUM_COLORS)
    return np.clip(rows, 0, depth_colormap.NUM_COLORS - 1).astype(np.uint8)


class ExampleSource(ABC):
    """Makes examples of the samples of a folder of shards."""

    @property
    @abstractmethod
    def index(self) -> ShardIndex:
        """The opened shards."""

    @property
    @abstractmethod
    def order(self) -> SampleOrder:
        """The order of the clips."""

    def name(self) -> str:
        """The data set, for messages."""
        return str(self.index.folder)

    def key(self, index: int) -> str:
        """Key of clip `index`."""
        return self.index.sample(index).key

    def fetch(self, index: int) -> None:
        """Copy the shard of clip `index` to this machine, if it is far away.

        Raises:
            TransportError: It cannot be reached, or there is no room for it.
        """
        self.index.files.fetch([self.index.shards[self.index.shard_of(index)]])

    def fetch_ahead(self, n: int) -> None:
        """Begin to copy the shards that sample number n is read from, if they are far away."""
        shards = (self.index.shards[number] for number in self.order.shards_at(n))
        self.index.files.prefetch(shards)

    @abstractmethod
    def __call__(self, task: ExampleTask) -> Any:
        """The example of a task.

        Raises:
            DataError: Its clip cannot be used; names the shard, the key and the member.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredExample:
    """What a task stands for, before its clip is decoded."""

    facts: ExampleFacts
    stored: StoredSample
    record: dict[str, Any]
    indices: list[int]
    """Frames to take."""
    crop_anchor: tuple[float, float]
    coloring: int
    """Number of the colouring of the ids, of `order.colors_epoch`."""


class ExampleMaker(ExampleSource):
    """Makes examples with PyAV.

    Args:
        config: Data and colormaps; all that travels to the data processes.
        is_checked: The shards were checked by another process.
    """

    def __init__(self, config: Config, *, is_checked: bool = False) -> None:
        self.config, self._is_checked = config, is_checked

    def __reduce__(self) -> tuple[Any, ...]:
        """Each process opens the shards itself; this one has checked them."""
        return partial(type(self), is_checked=True), (self.config,)

    @cached_property
    def index(self) -> ShardIndex:
        """The opened shards."""
        return open_shards(self.config, is_checked=self._is_checked)

    @cached_property
    def order(self) -> SampleOrder:
        """The order of the clips."""
        sizes = [shard.num_samples for shard in self.index.shards]
        return make_order(sizes, config=self.config)

    def __call__(self, task: ExampleTask) -> Example:
        """The example of a task; see `ExampleSource`."""
        found = self.look_up(task)
        stored, facts, indices = found.stored, found.facts, found.indices
        size = {"height": task.size.height, "width": task.size.width}
        fit: dict[str, Any] = {**size, "anchor": found.crop_anchor}
        rgb = fit_rgb(read_rgb(stored, record=found.record, indices=indices), **fit)
        if not self.config.model.dense_groups:
            return Example(facts=facts, rgb=rgb, dense=None)
        label = LABEL_OF_TASK[facts.task]
        labels = stored.labels(label, indices=indices, record=found.record)
        if facts.task == "depth":
            dense = paint_depth(fit_depth(labels, **fit))
        else:
            ids = fit_ids(labels, **fit)
            dense = paint_ids(ids, key=facts.key, epoch=found.coloring, config=self.config)
        return Example(facts=facts, rgb=rgb, dense=dense)

    def look_up(self, task: ExampleTask) -> StoredExample:
        """The clip of a task and what is drawn for it; nothing but its record is read."""
        place = place_of(task, order=self.order)
        stored = self.index.sample(place.index)
        record, data = stored.record(), self.config.data
        drawn = draws(task.number, seed=self.config.seed, data=data)
        facts = make_facts(
            task.number, epoch=place.epoch, record=record, drawn=drawn, config=self.config
        )
        return StoredExample(
            facts=facts,
            stored=stored,
            record=record,
            indices=clip_indices(record, size=task.size, fps=data.fps),
            crop_anchor=drawn.crop_anchor,
            coloring=colors_epoch(place.epoch, recolourings=data.recolourings),
        )


def checked_rgb_file(
    stored: StoredSample, *, record: dict[str, Any]
) -> tuple[str, bytes, StreamHeader]:
    """Name, content and header of a clip's video, checked against its record without decoding.

    Raises:
        DataError: It is damaged, or says something else than the record.
    """
    name, content = stored.rgb_file()
    header = probe(
        content,
        name=name,
        record_frames=record["frames"],
        record_fps=record["fps"],
        height=record["height"],
        width=record["width"],
    )
    return name, content, header


def read_rgb(
    stored: StoredSample, *, record: dict[str, Any], indices: Sequence[int]
) -> UInt8[np.ndarray, "t h w 3"]:
    """Frames of a clip, 0..255; see `checked_rgb_file`."""
    name, content, _ = checked_rgb_file(stored, record=record)
    return decode_rgb(content, name=name, indices=indices)


def clip_indices(record: dict[str, Any], *, size: ClipSize, fps: float) -> list[int]:
    """Frames of a stored clip that an example of this size takes."""
    return frame_indices(
        num_frames=size.num_frames,
        fps=fps,
        source_frames=record["frames"],
        source_fps=record["fps"],
    )


def open_shards(config: Config, *, is_checked: bool = False) -> ShardIndex:
    """Open the shards and check that they hold what the configured tasks need.

    Args:
        config: `data.shards`, where copies of remote ones are kept, and the tasks.
        is_checked: Another process has made the checks.

    Raises:
        DataError: The folder is not whole, or lacks a task's labels.
    """
    data = config.data
    index = ShardIndex.open(
        data.shards,
        cache_dir=Path(data.cache_dir).expanduser() if data.cache_dir else None,
        max_cache_bytes=int(data.cache_gb * 1e9) or None,
        is_checked=is_checked,
    )
    if config.model.dense_groups and not is_checked:
        for task in data.tasks:
            index.require_labels(LABEL_OF_TASK[task], reason=f"data.tasks: {task}")
    return index
