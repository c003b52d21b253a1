"""What data processes do where DALI does the rest: read, check, decode what DALI cannot.

Without torch and without DALI, which would take half a gigabyte in every process.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

from data_loaders.decode import decode_rgb
from data_loaders.examples import (
    LABEL_OF_TASK,
    ExampleFacts,
    ExampleMaker,
    ExampleTask,
    checked_rgb_file,
)
from data_loaders.geometry import crop_box
from data_loaders.order import ClipSize
from data_loaders.raw_clip import Device, RawClip, can_decode
from sat_udpdiff.config import Config


@dataclass(frozen=True, kw_only=True, slots=True)
class RawExample:
    """One sample of a batch, before DALI."""

    facts: ExampleFacts
    clip: RawClip
    size: ClipSize
    """Wanted."""
    coloring: int
    """Number of the colouring of the ids, of `colors_epoch`."""


class RawExampleMaker(ExampleMaker):
    """Makes examples for DALI.

    Args:
        config: Data and colormaps.
        device: Where DALI decodes.
        is_checked: The shards were checked by another process.
    """

    def __init__(self, config: Config, *, device: Device, is_checked: bool = False) -> None:
        super().__init__(config, is_checked=is_checked)
        self._device: Device = device

    def __reduce__(self) -> tuple[Any, ...]:
        """Each process opens the shards itself; this one has checked them."""
        return partial(type(self), device=self._device, is_checked=True), (self.config,)

    def __call__(self, task: ExampleTask) -> RawExample:  # type: ignore[override]
        """The example of a task; see `ExampleSource`."""
        found = self.look_up(task)
        stored, record, facts, indices = found.stored, found.record, found.facts, found.indices
        # One damaged clip ends a whole batch in DALI, so it is looked for before.
        name, content, header = checked_rgb_file(stored, record=record)
        is_dalis = can_decode(header, device=self._device)
        label = LABEL_OF_TASK[facts.task] if self.config.model.dense_groups else None
        clip = RawClip(
            key=facts.key,
            rgb=content if is_dalis else decode_rgb(content, name=name, indices=indices),
            indices=tuple(indices),
            labels=label and stored.labels(label, indices=indices, record=record),
            label_kind=label,
            box=crop_box(
                source=(record["height"], record["width"]),
                target=(task.size.height, task.size.width),
                anchor=found.crop_anchor,
            ),
        )
        return RawExample(facts=facts, clip=clip, size=task.size, coloring=found.coloring)
