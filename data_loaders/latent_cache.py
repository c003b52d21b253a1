"""Reading a cache of latents: its settings against those of a run, examples, batches.

Format: `latent_format.py`.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from data_loaders.batches import LatentBatch, batch_facts
from data_loaders.differences import difference
from data_loaders.examples import (
    ExampleFacts,
    ExampleSource,
    ExampleTask,
    make_facts,
    make_order,
    place_of,
)
from data_loaders.latent_format import (
    DEPTH,
    EMPTY,
    FORMAT,
    KIND,
    VIDEO,
    caption_member,
    colored_member,
    named_tasks,
)
from data_loaders.order import SampleOrder, draws
from data_loaders.schema import DataError
from data_loaders.shards import ShardIndex, StoredSample
from sat_udpdiff.config import TASKS, Config, Task
from sat_udpdiff.encoders.identity import codec_identity, text_identity
from sat_udpdiff.encoders.latents import LatentDistribution

_log = logging.getLogger(__name__)


def cache_settings(config: Config, *, recolourings: int) -> dict[str, Any]:
    """All that decides what a cache holds, but the clips: dotted name -> JSON value.

    Args:
        config: Of the run.
        recolourings: Colourings per clip; 0 without segmentation.

    """
    data, colormap = config.data, config.colormap
    dense = {"tasks": list(_dense_tasks(config)), "recolourings": recolourings, "seed": config.seed}
    codec = codec_identity(config.codec)
    text = text_identity(config.text, text_length=config.model.text_length)
    return {
        "format": FORMAT,
        **{f"data.{key}": getattr(data, key) for key in ("num_frames", "height", "width", "fps")},
        **dense,
        "colormap.segmentation": colormap.segmentation,
        "colormap.min_distance": colormap.min_distance,
        "colormap.location_grid": colormap.location_grid,
        "captions": [str(task) for task in named_tasks(config)],
        **{f"codec.{key}": value for key, value in codec.items()},
        **{f"text.{key}": value for key, value in text.items()},
    }


def _dense_tasks(config: Config) -> tuple[Task, ...]:
    """Tasks whose maps are needed, in the order of the task table."""
    return tuple(t for t in TASKS if t in config.data.tasks) if config.model.dense_groups else ()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LatentExample:
    """One sample, as the encoders left it."""

    facts: ExampleFacts
    video: LatentDistribution
    dense: LatentDistribution | None
    text: Float[Tensor, "n d"]
    """Of the unconditional branch where the caption is dropped."""


class LatentSource(ExampleSource):
    """Reads examples from a cache.

    Args:
        config: Of the run; `data.latents` names the cache.

    Raises:
        DataError: The cache is not whole, or was made with other settings.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self._index = open_cache(config)
        stored = self._index.manifest.extra.get("settings")
        if not isinstance(stored, dict):
            raise DataError(f"data.latents: {config.data.latents} does not say how it was made")
        self._recolourings = _check_settings(stored, config=config)
        self._order = make_order([s.num_samples for s in self._index.shards], config=config)
        self._empty = _find_empty(self._index) if config.text.unconditional == "empty" else None

    @property
    def index(self) -> ShardIndex:
        """The opened cache."""
        return self._index

    @property
    def order(self) -> SampleOrder:
        """The order of the clips, that of the clips' own shards."""
        return self._order

    def __call__(self, task: ExampleTask) -> LatentExample:
        """The example of a task; see `ExampleSource`."""
        place = place_of(task, order=self.order)
        stored = self.index.sample(place.index)
        if not stored.members:
            raise DataError(stored.note)
        drawn = draws(task.number, seed=self.config.seed, data=self.config.data)
        facts = make_facts(
            task.number,
            epoch=place.epoch,
            record=stored.record(),
            drawn=drawn,
            config=self.config,
        )
        return LatentExample(
            facts=facts,
            video=_posterior(stored, VIDEO),
            dense=self._dense(stored, facts),
            text=self._text(stored, facts, is_long=drawn.use_long_caption),
        )

    def _dense(self, stored: StoredSample, facts: ExampleFacts) -> LatentDistribution | None:
        if not self.config.model.dense_groups:
            return None
        if facts.task == "depth":
            return _posterior(stored, DEPTH)
        return _posterior(stored, colored_member(facts.epoch % self._recolourings))

    def _text(self, stored: StoredSample, facts: ExampleFacts, *, is_long: bool) -> Tensor:
        task = facts.task if self.config.model.task_signal == "prompt" else None
        member = caption_member(is_long=is_long, task=task)
        if member not in stored.members:
            member = caption_member(is_long=False, task=task)
        if not facts.drop_caption:
            return _tensors(stored, member)["text"]
        if self._empty is not None:
            return self._empty
        return torch.zeros_like(_tensors(stored, member)["text"])


