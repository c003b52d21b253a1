"""Captions of the synthetic world, written from the true state of the scene."""

import numpy as np

from data_loaders.synthetic_scene import Scene, Thing

_TOLD_THINGS = 3


def with_article(words: str) -> str:
    """Put "a" or "an" before a noun phrase."""
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _noun(thing: Thing, *, with_size: bool) -> str:
    texture = "" if thing.texture == "plain" else f"{thing.texture} "
    size = f"{thing.size} " if with_size else ""
    return with_article(f"{size}{thing.colour} {texture}{thing.shape}")


def _join(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]


def _told(scene: Scene, *, areas: np.ndarray) -> list[Thing]:
    """Largest things in sight, the nearest first."""
    order = [int(i) for i in np.argsort(-areas, kind="stable") if areas[i] > 0][:_TOLD_THINGS]
    order.sort(key=lambda index: scene.things[index].position[0, 2])
    return [scene.things[index] for index in order]


def _others(count: int) -> str:
    return f"{count} other {'thing' if count == 1 else 'things'}"


def short_caption(scene: Scene, *, areas: np.ndarray) -> str:
    """Name the largest things and what they do.

    Args:
        scene: True state.
        areas: Visible pixels of each thing over the clip, (K,).

    Returns:
        One sentence, no full stop, as "a red disc moves left and a blue square stays still".
    """
    told = _told(scene, areas=areas)
    if not told:
        return f"an empty {scene.backdrop.floor_name} before a {scene.backdrop.wall_name}"
    return _join([f"{_noun(thing, with_size=False)} {thing.motion}" for thing in told])


def long_caption(scene: Scene, *, areas: np.ndarray) -> str:
    """Name the largest things, their sizes, motions and depth order, the stuff and the camera.

    Args:
        scene: True state.
        areas: Visible pixels of each thing over the clip, (K,).

    Returns:
        One sentence, no full stop, from the nearest thing to the background.
    """
    told = _told(scene, areas=areas)
    parts = []
    if told:
        parts.append(f"{_noun(told[0], with_size=True)} {told[0].motion}")
        behind = [f"{_noun(thing, with_size=True)} that {thing.motion}" for thing in told[1:]]
        if behind:
            parts[0] += f" in front of {_join(behind)}"
    num_others = int((areas > 0).sum()) - len(told)
    if num_others:
        parts.append(f"with {_others(num_others)}")
    floor, wall = with_article(scene.backdrop.floor_name), with_article(scene.backdrop.wall_name)
    parts.append(f"over {floor} and {wall}")
    if scene.camera.motion != "stays still":
        parts.append(f"while the camera {scene.camera.motion}")
    return ", ".join(parts)
