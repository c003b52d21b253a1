"""Stage 2, second half: which clips are kept. Nothing is measured, so thresholds may change."""

import math
from dataclasses import dataclass, fields
from typing import NamedTuple

from data_loaders.panda_dense.clip_reader import SourceFacts
from data_loaders.panda_dense.measuring import Scores
from data_loaders.panda_dense.sidecars import ClipSource
from data_loaders.schema import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class FilterSettings:
    """What a clip must be; None = not asked for. What is unknown of a clip is not held against it.

    Motion is per step at 8 frames per second: other rates need other numbers.
    """

    min_matching_score: float | None = 0.43
    """Of Panda-70M's caption and clip: all of its 10M subset are above."""
    desirable: tuple[str, ...] | None = ("desirable",)
    """Values of Panda-70M's `desirable_filtering` that are taken: 80.5 % are 'desirable'; the rest
    are stills, screens in screens and recordings of computers."""
    max_shots: int | None = 1
    """Of Panda-70M's `shot_boundary_detection` (TransNetV2): an entity does not live through a
    cut."""
    min_source_fps: float | None = 8.0
    """Of the file: from fewer frames the clip's would be repeated."""
    min_source_rows: int | None = 360
    """Short side of the file's picture, pixels: what Panda-70M's downloader asks for; entities of
    smaller ones are too coarse for masks of 480 rows."""
    max_seconds: float | None = None
    """Of the clip: a long one has a caption of which the first seconds may show nothing."""
    max_cuts: int | None = 0
    """Measured: Panda-70M's time stamps are off by a frame now and then."""
    min_sharpness: float | None = 20.0
    """Out of focus, or enlarged from a fraction of the size; real clips have 130 to 1900."""
    max_dark: float | None = 0.6
    """Share clipped to black: night shots of which most is nothing."""
    max_bright: float | None = 0.5
    """Share clipped to white: slides, documents, overexposure."""
    min_luma: float | None = 0.05
    """Mean luma: underexposed without being clipped."""
    max_black_frames: float | None = 0.05
    """Share: two of 49 are a fade's end, more are a fade."""
    max_letterbox: float | None = 0.05
    """Share in black bars: a film of 2.35:1 in 16:9 has 0.24."""
    max_still: float | None = 0.5
    """Share of steps without change: slides, frozen streams."""
    min_motion: float | None = 0.0005
    """Mean flow: EasyAnimate's 3 pixels at 2 frames per second, a quarter of that at 8, over the
    diagonal of 720 rows. Nothing in such a clip needs more than one frame."""
    max_motion: float | None = 0.08
    """Mean flow: faster than optical flow and trackers follow; a train passing has 0.03.
    EasyAnimate's upper bound (8 pixels) would drop most clips with a moving camera."""
    min_motion_peak: float | None = None
    """Flow of the fastest 5 %; VBench calls a clip dynamic from 0.013 on (6 pixels of 256 rows,
    over the diagonal of 2:3). For motion data; it drops calm scenes that are good."""
    max_text: float | None = 0.02
    """Share in boxes of text, where it was measured: EasyAnimate's."""
    min_aesthetic: float | None = 4.0
    """Where it was measured: EasyAnimate's least."""


def check_filter(settings: FilterSettings, *, section: str) -> None:
    """Check the settings.

    Raises:
        DataError: Names the setting.
    """
    for field in fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, int | float) and not (math.isfinite(value) and value >= 0):
            raise DataError(f"{section}.{field.name}: expected a number >= 0, got {value}")
    if settings.desirable == ():
        raise DataError(f"{section}.desirable: expected at least one word or None, got none")
    least, most = settings.min_motion, settings.max_motion
    if least is not None and most is not None and least >= most:
        raise DataError(f"{section}.max_motion: expected more than min_motion, {least}, got {most}")


