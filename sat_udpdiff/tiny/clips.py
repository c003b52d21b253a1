"""Views of the synthetic world that the tiny networks are trained on."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from data_loaders.schema import Sample
from data_loaders.synthetic import make_clip
from data_loaders.synthetic_scene import WorldConfig
from sat_udpdiff.colormaps import depth, pixelplanes

View = Literal["rgb", "segmentation", "depth"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TinyWorld:
    """Size and seed of the clips that the shipped weights were made from."""

    frames: int = 9
    height: int = 32
    width: int = 48
    seed: int = 0

    def clip(self, index: int, *, world: Literal["simple", "full"] = "simple") -> Sample:
        """Clip number `index`; those from `synthetic.HELD_OUT_START` on are never trained on."""
        entities = 3 if world == "simple" else 12
        config = WorldConfig(
            frames=self.frames,
            height=self.height,
            width=self.width,
            max_entities=entities,
            world=world,
        )
        return make_clip(index, seed=self.seed, config=config)


def paint(
    sample: Sample, *, view: View, generator: np.random.Generator
) -> UInt8[np.ndarray, "t h w 3"]:
    """The clip as the codec sees it: its pixels, or one of its dense maps in colours.

    Args:
        sample: A clip with ids and depth.
        view: What to show.
        generator: Source of the entity colours.

    Returns:
        RGB, uint8.
    """
    if view == "rgb":
        return sample.rgb
    assert sample.entity_ids is not None and sample.depth is not None
    if view == "depth":
        return depth.encode(sample.depth.astype(np.float32) / 65535.0)
    colors = pixelplanes.draw_colors(int(sample.entity_ids.max()), generator=generator)
    return pixelplanes.encode(sample.entity_ids, colors=colors)


def to_network(rgb: UInt8[np.ndarray, "t h w 3"]) -> Float[Tensor, "t 3 h w"]:
    """Pixels 0..255 to [-1, 1], float32, channels before rows."""
    return rearrange(torch.from_numpy(rgb).float() / 127.5 - 1.0, "t h w c -> t c h w")
