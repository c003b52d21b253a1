"""Synthetic video of moving entities with exact ids, exact depth and true captions.

The only source of labels that are right by construction: it serves the tests, the example
training, and every metric that needs a ground truth. Deterministic: a clip is a function of
(seed, index, config), whatever was made before and in which process.

Example:
    python -m data_loaders.synthetic out/simple --clips 512 --world simple --seed 0
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from data_loaders.schema import Sample, SampleMeta
from data_loaders.synthetic_captions import long_caption, short_caption
from data_loaders.synthetic_full import make_full_scene
from data_loaders.synthetic_render import render
from data_loaders.synthetic_scene import Scene
from data_loaders.synthetic_simple import make_simple_scene

WORLDS = ("simple", "full")
# Clips from this index on are never written by the command line: they are for evaluation.
HELD_OUT_START = 1 << 40


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldConfig:
    """What kind of clips to make."""

    frames: int = 9
    """Number of frames, >= 1."""
    height: int = 64
    """Pixels, >= 16."""
    width: int = 96
    """Pixels, >= 16."""
    fps: float = 8.0
    """Frames per second that the clip claims."""
    min_entities: int = 1
    """Fewest moving entities (the two stuff planes come on top)."""
    max_entities: int = 40
    """Most moving entities; the simple world has at most 3."""
    world: Literal["full", "simple"] = "full"
    """'simple': few large clean things, static camera. 'full': everything."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: A value out of its range, naming the field.
        """
        limits = {"frames": 1, "height": 16, "width": 16, "min_entities": 1}
        for name, least in limits.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected >= {least}, got {getattr(self, name)}")
        if self.max_entities < self.min_entities:
            raise ValueError(
                f"max_entities: expected >= min_entities = {self.min_entities}, "
                f"got {self.max_entities}"
            )
        if self.fps <= 0:
            raise ValueError(f"fps: expected > 0, got {self.fps}")
        if self.world not in WORLDS:
            raise ValueError(f"world: expected one of {WORLDS}, got {self.world!r}")


def make_scene(index: int, *, seed: int, config: WorldConfig) -> Scene:
    """Draw the true state of a clip.

    Args:
        index: Number of the clip, >= 0.
        seed: Seed of the dataset, >= 0.
        config: Kind of clips.

    Returns:
        The scene that `make_clip` renders.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index,)))
    size = {"frames": config.frames, "height": config.height, "width": config.width}
    if config.world == "simple":
        return make_simple_scene(rng, **size, max_things=min(config.max_entities, 3))
    return make_full_scene(
        rng, **size, min_things=config.min_entities, max_things=config.max_entities
    )


def _clip_min_max(disparity: np.ndarray) -> np.ndarray:
    low, high = float(disparity.min()), float(disparity.max())
    return np.rint((disparity - low) * (65535.0 / max(high - low, 1e-12))).astype(np.uint16)


def make_clip(index: int, *, seed: int, config: WorldConfig) -> Sample:
    """Make one clip.

    Args:
        index: Number of the clip, >= 0.
        seed: Seed of the dataset, >= 0.
        config: Kind and size of the clip.

    Returns:
        A clip with every label. Ids: things 1..K, then the wall or sky, then the ground;
        `meta.num_entities` counts the ids that are seen, `meta.extra["num_things"]` is K.
    """
    scene = make_scene(index, seed=seed, config=config)
    rendering = render(scene, height=config.height, width=config.width)
    num_things = len(scene.things)
    areas = np.bincount(rendering.entity_ids.ravel(), minlength=num_things + 3)
    thing_areas = areas[1 : num_things + 1]
    return Sample(
        key=f"{config.world}-{seed:04d}-{index:08d}",
        rgb=rendering.rgb,
        entity_ids=rendering.entity_ids,
        depth=_clip_min_max(rendering.disparity),
        caption_short=short_caption(scene, areas=thing_areas),
        caption_long=long_caption(scene, areas=thing_areas),
        fps=config.fps,
        meta=SampleMeta(
            source=f"synthetic-{config.world}",
            segmentation_backend="synthetic",
            depth_backend="synthetic",
            num_entities=int((areas[1:] > 0).sum()),
            extra={"seed": seed, "index": index, "num_things": num_things},
        ),
    )
