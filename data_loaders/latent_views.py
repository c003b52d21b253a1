"""What is encoded of a clip for a cache of latents: the part of the data processes, no torch."""

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from jaxtyping import UInt8

from data_loaders.examples import clip_indices, open_shards, paint_depth, paint_ids, read_rgb
from data_loaders.geometry import fit_depth, fit_ids, fit_rgb
from data_loaders.latent_format import DEPTH, VIDEO, colored_member
from data_loaders.order import size_at
from data_loaders.schema import DataError
from data_loaders.shards import ShardIndex
from sat_udpdiff.config import Config


@dataclass(frozen=True, kw_only=True, slots=True)
class Views:
    """What is encoded of one clip."""

    record: dict[str, Any]
    """Of the clip."""
    videos: dict[str, UInt8[np.ndarray, "t h w 3"]]
    """Member of the cache -> pixels."""


class ViewMaker:
    """Decodes, crops and paints a clip: the part that data processes do.

    Args:
        config: Data and colormaps; all that travels to the processes.
        recolourings: Colourings of the ids; 0 without segmentation.
        is_checked: The shards were checked by another process.
    """

    def __init__(self, config: Config, *, recolourings: int, is_checked: bool = False) -> None:
        self.config, self.recolourings = config, recolourings
        self._is_checked = is_checked

    @cached_property
    def index(self) -> ShardIndex:
        """The opened shards."""
        return open_shards(self.config, is_checked=self._is_checked)

    def __reduce__(self) -> tuple[Any, ...]:
        """Each process opens the shards itself; this one has checked them."""
        return partial(type(self), recolourings=self.recolourings, is_checked=True), (self.config,)

    def __call__(self, i: int) -> Views:
        """The views of clip i; DataError where it cannot be used."""
        stored, data = self.index.sample(i), self.config.data
        record = stored.record()
        for name in ("caption_short", "caption_long"):
            if not record[name].strip():
                raise DataError(f"sample {stored.key!r}: {name}: expected a caption, got none")
        indices = clip_indices(record, size=size_at(0, seed=0, data=data), fps=data.fps)
        fit: dict[str, Any] = {"height": data.height, "width": data.width}
        videos = {VIDEO: fit_rgb(read_rgb(stored, record=record, indices=indices), **fit)}
        tasks = data.tasks if self.config.model.dense_groups else ()
        if "depth" in tasks:
            videos[DEPTH] = paint_depth(
                fit_depth(stored.labels("depth", indices=indices, record=record), **fit)
            )
        if self.recolourings:
            ids = fit_ids(stored.labels("entity_ids", indices=indices, record=record), **fit)
            for number in range(self.recolourings):
                painted = paint_ids(ids, key=stored.key, epoch=number, config=self.config)
                videos[colored_member(number)] = painted
        return Views(record=record, videos=videos)
