"""Choose clips and hold out videos by hash: no order, no number of processes has a say.

Every clip has a rank, a number that its key and the seed decide. Who takes the lowest ranks takes
the same clips again when there are more to choose from, and fewer are a subset of more.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping


def clip_rank(key: str, *, seed: int, use: str = "sample") -> int:
    """A number of 64 bits for a clip or a video.

    Args:
        key: Of the clip, or the id of a video.
        seed: Other seeds give other orders.
        use: What the number is for; other uses give other orders.
    """
    content = f"{use}\0{seed}\0{key}".encode()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest())


def choose_clips(
    videos: Mapping[str, str], *, num_clips: int | None, per_video: int | None, seed: int
) -> set[str]:
    """Keys of the clips that are taken: by rank, at most so many of a video.

    The clips for a number are a subset of those for any larger number, for the same seed and the
    same limit per video: whether a clip is within its video's limit depends on that video's clips
    alone, and what remains is taken by rank.

    Args:
        videos: Source video of each clip, by key.
        num_clips: How many to take; None = all.
        per_video: Most clips of a source video; None = no limit.
        seed: Of the choice.
    """
    order = sorted(videos, key=lambda key: (clip_rank(key, seed=seed), key))
    if per_video is not None:
        taken: Counter[str] = Counter()
        within = []
        for key in order:
            if taken[videos[key]] < per_video:
                taken[videos[key]] += 1
                within.append(key)
        order = within
    return set(order if num_clips is None else order[:num_clips])


def held_out_videos(videos: Mapping[str, str], *, num_clips: int, seed: int) -> set[str]:
    """Source videos for evaluation: whole ones, by rank, until they have enough clips.

    Args:
        videos: Source video of each clip, by key.
        num_clips: Clips wanted; the last video may bring a few more. 0 = none.
        seed: Of the choice.

    Returns:
        Ids of videos, none of which training may see; one at least is left to it.
    """
    counts = Counter(videos.values())
    chosen: set[str] = set()
    clips = 0
    for video in _by_rank(counts, seed=seed):
        if clips >= num_clips or len(chosen) + 1 >= len(counts):
            break
        chosen.add(video)
        clips += counts[video]
    return chosen


def _by_rank(videos: Iterable[str], *, seed: int) -> list[str]:
    return sorted(videos, key=lambda video: (clip_rank(video, seed=seed, use="held out"), video))
