"""Synthetic video of moving entities with exact ids, exact depth and true captions.

The only source of labels that are right by construction: it serves the tests, the example
training, and every metric that needs a ground truth. Deterministic: a clip is a function of
(seed, index, config), whatever was made before and in which process.

Example:
    python -m data_loaders.synthetic out/simple --clips 512 --world simple --seed 0
"""

import numpy as np

from data_loaders.schema import Sample, SampleMeta
from data_loaders.synthetic_captions import long_caption, short_caption
from data_loaders.synthetic_full import make_full_scene
from data_loaders.synthetic_render import render
from data_loaders.synthetic_scene import Scene, WorldConfig
from data_loaders.synthetic_simple import make_simple_scene

# Clips from this index on are never written by the command line: they are for evaluation.
HELD_OUT_START = 1 << 40


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
    make = make_simple_scene if config.world == "simple" else make_full_scene
    return make(rng, config=config)


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
