"""The two files that VBench writes, from our scores.

`NAME_eval_results.json`: dimension -> [score of the set, [{"video_path", "video_results"}, ...]];
of background consistency each video has "video_sim" and "cnt_per_video", too.
`NAME_full_info.json`: [{"prompt_en", "dimension", "video_list"}, ...].
Scores are fractions, as there.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_loaders.atomic_file import write_atomically
from sat_udpdiff.evaluation.measure import Score

DIMENSIONS = ("subject_consistency", "background_consistency", "motion_smoothness")
"""VBench's names among ours, in the order of the paper's tables."""
_COUNTED = "background_consistency"


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedVideo:
    """A video of the set."""

    path: str
    """As the files shall name it."""
    prompt: str = ""
    """'' = the file's name without its ending and a number after a dash, as VBench takes it."""


def prompt_of(video: JudgedVideo) -> str:
    """The prompt, or what VBench takes for it: `a dog` for `a dog.mp4` and `a dog-3.mp4`."""
    return video.prompt or re.sub(r"-\d+$", "", Path(video.path).stem)


def eval_results(
    scores: Sequence[Score], *, videos: Mapping[str, JudgedVideo]
) -> dict[str, list[Any]]:
    """What `NAME_eval_results.json` holds: of our scores those that are VBench's.

    Args:
        scores: Of one set.
        videos: By name, all that any of the scores judged.

    Raises:
        ValueError: A score judged a video that is not among `videos`.
    """
    by_name = {score.name: score for score in scores}
    results: dict[str, list[Any]] = {}
    for dimension in DIMENSIONS:
        if (score := by_name.get(dimension)) is None:
            continue
        if missing := sorted(set(score.per_video) - set(videos)):
            raise ValueError(f"{dimension}: expected all videos of the score, missing {missing}")
        rows = []
        for name, value in score.per_video.items():
            video = videos[name]
            row: dict[str, Any] = {"video_path": video.path, "video_results": value}
            if dimension == _COUNTED:
                count = score.counts[name]
                row |= {"video_sim": value * count, "cnt_per_video": count}
            rows.append(row)
        results[dimension] = [score.value, rows]
    return results


def full_info(
    videos: Sequence[JudgedVideo], *, dimensions: Sequence[str] = DIMENSIONS
) -> list[dict[str, Any]]:
    """What `NAME_full_info.json` holds."""
    return [
        {"prompt_en": prompt_of(video), "dimension": list(dimensions), "video_list": [video.path]}
        for video in videos
    ]


def write_vbench_files(
    folder: Path, *, name: str, scores: Sequence[Score], videos: Mapping[str, JudgedVideo]
) -> tuple[Path, Path]:
    """Write both files, each whole or not at all.

    Args:
        folder: Exists.
        name: What their names begin with.
        scores: Of one set; those that are not VBench's are left out.
        videos: By name, all that any of the scores judged.

    Returns:
        Paths of the results and of the info.

    Raises:
        ValueError: A score is not finite, or judged a video that is not among `videos`.
    """
    results = eval_results(scores, videos=videos)
    paths = folder / f"{name}_eval_results.json", folder / f"{name}_full_info.json"
    info = full_info(list(videos.values()), dimensions=list(results))
    texts = [json.dumps(value, indent=4, allow_nan=False) for value in (results, info)]
    for path, text in zip(paths, texts, strict=True):
        write_atomically(path, text.encode())
    return paths
