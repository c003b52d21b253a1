"""The synthetic world: reproducible, and every label and word of it true."""

import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest

from data_loaders.schema import Sample, validate_sample
from data_loaders.synthetic import (
    HELD_OUT_START,
    WorldConfig,
    held_out_prompts,
    main,
    make_clip,
    make_clips,
    make_scene,
    parse_size,
)
from data_loaders.synthetic_render import Rendering, render
from data_loaders.synthetic_scene import Scene
from data_loaders.synthetic_shapes import (
    FULL_SHAPES,
    SATURATED,
    SIMPLE_SHAPES,
    SURFACE_REACH,
    make_outline,
)

SIMPLE = WorldConfig(world="simple")
FULL = WorldConfig(world="full", frames=5, height=48, width=72)
THING = re.compile(
    r"an? (?P<size>large|medium|small) (?P<colour>\w+) (?P<shape>disc|square|triangle|diamond) "
    r"(?:that )?(?P<motion>stays still|moves \w+)"
)
STEPS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


@cache
def simple_clips() -> tuple[Sample, ...]:
    return tuple(make_clip(index, seed=0, config=SIMPLE) for index in range(40))


@cache
def full_clips() -> tuple[Sample, ...]:
    return tuple(make_clip(index, seed=0, config=FULL) for index in range(12))


def same(first: Sample, second: Sample) -> bool:
    return (
        first.key == second.key
        and first.caption_long == second.caption_long
        and np.array_equal(first.rgb, second.rgb)
        and np.array_equal(first.entity_ids, second.entity_ids)
        and np.array_equal(first.depth, second.depth)
        and first.meta == second.meta
    )


def told_things(sample: Sample) -> list[dict[str, str]]:
    return [match.groupdict() for match in THING.finditer(sample.caption_long)]


def centroid(mask: np.ndarray) -> np.ndarray:
    rows, columns = np.nonzero(mask)
    return np.array([columns.mean(), rows.mean()])


# -- reproducible ----------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [SIMPLE, FULL], ids=["simple", "full"])
def test_clip_is_a_function_of_seed_and_index(config: WorldConfig) -> None:
    forwards = [make_clip(index, seed=3, config=config) for index in (0, 1, 2)]
    backwards = [make_clip(index, seed=3, config=config) for index in (2, 1, 0)]
    assert all(same(a, b) for a, b in zip(forwards, reversed(backwards), strict=True))


def test_seed_and_index_change_the_clip() -> None:
    base = make_clip(1, seed=0, config=SIMPLE)
    for other in (make_clip(2, seed=0, config=SIMPLE), make_clip(1, seed=1, config=SIMPLE)):
        assert other.key != base.key
        assert not np.array_equal(other.rgb, base.rgb)


def test_keys_are_unique() -> None:
    keys = [clip.key for clip in (*simple_clips(), *full_clips())]
    assert len(set(keys)) == len(keys)


def test_worker_processes_make_the_same_clips() -> None:
    alone = make_clips(range(3), seed=1, config=SIMPLE)
    pooled = make_clips(range(3), seed=1, config=SIMPLE, num_workers=2)
    assert all(same(a, b) for a, b in zip(alone, pooled, strict=True))


# -- valid -----------------------------------------------------------------------------------------


def test_clips_are_valid_and_wholly_labelled() -> None:
    for clip in (*simple_clips(), *full_clips()):
        validate_sample(clip)
        assert clip.entity_ids is not None and clip.depth is not None
        assert clip.entity_ids.min() >= 1
        assert clip.meta.num_entities == len(np.unique(clip.entity_ids))
        assert (clip.depth.min(), clip.depth.max()) == (0, 65535)


@pytest.mark.parametrize("world", ["simple", "full"])
@pytest.mark.parametrize(("frames", "height", "width"), [(1, 16, 16), (2, 37, 51), (5, 64, 48)])
def test_any_size(world: str, frames: int, height: int, width: int) -> None:
    config = WorldConfig(world=world, frames=frames, height=height, width=width)
    clip = make_clip(0, seed=0, config=config)
    validate_sample(clip)
    assert clip.rgb.shape == (frames, height, width, 3)


