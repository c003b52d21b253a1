"""Prompts that no training saw, each with the key of the real clip that it was written for.

From a data set: the long captions of `heldout/`, which the Panda-Dense pipeline keeps of other
source videos, or of any folder of shards. From the synthetic world: captions of clips that its
command line never writes. Or from a text file, without real clips.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_loaders.schema import DataError
from data_loaders.shard_format import MANIFEST
from data_loaders.shards import ShardIndex
from data_loaders.synthetic import held_out_clips
from data_loaders.synthetic_scene import WorldConfig

Caption = Literal["long", "short"]


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOutPrompt:
    """One prompt."""

    number: int
    """From 0; names the sample and its seed."""
    text: str
    key: str = ""
    """Of its clip in the shards; '' where there is none."""
    world_index: int | None = None
    """Of its clip in the synthetic world."""


def prompts_of_shards(
    shards: Path | str, *, count: int | None, caption: Caption = "long"
) -> list[HeldOutPrompt]:
    """Captions of the first clips of a folder of shards; see `held_out_shards`.

    Raises:
        DataError: The folder cannot be opened, a record is damaged, or there are fewer clips.
    """
    index = ShardIndex.open(held_out_shards(shards))
    if count is not None and len(index) < count:
        raise DataError(f"{index.folder}: expected {count} clips or more, found {len(index)}")
    prompts = []
    for number in range(len(index) if count is None else count):
        stored = index.sample(number)
        text = stored.record()[f"caption_{caption}"]
        prompts.append(HeldOutPrompt(number=number, text=text, key=stored.key))
    return prompts


def held_out_shards(place: Path | str) -> Path | str:
    """The folder of held-out shards: that of a data set's output, else the place itself."""
    inside = Path(place) / "heldout"
    return inside if (inside / MANIFEST).is_file() else place


def prompts_of_world(
    *, count: int, seed: int, config: WorldConfig, caption: Caption = "long"
) -> list[HeldOutPrompt]:
    """Captions of clips of the synthetic world, all different.

    Raises:
        ValueError: The world has not so many different captions.
    """
    clips = held_out_clips(count, seed=seed, config=config, style=caption)
    return [
        HeldOutPrompt(number=number, text=text, world_index=index)
        for number, (text, index) in enumerate(clips.items())
    ]


def prompts_of_file(path: Path, *, option: str) -> list[str]:
    """The lines of a text file that are not empty.

    Args:
        path: UTF-8 text, a prompt per line.
        option: That names the file, for messages.

    Raises:
        ValueError: It cannot be read, or holds no prompt.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ValueError(f"{option}: cannot read {path}: {reason}") from None
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise ValueError(f"{option}: {path} holds no prompt; one per line")
    return found