def open_cache(config: Config) -> ShardIndex:
    """Open the cache of a run; a folder or, as for clips, an address.

    Raises:
        DataError: It is not whole, or no cache.
    """
    data = config.data
    return ShardIndex.open(
        data.latents,
        kind=KIND,
        cache_dir=Path(data.cache_dir).expanduser() if data.cache_dir else None,
        max_cache_bytes=int(data.cache_gb * 1e9) or None,
    )


def _find_empty(index: ShardIndex) -> Tensor:
    """Embedding of no caption; the first whole sample of each shard has it."""
    for i in range(len(index)):
        stored = index.sample(i)
        if EMPTY in stored.members:
            return _tensors(stored, EMPTY)["text"]
    raise DataError(f"{index.folder}: expected a member {EMPTY!r}, found none")


def _check_settings(stored: dict[str, Any], *, config: Config) -> int:
    """Compare a cache's settings with those of the run; returns the colourings to use."""
    wanted = cache_settings(config, recolourings=stored["recolourings"])
    # Another seed has other colours, which are as random; tasks that are not used do no harm.
    del wanted["seed"]
    missing = set(wanted.pop("tasks")) - set(stored["tasks"])
    if missing:
        raise DataError(f"data.latents: {config.data.latents} holds no maps of {missing.pop()}")
    # Encoders that are not on this machine cannot be compared; nothing is encoded here then.
    for key in ("codec.files", "text.files"):
        if not wanted[key]:
            del wanted[key]
            _log.warning("%s is not here, so that of data.latents is taken on trust", key)
    reason = difference({key: stored.get(key) for key in wanted}, wanted)
    if reason:
        raise DataError(
            f"data.latents: {config.data.latents} was made with other settings: {reason}; make "
            "another one with python -m data_loaders.latents"
        )
    wish, there = config.data.recolourings, stored["recolourings"]
    if wish > there:
        raise DataError(
            f"data.recolourings: expected at most {there}, which is what {config.data.latents} "
            f"holds, got {wish}"
        )
    return wish or there


def _tensors(stored: StoredSample, member: str) -> dict[str, Tensor]:
    content = stored.read_bytes(member)
    try:
        return load(content)
    except SafetensorError as error:
        raise DataError(f"sample {stored.key!r}, {member}: expected tensors: {error}") from error


def _posterior(stored: StoredSample, member: str) -> LatentDistribution:
    tensors = _tensors(stored, member)
    return LatentDistribution(mean=tensors["mean"][None], logvar=tensors["logvar"][None])


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _JoinedLatents:
    facts: list[ExampleFacts]
    video: LatentDistribution
    dense: LatentDistribution | None
    text: Tensor


class LatentJoiner:
    """Joins examples of `LatentSource`.

    Args:
        device: Of training.
        scale_factor: Of the latents: `codec.scale_factor`.
    """

    def __init__(self, device: torch.device, *, scale_factor: float) -> None:
        self._device, self._scale = device, scale_factor

    def join(self, examples: Sequence[LatentExample]) -> _JoinedLatents:
        """Stack, in the dtypes of the cache."""
        dense = [example.dense for example in examples if example.dense is not None]
        return _JoinedLatents(
            facts=[example.facts for example in examples],
            video=self._stack([example.video for example in examples]),
            dense=self._stack(dense) if dense else None,
            text=self._pin(torch.stack([example.text for example in examples])),
        )

    def finish(self, joined: _JoinedLatents) -> LatentBatch:
        """Latents to float32 in the network's scale, on the device."""
        return LatentBatch(
            **batch_facts(joined.facts),
            video=self._place(joined.video),
            dense=None if joined.dense is None else self._place(joined.dense),
            text=joined.text.to(self._device, non_blocking=True),
        )

    def close(self) -> None:
        """Nothing to do."""

    def _stack(self, parts: Sequence[LatentDistribution]) -> LatentDistribution:
        return LatentDistribution(
            mean=self._pin(torch.cat([part.mean for part in parts])),
            logvar=self._pin(torch.cat([part.logvar for part in parts])),
        )

    def _pin(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory() if self._device.type == "cuda" else tensor

    def _place(self, joined: LatentDistribution) -> LatentDistribution:
        return LatentDistribution(
            mean=joined.mean.to(self._device, non_blocking=True),
            logvar=joined.logvar.to(self._device, non_blocking=True),
        ).scaled(self._scale)