@pytest.mark.parametrize("count", [1, 2, 17, 40])
def test_number_of_things_reaches_both_limits(count: int) -> None:
    config = replace(FULL, frames=2, min_entities=count, max_entities=count)
    clip = make_clip(0, seed=0, config=config)
    assert clip.meta.extra["num_things"] == count
    assert clip.entity_ids is not None and clip.entity_ids.max() <= count + 2


def test_number_of_things_is_spread_and_limited() -> None:
    config = replace(FULL, frames=1, max_entities=12)
    counts = [len(make_scene(index, seed=0, config=config).things) for index in range(30)]
    assert max(counts) == 12
    assert min(counts) <= 3
    assert len(set(counts)) >= 8


@pytest.mark.parametrize("limits", [(1, 1), (2, 2), (3, 40)])
def test_simple_world_keeps_the_limits(limits: tuple[int, int]) -> None:
    config = replace(SIMPLE, min_entities=limits[0], max_entities=limits[1])
    counts = {len(make_scene(index, seed=0, config=config).things) for index in range(10)}
    assert counts == {limits[0]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 0}, "frames: expected >= 1, got 0"),
        ({"height": 8}, "height: expected >= 16, got 8"),
        ({"width": 8}, "width: expected >= 16, got 8"),
        ({"fps": 0.0}, "fps: expected > 0, got 0.0"),
        ({"min_entities": 0}, "min_entities: expected >= 1, got 0"),
        ({"min_entities": 5, "max_entities": 4}, "max_entities: expected >= min_entities = 5"),
        ({"world": "simple", "width": 40}, "width: expected >= 3/4 of the height in the simple"),
        ({"world": "simple", "min_entities": 4}, "min_entities: expected <= 3 in the simple"),
    ],
)
def test_wrong_config_is_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(WorldConfig(), **changes)


