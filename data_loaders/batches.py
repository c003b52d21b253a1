"""What training gets: batches of clips or of their latents, and how examples are joined to them.

Joining has two halves. `join` runs in the background and ends in host memory, pinned where there is
a GPU; `finish` only queues copies and arithmetic on the device, which the host does not wait for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from data_loaders.examples import Example, ExampleFacts
from sat_udpdiff.encoders.latents import LatentDistribution


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """One micro-batch of one rank."""

    task: Int64[Tensor, "b"]
    """Row of the task table: 0 = segmentation, 1 = depth. On the CPU, as all but the clips."""
    captions: list[str]
    drop_caption: Bool[Tensor, "b"]
    """True where the text is to be replaced by the unconditional one, at `caption_dropout`."""
    keys: list[str]
    numbers: Int64[Tensor, "b"]
    """Global sample numbers: key of all further randomness of a sample."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ClipBatch(Batch):
    """Clips as pixels, on the device of training."""

    rgb: Float[Tensor, "b t 3 h w"]
    """In [-1, 1]."""
    dense: Float[Tensor, "b t 3 h w"] | None
    """The dense map of each sample's task as colours in [-1, 1]."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LatentBatch(Batch):
    """Clips and captions as the frozen encoders left them, on the device of training."""

    video: LatentDistribution
    """In the network's scale."""
    dense: LatentDistribution | None
    text: Float[Tensor, "b n d"]
    """Embeddings of `captions`, in the text encoder's dtype."""


def batch_facts(facts: Sequence[ExampleFacts]) -> dict[str, Any]:
    """The fields of `Batch`."""
    return {
        "task": torch.tensor([each.task_id for each in facts], dtype=torch.int64),
        "captions": [each.caption for each in facts],
        "drop_caption": torch.tensor([each.drop_caption for each in facts]),
        "keys": [each.key for each in facts],
        "numbers": torch.tensor([each.number for each in facts], dtype=torch.int64),
    }


AnyBatch = ClipBatch | LatentBatch


@runtime_checkable
class Joiner(Protocol):
    """Joins the examples of a micro-batch, in the order given."""

    def join(self, examples: Sequence[Any]) -> object:
        """In the background."""
        ...

    def finish(self, joined: Any) -> AnyBatch:
        """On the training thread, without waiting for the device."""
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class _JoinedClips:
    facts: list[ExampleFacts]
    rgb: UInt8[Tensor, "b t h w 3"] | Float[Tensor, "b t 3 h w"]
    dense: UInt8[Tensor, "b t h w 3"] | Float[Tensor, "b t 3 h w"] | None


class ClipJoiner:
    """Joins examples of `ExampleMaker`.

    Args:
        device: Of training.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def join(self, examples: Sequence[Example]) -> _JoinedClips:
        """Stack the pixels; a quarter of the bytes of floats travel to a GPU."""
        dense = [example.dense for example in examples if example.dense is not None]
        return _JoinedClips(
            facts=[example.facts for example in examples],
            rgb=self._stack([example.rgb for example in examples]),
            dense=self._stack(dense) if dense else None,
        )

    def finish(self, joined: _JoinedClips) -> ClipBatch:
        """Pixels to [-1, 1] on the device."""
        return ClipBatch(
            **batch_facts(joined.facts),
            rgb=self._place(joined.rgb),
            dense=None if joined.dense is None else self._place(joined.dense),
        )

    def close(self) -> None:
        """Nothing to do."""

    def _stack(self, videos: Sequence[np.ndarray]) -> Tensor:
        stacked = torch.from_numpy(np.stack(videos) if len(videos) > 1 else videos[0][None])
        # On the CPU the floats are made here, in the background.
        return stacked.pin_memory() if self._device.type == "cuda" else to_floats(stacked)

    def _place(self, pixels: Tensor) -> Tensor:
        placed = pixels.to(self._device, non_blocking=True)
        return placed if placed.is_floating_point() else to_floats(placed)


def to_floats(pixels: UInt8[Tensor, "b t h w 3"]) -> Float[Tensor, "b t 3 h w"]:
    """0..255 -> float32 in [-1, 1], channels before rows."""
    floats = rearrange(pixels, "b t h w c -> b t c h w").to(torch.float32)
    return floats.div_(127.5).sub_(1.0)
