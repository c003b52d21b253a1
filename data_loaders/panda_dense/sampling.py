"""Which clips are taken of many, and which videos are held out: by hashes, never by order.

The same clips are chosen whatever the order they come in, on however many machines, and when more
are added later only as many change as must.
"""

import hashlib
import heapq
from collections.abc import Iterable
from dataclasses import dataclass

from data_loaders.schema import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleSettings:
    """How many clips, and how many of them for evaluation."""

    num_clips: int | None = None
    """Most clips taken; None = all. The paper trains on 300,000."""
    per_video: int | None = 3
    """Most clips of one source video; None = no limit. Panda-70M's 10M subset has at most 3, for
    the sake of variety."""
    seed: int = 0
    """Another seed, another choice; a smaller `num_clips` is a part of a larger one."""
    held_out_clips: int = 1024
    """Clips for evaluation, of whole source videos: FVD needs more clips than the 400 features it
    compares. 0 = none."""
    most_held_out: float = 0.1
    """Most share of the clips that are good enough: of a few clips, all would be held out."""
    held_out_seed: int = 0
    """Apart from `seed`. Videos are held out before training clips are chosen, so that another
    choice, or more of them, keeps the evaluation set."""


def check_sample(settings: SampleSettings, *, section: str) -> None:
    """Check the settings.

    Raises:
        DataError: Names the setting.
    """
    for name, least in (("num_clips", 1), ("per_video", 1), ("held_out_clips", 0)):
        value = getattr(settings, name)
        if value is not None and value < least:
            raise DataError(f"{section}.{name}: expected >= {least} or None, got {value}")
    if not 0 <= settings.most_held_out < 1:
        raise DataError(
            f"{section}.most_held_out: expected a share in [0, 1), got {settings.most_held_out}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """What a choice needs to know of a clip."""

    key: str
    video_id: str


def rank(name: str, *, seed: int) -> int:
    """A number in [0, 2^64), drawn by SHA-256 of seed and name: the lower, the sooner chosen."""
    digest = hashlib.sha256(f"{seed}\0{name}".encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big")


def choose(
    clips: Iterable[Candidate], *, num_clips: int | None, per_video: int | None, seed: int
) -> set[str]:
    """Keys of the clips that are taken.

    Of each video the `per_video` clips of lowest rank may be taken, of all these the `num_clips`
    of lowest rank are. The first does not depend on `num_clips`, so the choice of fewer is a part
    of the choice of more; without a limit per video, what is added to the clips displaces no more
    than it adds.

    Args:
        clips: In any order, each key once.
        num_clips: Most clips; None = all.
        per_video: Most clips of one `video_id`; None = no limit.
        seed: Of the ranks.

    Returns:
        The keys; fewer than `num_clips` where there are fewer.
    """
    lowest: dict[str, list[tuple[int, str]]] = {}
    for clip in clips:
        # A heap of the negated ranks: the clip to give up is on top.
        of_video = lowest.setdefault(clip.video_id, [])
        item = (-rank(clip.key, seed=seed), clip.key)
        if per_video is None or len(of_video) < per_video:
            heapq.heappush(of_video, item)
        else:
            heapq.heappushpop(of_video, item)
    ranked = ((-negated, key) for of_video in lowest.values() for negated, key in of_video)
    taken = ranked if num_clips is None else heapq.nsmallest(num_clips, ranked)
    return {key for _, key in taken}


def held_out_videos(
    clips: Iterable[Candidate], *, num_clips: int, most_share: float, seed: int
) -> set[str]:
    """Source videos whose clips are for evaluation.

    Whole videos are taken by rank until they have `num_clips` clips together, or the next one would
    pass `most_share` of all clips.

    Args:
        clips: Those that are good enough, in any order.
        num_clips: Clips wanted; the last video may bring a few more.
        most_share: Most share of the clips, 0..1.
        seed: Of the ranks.

    Returns:
        Ids of the videos; none where even the first would be too large a share.
    """
    counts: dict[str, int] = {}
    for clip in clips:
        counts[clip.video_id] = counts.get(clip.video_id, 0) + 1
    most = most_share * sum(counts.values())
    taken: set[str] = set()
    held = 0
    for video in sorted(counts, key=lambda video: (rank(video, seed=seed), video)):
        if held >= num_clips or held + counts[video] > most:
            break
        taken.add(video)
        held += counts[video]
    return taken