@pytest.mark.parametrize(("index", "seed", "name"), [(-1, 0, "index"), (0, -1, "seed")])
def test_negative_index_or_seed_is_refused(index: int, seed: int, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected >= 0, got -1"):
        make_clip(index, seed=seed, config=SIMPLE)


# -- exact labels ----------------------------------------------------------------------------------


def rendered(scene: Scene) -> Rendering:
    return render(scene, height=48, width=72)


@pytest.mark.parametrize("index", range(6))
def test_nearest_thing_is_the_one_that_is_seen(index: int) -> None:
    scene = make_scene(index, seed=5, config=replace(FULL, min_entities=8, max_entities=14))
    together = rendered(scene)
    alone = [rendered(replace(scene, things=(thing,))) for thing in scene.things]
    nearest = np.max([one.disparity for one in alone], axis=0)
    np.testing.assert_array_equal(together.disparity, nearest)
    overlaps = 0
    for number, one in enumerate(alone, start=1):
        covered = one.entity_ids == 1
        hidden = covered & (together.entity_ids != number)
        overlaps += int(hidden.sum())
        # What hides it is a thing, not the background, and it is nearer.
        assert (together.entity_ids[hidden] <= len(alone)).all()
        assert (together.disparity[hidden] >= one.disparity[hidden]).all()
        assert (together.entity_ids[~covered] != number).all()
    assert overlaps > 0


@pytest.mark.parametrize("config", [SIMPLE, FULL], ids=["simple", "full"])
@pytest.mark.parametrize("index", range(4))
def test_ids_and_colours_have_the_same_edges(config: WorldConfig, index: int) -> None:
    scene = make_scene(index, seed=2, config=config)
    picture = rendered(scene)
    empty = rendered(replace(scene, things=()))
    kernel = np.ones((3, 3), np.uint8)
    for frame in range(config.frames):
        things = (picture.entity_ids[frame] <= len(scene.things)).astype(np.uint8)
        changed = (picture.rgb[frame] != empty.rgb[frame]).any(axis=-1)
        # Area sampling lets an edge bleed one pixel, the tip of a sharp corner two.
        reach = kernel if config.world == "simple" else np.ones((5, 5), np.uint8)
        assert not changed[cv2.dilate(things, reach) == 0].any()
        if config.world == "simple":
            assert changed[cv2.erode(things, kernel) == 1].all()


@pytest.mark.parametrize("radius", [6.0, 11.3, 20.0])
def test_area_of_a_disc_is_true(radius: float) -> None:
    config = replace(SIMPLE, frames=1, max_entities=1)
    scene = make_scene(0, seed=0, config=config)
    thing = replace(
        scene.things[0],
        outline=make_outline("disc", rng=np.random.default_rng(0)),
        radius=radius / 64,
        position=np.array([[0.03, 0.017, 1.0]]),
    )
    ids = render(replace(scene, things=(thing,)), height=64, width=96).entity_ids
    assert (ids == 1).sum() == pytest.approx(np.pi * radius**2, rel=0.05)


def test_simple_things_stay_in_the_picture_and_in_sight() -> None:
    for index in range(100):
        scene = make_scene(index, seed=9, config=replace(SIMPLE, frames=3))
        picture = rendered(scene)
        for number, thing in enumerate(scene.things, start=1):
            whole = rendered(replace(scene, things=(thing,))).entity_ids == 1
            edge = np.ones(whole.shape, bool)
            edge[:, 1:-1, 1:-1] = False
            assert not (whole & edge).any()
            seen = (picture.entity_ids == number).sum(axis=(1, 2)) / whole.sum(axis=(1, 2))
            assert seen.min() > 0.3


def test_simple_world_has_the_same_depth_range_in_every_clip() -> None:
    """So that a colour of the depth map means the same distance in all of them."""
    floors = [clip.depth[0, -1, 0] for clip in simple_clips()]
    walls = [clip.depth[0, 0, 0] for clip in simple_clips()]
    assert set(floors) == {65535}
    assert set(walls) == {0}
    for clip in simple_clips():
        for number, thing in enumerate(told_things(clip), start=1):
            values = np.unique(clip.depth[clip.entity_ids == number])
            expected = {"large": 0.9, "medium": 0.7, "small": 0.5}[thing["size"]]
            assert len(values) == 1
            assert values[0] / 65535 == pytest.approx((expected - 0.2) / 0.78, abs=0.02)


@pytest.mark.parametrize("shape", FULL_SHAPES)
def test_outlines_lie_within_their_texture(shape: str) -> None:
    for seed in range(20):
        outline = make_outline(shape, rng=np.random.default_rng(seed))
        assert np.abs(outline).max() <= SURFACE_REACH


# -- true captions ---------------------------------------------------------------------------------


def test_captions_tell_every_simple_thing() -> None:
    for clip in simple_clips():
        things = told_things(clip)
        assert len(things) == clip.meta.extra["num_things"] == clip.meta.num_entities - 2
        for thing in things:
            assert f"{thing['colour']} {thing['shape']} {thing['motion']}" in clip.caption_short


def test_colour_words_are_true() -> None:
    names = list(SATURATED)
    palette = np.array(list(SATURATED.values()), dtype=np.float64)
    for clip in simple_clips():
        for number, thing in enumerate(told_things(clip), start=1):
            mask = (clip.entity_ids[0] == number).astype(np.uint8)
            inner = cv2.erode(mask, np.ones((3, 3), np.uint8)) == 1
            mean = clip.rgb[0][inner].mean(axis=0)
            nearest = names[int(np.linalg.norm(palette - mean, axis=1).argmin())]
            assert nearest == thing["colour"]


def test_motion_words_are_true() -> None:
    seen = set()
    for clip in simple_clips():
        # The nearest thing is never hidden, so its centroid is its place.
        motion = told_things(clip)[0]["motion"]
        moved = centroid(clip.entity_ids[-1] == 1) - centroid(clip.entity_ids[0] == 1)
        seen.add(motion)
        if motion == "stays still":
            np.testing.assert_array_equal(moved, 0)
            continue
        along = np.array(STEPS[motion.removeprefix("moves ")])
        speed = moved @ along / (SIMPLE.frames - 1)
        assert 1 <= speed <= 4
        assert abs(moved - (moved @ along) * along).max() < 0.5
    assert len(seen) == 5


def test_size_words_are_true() -> None:
    heights: dict[tuple[str, str], set[int]] = {}
    for index in range(120):
        clip = make_clip(index, seed=4, config=replace(SIMPLE, frames=1, max_entities=1))
        thing = told_things(clip)[0]
        height = int((clip.entity_ids[0] == 1).any(axis=1).sum())
        heights.setdefault((thing["shape"], thing["size"]), set()).add(height)
    assert len(heights) == 12
    for shape in SIMPLE_SHAPES:
        assert max(heights[shape, "small"]) < min(heights[shape, "medium"])
        assert max(heights[shape, "medium"]) < min(heights[shape, "large"])


def test_background_words_are_true() -> None:
    for clip in simple_clips():
        floor, wall = re.search(
            r"over an? (\w+) floor and an? (\w+) wall", clip.caption_long
        ).groups()
        wall_rgb = clip.rgb[0, 0].astype(float).mean(axis=0)
        assert {"white": wall_rgb.min() > 220, "slate": wall_rgb.max() < 150}.get(wall, True)
        floor_rgb = clip.rgb[0, -1].astype(float).mean(axis=0)
        assert (np.ptp(floor_rgb) < 15) == (floor == "grey")


def test_full_motion_words_are_true() -> None:
    checked = 0
    config = replace(FULL, min_entities=1, max_entities=1)
    for index in range(40):
        clip = make_clip(index, seed=1, config=config)
        match = re.search(r"moves (\w+)$", clip.caption_short)
        masks = clip.entity_ids == 1
        border = np.ones(masks.shape[1:], bool)
        border[1:-1, 1:-1] = False
        if match is None or not masks.any(axis=(1, 2)).all() or (masks & border).any():
            continue
        moved = centroid(masks[-1]) - centroid(masks[0])
        assert moved @ np.array(STEPS[match[1]]) > 0
        checked += 1
    assert checked >= 5


def test_full_captions_name_only_what_is_seen() -> None:
    for clip in full_clips():
        others = re.search(r"with (\d+) other", clip.caption_long)
        things = np.unique(clip.entity_ids[clip.entity_ids <= clip.meta.extra["num_things"]])
        told = min(len(things), 3)
        assert len(things) - told == (int(others[1]) if others else 0)


def test_captions_are_lower_case_sentences_with_right_articles() -> None:
    for clip in (*simple_clips(), *full_clips()):
        for caption in (clip.caption_short, clip.caption_long):
            assert caption == caption.lower() == " ".join(caption.split())
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", caption)


def test_simple_vocabulary_is_small() -> None:
    text = " ".join(held_out_prompts(50, seed=0) + held_out_prompts(150, seed=0, style="long"))
    assert len(set(re.findall(r"[a-z]+", text))) < 50


def test_held_out_prompts_are_different_and_stable() -> None:
    prompts = held_out_prompts(50, seed=0)
    assert len(set(prompts)) == 50
    assert held_out_prompts(20, seed=0) == prompts[:20]
    assert held_out_prompts(50, seed=1) != prompts
    assert make_clip(HELD_OUT_START, seed=0, config=SIMPLE).caption_short == prompts[0]


def test_too_many_prompts_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_loaders.synthetic._DRAWS_PER_PROMPT", 0)
    with pytest.raises(ValueError, match="at most 0 different prompts, got 2"):
        held_out_prompts(2, seed=0)


# -- command line ----------------------------------------------------------------------------------


def test_size_is_height_by_width() -> None:
    assert parse_size("64x96") == (64, 96)


@pytest.mark.parametrize(
    "text", ["", "64", "64x", "x96", "0x96", "-4x96", "64x96x3", "64*96", "6.4x9"]
)
def test_wrong_size_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="size: expected HEIGHTxWIDTH"):
        parse_size(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "64"], "size: expected HEIGHTxWIDTH as 64x96, got '64'"),
        (["--clips", "0"], "--clips: expected >= 1, got 0"),
        (["--first-index", "-1"], "--first-index: expected >= 0, got -1"),
        (["--max-entities", "0"], "max_entities: expected >= min_entities = 1, got 0"),
        (["--frames", "0"], "frames: expected >= 1, got 0"),
    ],
)
def test_wrong_option_ends_with_its_name(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_command_line_writes_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main([str(out), "--clips", "3", "--world", "simple", "--frames", "5"]) == 0
    assert "3 clips" in capsys.readouterr().out
    assert list(out.glob("*.tar"))
