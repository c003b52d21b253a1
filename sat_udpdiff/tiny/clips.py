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
from sat_udpdiff.encoders.vae import VideoCodec

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
        return make_clip(index, seed=self.seed, config=self.config(world=world))

    def config(self, *, world: Literal["simple", "full"] = "simple") -> WorldConfig:
        """What `make_clip` and `make_scene` make these clips from."""
        return WorldConfig(
            frames=self.frames,
            height=self.height,
            width=self.width,
            max_entities=3 if world == "simple" else 12,
            world=world,
        )


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
    return rearrange(torch.tensor(rgb).float() / 127.5 - 1.0, "t h w c -> t c h w")


@torch.no_grad()
def through_codec(
    video: Float[Tensor, "b t 3 h w"],
    *,
    codec: VideoCodec,
    sigma: float = 0.0,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "b t 3 h w"]:
    """What the codec gives back, with noise of `sigma` on the scaled latents; in [-1, 1]."""
    latents = codec.encode(video).mean
    if sigma:
        latents = latents + sigma * torch.randn(latents.shape, generator=generator)
    return codec.decode(latents).clamp(-1.0, 1.0)
