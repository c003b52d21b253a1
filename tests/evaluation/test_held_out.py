"""Held-out prompts and the clips that they were written for."""

from pathlib import Path

import pytest

from data_loaders.order import ClipSize
from data_loaders.shards import write_shards
from data_loaders.synthetic import HELD_OUT_START, WorldConfig, held_out_prompts, make_clip
from sat_udpdiff.evaluation.inputs import find_references
from sat_udpdiff.evaluation.references import ClipFit
from sat_udpdiff.evaluation.settings import ReferenceSettings
from sat_udpdiff.held_out import (
    held_out_shards,
    prompts_of_file,
    prompts_of_shards,
    prompts_of_world,
)

WORLD = WorldConfig(frames=9, height=32, width=48, world="simple", max_entities=3)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out") / "heldout"
    write_shards((make_clip(i, seed=0, config=WORLD) for i in range(3)), folder)
    return folder


def test_prompts_of_shards_know_their_clips(shards: Path) -> None:
    prompts = prompts_of_shards(shards, count=2)
    clips = [make_clip(i, seed=0, config=WORLD) for i in range(2)]
    assert [p.text for p in prompts] == [clip.caption_long for clip in clips]
    assert [p.key for p in prompts] == [clip.key for clip in clips]
    assert [p.number for p in prompts] == [0, 1]
    short = prompts_of_shards(shards, count=None, caption="short")
    assert len(short) == 3 and short[0].text == clips[0].caption_short
    with pytest.raises(ValueError, match="expected 4 clips or more, found 3"):
        prompts_of_shards(shards, count=4)


def test_the_held_out_split_of_a_data_set_is_taken(shards: Path) -> None:
    assert held_out_shards(shards.parent) == shards
    assert held_out_shards(shards) == shards
    assert held_out_shards("https://host/shards") == "https://host/shards"
    assert prompts_of_shards(shards.parent, count=1) == prompts_of_shards(shards, count=1)


def test_prompts_of_the_world_are_those_of_its_references() -> None:
    prompts = prompts_of_world(count=4, seed=0, config=WORLD)
    assert len({prompt.text for prompt in prompts}) == 4
    assert prompts_of_world(count=2, seed=0, config=WORLD) == prompts[:2]
    assert all(p.world_index is not None and p.world_index >= HELD_OUT_START for p in prompts)
    fit = ClipFit(size=ClipSize(num_frames=9, height=32, width=48), fps=8.0)
    settings = ReferenceSettings(source="world", count=4)
    videos = find_references(settings, fit=fit).videos
    assert [video.prompt for video in videos] == [prompt.text for prompt in prompts]


def test_prompts_of_the_demonstration_are_as_they_were() -> None:
    prompts = held_out_prompts(3, seed=0, style="long")
    config = WorldConfig(world="simple", frames=2, height=32, width=48)
    drawn = [make_clip(HELD_OUT_START + i, seed=0, config=config) for i in range(6)]
    assert list(prompts) == list(dict.fromkeys(clip.caption_long for clip in drawn))[:3]


def test_a_file_of_prompts(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("one\n\n two \n", encoding="utf-8")
    assert prompts_of_file(path, option="--prompts") == ["one", "two"]
    path.write_text("\n")
    with pytest.raises(ValueError, match=r"--prompts: .* holds no prompt; one per line"):
        prompts_of_file(path, option="--prompts")