class Verdict(NamedTuple):
    """Why a clip is left out."""

    reason: str
    """One of `REASONS`; '' = it is kept."""
    detail: str
    """The number and the threshold; '' where it is kept."""


KEEP = Verdict("", "")

# (reason, score, setting, whether the setting is the most rather than the least)
_SOURCE_RULES = (("low matching score", "matching_score", "min_matching_score", False),)
_FACT_RULES = (
    ("low frame rate", "fps", "min_source_fps", False),
    ("small picture", "rows", "min_source_rows", False),
)
_SCORE_RULES = (
    ("shot cut", "cuts", "max_cuts", True),
    ("black frames", "black_frames", "max_black_frames", True),
    ("too dark", "dark", "max_dark", True),
    ("too dark", "luma", "min_luma", False),
    ("too bright", "bright", "max_bright", True),
    ("letterbox", "letterbox", "max_letterbox", True),
    ("blurred", "sharpness", "min_sharpness", False),
    ("still picture", "still", "max_still", True),
    ("little motion", "motion", "min_motion", False),
    ("little motion", "motion_peak", "min_motion_peak", False),
    ("much motion", "motion", "max_motion", True),
    ("text overlay", "text", "max_text", True),
    ("poor looks", "aesthetic", "min_aesthetic", False),
)
EARLY_REASONS = (
    "undesirable",
    "several shots",
    "long clip",
    *(rule[0] for rule in (*_SOURCE_RULES, *_FACT_RULES)),
)
"""Of verdicts that need no decoded frame."""
REASONS = (*EARLY_REASONS, *dict.fromkeys(rule[0] for rule in _SCORE_RULES))
"""Every `Verdict.reason` but ''."""


def verdict(
    scores: Scores | None,
    source: ClipSource,
    settings: FilterSettings,
    *,
    facts: SourceFacts | None = None,
) -> Verdict:
    """Whether a clip is kept, by all that is known of it so far.

    Args:
        scores: Of `Measurer.measure`; None = not measured yet: what the listing says may be enough
            to leave a clip out before its video is touched.
        source: The clip.
        settings: Thresholds.
        facts: Of `clip_reader.source_facts`; None = not read yet.

    Returns:
        The first reason against it, cheap ones first; `KEEP` where there is none.
    """
    return (
        _judge_source(source, settings)
        or (facts is not None and _judge_facts(facts, settings))
        or (scores is not None and _apply(scores, settings, rules=_SCORE_RULES))
        or KEEP
    )


def _judge_source(source: ClipSource, settings: FilterSettings) -> Verdict | None:
    if source.desirable and settings.desirable and source.desirable not in settings.desirable:
        return Verdict("undesirable", source.desirable)
    if source.shots is not None and settings.max_shots is not None:
        if source.shots > settings.max_shots:
            return Verdict("several shots", f"{source.shots} shots, above {settings.max_shots}")
    seconds = math.inf if source.end is None else source.end - source.start
    if settings.max_seconds is not None and math.inf > seconds > settings.max_seconds:
        return Verdict("long clip", f"{seconds:g} s, above {settings.max_seconds:g}")
    return _apply(source, settings, rules=_SOURCE_RULES)


def _judge_facts(facts: SourceFacts, settings: FilterSettings) -> Verdict | None:
    values = {"fps": facts.fps, "rows": min(facts.height, facts.width)}
    return _apply(values, settings, rules=_FACT_RULES)


def _apply(
    values: Scores | ClipSource | dict[str, float],
    settings: FilterSettings,
    *,
    rules: tuple[tuple[str, str, str, bool], ...],
) -> Verdict | None:
    for reason, name, setting, is_most in rules:
        value = values[name] if isinstance(values, dict) else getattr(values, name)
        limit = getattr(settings, setting)
        if value is None or limit is None:
            continue
        if value > limit if is_most else value < limit:
            side = "above" if is_most else "below"
            return Verdict(reason, f"{name} {value:.4g}, {side} {limit:g}")
    return None
