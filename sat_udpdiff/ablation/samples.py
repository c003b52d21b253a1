"""Pictures of what the networks of an ablation made of the same prompts."""

from collections.abc import Sequence
from pathlib import Path

from sat_udpdiff.ablation.judging import folder_of
from sat_udpdiff.ablation.sheets import Strip, sheet
from sat_udpdiff.ablation.work import Unit
from sat_udpdiff.evaluation.measure import UnusableError
from sat_udpdiff.evaluation.videos import SampleVideo, samples_in

SHEETS = "sheets"
SAMPLES = "samples"
"""Folder of evaluate.py's output."""
_PROMPTS = 4


def write_sheets(units: Sequence[Unit], *, folder: Path) -> list[str]:
    """One picture for each of the first prompts, a row for every network and task.

    Args:
        units: Trainings; the first seed of each that has samples is shown.
        folder: Of the ablation.

    Returns:
        The pictures, below `folder`.
    """
    rows: dict[str, dict[str, SampleVideo]] = {}
    for unit in units:
        for label, videos in _samples(unit).items():
            rows.setdefault(label, videos)
    prompts = list(dict.fromkeys(prompt for videos in rows.values() for prompt in videos))
    written = []
    for number, prompt in enumerate(prompts[:_PROMPTS]):
        shown = {label: videos[prompt] for label, videos in rows.items() if prompt in videos}
        strips = list(filter(None, (_strip(label, video) for label, video in shown.items())))
        if strips:
            path = folder / SHEETS / f"{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            sheet(strips, title=prompt).save(path, optimize=True)
            written.append(str(path.relative_to(folder)))
    return written


def _samples(unit: Unit) -> dict[str, dict[str, SampleVideo]]:
    """Label of a row -> prompt -> sample, in the order of the prompts."""
    training = unit.training
    folder = folder_of(training, step=training.steps) / SAMPLES
    found: dict[str, dict[str, SampleVideo]] = {}
    if not folder.is_dir() or not any(folder.iterdir()):
        return found
    for video in samples_in(folder).videos:
        if isinstance(video, SampleVideo):
            label = f"{training.arm.name}, {video.task or 'no map'}"
            found.setdefault(label, {}).setdefault(video.prompt, video)
    return found


def _strip(label: str, video: SampleVideo) -> Strip | None:
    try:
        return Strip(label=label, rgb=video.rgb(), dense=video.dense())
    except UnusableError:
        # It is counted where it was judged.
        return None
