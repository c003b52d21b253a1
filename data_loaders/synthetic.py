"""Synthetic video of moving entities with exact ids, exact depth and true captions.

The only source of labels that are right by construction: it serves the tests, the example
training, and every metric that needs a ground truth. Deterministic: a clip is a function of
(seed, index, config), whatever was made before and in which process.

Example:
    python -m data_loaders.synthetic out/simple --clips 512 --world simple --seed 0
"""

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from data_loaders.schema import Sample, SampleMeta
from data_loaders.synthetic_captions import long_caption, short_caption
from data_loaders.synthetic_full import make_full_scene
from data_loaders.synthetic_render import render
from data_loaders.synthetic_scene import WORLDS, Scene, WorldConfig
from data_loaders.synthetic_simple import make_simple_scene
from data_loaders.worker_pool import ordered_map

# Clips from this index on are never written by the command line: they are for evaluation.
HELD_OUT_START = 1 << 40
# Prompts repeat; this many draws per wanted prompt are tried for different ones.
_DRAWS_PER_PROMPT = 50


def make_scene(index: int, *, seed: int, config: WorldConfig) -> Scene:
    """Draw the true state of a clip.

    Args:
        index: Number of the clip, >= 0.
        seed: Seed of the dataset, >= 0.
        config: Kind of clips.

    Returns:
        The scene that `make_clip` renders.

    Raises:
        ValueError: A negative index or seed.
    """
    for name, value in {"index": index, "seed": seed}.items():
        if value < 0:
            raise ValueError(f"{name}: expected >= 0, got {value}")
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

    Raises:
        ValueError: A negative index or seed.
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


def make_clips(
    indices: Sequence[int], *, seed: int, config: WorldConfig, num_workers: int = 0
) -> Iterator[Sample]:
    """Make clips in order, on several processes if asked.

    Args:
        indices: Numbers of the clips.
        seed: Seed of the dataset, >= 0.
        config: Kind and size of the clips.
        num_workers: Processes to make them on; 0 makes them in this one.

    Yields:
        The clips in the order of `indices`; the same ones for any number of workers.
    """
    make = partial(make_clip, seed=seed, config=config)
    with closing(ordered_map(make, indices, workers=num_workers, describe=_name_clip)) as clips:
        yield from clips


def _name_clip(index: int) -> str:
    return f"clip {index}"


def held_out_prompts(
    n: int, *, seed: int, style: Literal["short", "long"] = "short"
) -> tuple[str, ...]:
    """Captions of simple-world clips that no training set of the command line holds.

    See `held_out_clips`.
    """
    # Small: only the captions are wanted, and two frames are the least that move.
    config = WorldConfig(world="simple", frames=2, height=32, width=48)
    return tuple(held_out_clips(n, seed=seed, style=style, config=config))


def held_out_clips(
    n: int, *, seed: int, config: WorldConfig, style: Literal["short", "long"] = "long"
) -> dict[str, int]:
    """Captions, all different, of clips that no training set of the command line holds.

    The clips are new; a short caption has few words and may well equal one of a training clip.

    Args:
        n: Number of captions.
        seed: Seed, >= 0.
        config: Kind of the clips.
        style: Which of the two captions.

    Returns:
        Caption -> index of its clip; the first m are the same for every n >= m.

    Raises:
        ValueError: The world does not have n different captions.
    """
    clips: dict[str, int] = {}
    for index in range(HELD_OUT_START, HELD_OUT_START + n * _DRAWS_PER_PROMPT):
        if len(clips) == n:
            break
        sample = make_clip(index, seed=seed, config=config)
        clips.setdefault(sample.caption_short if style == "short" else sample.caption_long, index)
    if len(clips) < n:
        raise ValueError(f"n: expected at most {len(clips)} different prompts, got {n}")
    return clips


def parse_size(text: str) -> tuple[int, int]:
    """Parse a picture size.

    Args:
        text: "HEIGHTxWIDTH" in pixels, as "64x96".

    Returns:
        (height, width).

    Raises:
        ValueError: The text is no such size.
    """
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if match is None:
        raise ValueError(f"size: expected HEIGHTxWIDTH as 64x96, got {text!r}")
    return int(match[1]), int(match[2])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_loaders.synthetic",
        description="Write shards of synthetic clips with exact entity ids, depth and captions.",
    )
    default = WorldConfig()
    parser.add_argument("out", type=Path, help="folder for the shards")
    parser.add_argument("--clips", type=int, default=64, help="number of clips")
    parser.add_argument("--first-index", type=int, default=0, help="index of the first clip")
    parser.add_argument("--frames", type=int, default=default.frames, help="4k + 1 for the VAE")
    parser.add_argument("--size", default="64x96", help="HEIGHTxWIDTH, pixels")
    parser.add_argument("--fps", type=float, default=default.fps)
    parser.add_argument("--world", choices=WORLDS, default=default.world)
    parser.add_argument("--min-entities", type=int, default=default.min_entities)
    parser.add_argument("--max-entities", type=int, default=default.max_entities)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0, help="processes; 0 = this one")
    parser.add_argument("--samples-per-shard", type=int, default=64)
    parser.add_argument("--overwrite", action="store_true", help="replace shards in the folder")
    return parser


def _config_from(arguments: argparse.Namespace) -> WorldConfig:
    for name, least in {"clips": 1, "first_index": 0, "seed": 0, "workers": 0}.items():
        if getattr(arguments, name) < least:
            option = "--" + name.replace("_", "-")
            raise ValueError(f"{option}: expected >= {least}, got {getattr(arguments, name)}")
    height, width = parse_size(arguments.size)
    return WorldConfig(
        frames=arguments.frames,
        height=height,
        width=width,
        fps=arguments.fps,
        min_entities=arguments.min_entities,
        max_entities=arguments.max_entities,
        world=arguments.world,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Returns:
        Exit status: 0, 2 for a wrong value, 130 when interrupted.
    """
    # Here, so that the world itself needs no video codec.
    from data_loaders.shards import make_shards

    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        config = _config_from(arguments)
        indices = range(arguments.first_index, arguments.first_index + arguments.clips)
        manifest = make_shards(
            partial(make_clip, seed=arguments.seed, config=config),
            indices,
            arguments.out,
            samples_per_shard=arguments.samples_per_shard,
            overwrite=arguments.overwrite,
            workers=arguments.workers,
            describe=_name_clip,
            progress="synthetic",
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted: no shards were left in {arguments.out}", file=sys.stderr)
        return 130
    print(f"{arguments.clips} clips: {manifest}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
