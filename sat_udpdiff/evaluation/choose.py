"""Names of measures to measures; all that is missing is told at once, before anything runs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from sat_udpdiff.evaluation.edge_agreement import EdgeAgreement
from sat_udpdiff.evaluation.entity_counts import EntityCounts
from sat_udpdiff.evaluation.feature_weights import find_feature_weights
from sat_udpdiff.evaluation.frame_features import clip_features, dino_features
from sat_udpdiff.evaluation.fvd_measure import Fvd, FvdSettings
from sat_udpdiff.evaluation.measure import Measure
from sat_udpdiff.evaluation.motion_smoothness import AmtMidFrames, FlowMidFrames
from sat_udpdiff.evaluation.pixel_measures import FrameConsistency, MapAgreement
from sat_udpdiff.evaluation.pseudo_truth import PipelineDepth, PipelineEntities
from sat_udpdiff.evaluation.settings import EvaluationConfig
from sat_udpdiff.evaluation.truth_measures import (
    DepthAgainstTruth,
    DepthComparison,
    SegmentationAgainstTruth,
)
from sat_udpdiff.evaluation.vbench_measures import (
    BackgroundConsistency,
    MotionSmoothness,
    SubjectConsistency,
)
from sat_udpdiff.tiny.judge import Judge
from sat_udpdiff.tiny.judged import Eyes, distance, single_measures

_Shared = TypeVar("_Shared")


@dataclass(frozen=True, kw_only=True, slots=True)
class Around:
    """What measures are made with, besides their settings."""

    device: torch.device
    cache: Path
    """Folder for what a measure keeps besides its features: labels of large models."""
    shared: dict[str, Any] = field(default_factory=dict)
    """What several measures look through, by name: large models are loaded once."""

    def one(self, name: str, make: Callable[[], _Shared]) -> _Shared:
        """What is shared by that name; made where it is not there yet."""
        if name not in self.shared:
            self.shared[name] = make()
        return self.shared[name]


Factory = Callable[[EvaluationConfig, Around], list[Measure]]
"""Finds the weights and makes the measures of a name, loading nothing that takes long.

ValueError: weights are missing; names the setting, the file and where users get it.
"""


def _subject(config: EvaluationConfig, around: Around) -> list[Measure]:
    chosen = config.vbench
    weights = find_feature_weights(chosen.dino, network="dino", key="vbench.dino")
    network = dino_features(weights, device=around.device, chunk_frames=chosen.chunk_frames)
    return [SubjectConsistency(network)]


def _background(config: EvaluationConfig, around: Around) -> list[Measure]:
    chosen = config.vbench
    weights = find_feature_weights(chosen.clip, network="clip", key="vbench.clip")
    network = clip_features(weights, device=around.device, chunk_frames=chosen.chunk_frames)
    return [BackgroundConsistency(network)]


def _smoothness(config: EvaluationConfig, around: Around) -> list[Measure]:
    chosen = config.vbench
    if chosen.motion == "flow":
        return [MotionSmoothness(FlowMidFrames())]
    weights = find_feature_weights(chosen.amt, network="amt", key="vbench.amt")
    amt = AmtMidFrames(weights, package=chosen.package, device=around.device)
    return [MotionSmoothness(amt)]


def _fvd(config: EvaluationConfig, around: Around) -> list[Measure]:
    chosen = config.fvd
    try:
        return [
            Fvd.of_i3d(
                chosen.weights,
                protocol=chosen.protocol,
                settings=_fvd_settings(config),
                device=around.device,
            )
        ]
    except ValueError as error:
        raise ValueError(f"fvd.weights: {error}") from error


def _true_depth(config: EvaluationConfig, around: Around) -> PipelineDepth:
    folder = around.cache / "depth"
    return around.one(
        "depth", lambda: PipelineDepth(config.depth, device=around.device, folder=folder)
    )


def _depth(config: EvaluationConfig, around: Around) -> list[Measure]:
    chosen = config.depth_scores
    truth = _true_depth(config, around)
    return [DepthAgainstTruth(truth, align=chosen.align, scored=chosen.scored)]


def _depth_comparison(config: EvaluationConfig, around: Around) -> list[Measure]:
    chosen = config.depth_scores
    other = PipelineDepth(replace(config.depth, method="depth_anything"), device=around.device)
    truth = _true_depth(config, around)
    return [DepthComparison(truth, other=other, align=chosen.align, scored=chosen.scored)]


def _segmentation(config: EvaluationConfig, around: Around) -> list[Measure]:
    truth = PipelineEntities(
        config.segment,
        propagate=config.propagate,
        device=around.device,
        folder=around.cache / "entities",
    )
    return [SegmentationAgainstTruth(truth)]


def _tiny(config: EvaluationConfig, around: Around) -> list[Measure]:
    del config
    return single_measures(_eyes(around))


def _tiny_fvd(config: EvaluationConfig, around: Around) -> list[Measure]:
    return [distance(_eyes(around), settings=_fvd_settings(config))]


def _eyes(around: Around) -> Eyes:
    return around.one("eyes", lambda: Eyes(Judge.load()))


def _fvd_settings(config: EvaluationConfig) -> FvdSettings:
    return FvdSettings(min_videos=config.fvd.min_videos, resamples=config.fvd.resamples)


REGISTRY: Mapping[str, Factory] = {
    "subject_consistency": _subject,
    "background_consistency": _background,
    "motion_smoothness": _smoothness,
    "fvd": _fvd,
    "depth": _depth,
    "depth_comparison": _depth_comparison,
    "segmentation": _segmentation,
    "edge": lambda config, around: [EdgeAgreement()],
    "tiny": _tiny,
    "tiny_fvd": _tiny_fvd,
    "consistency": lambda config, around: [FrameConsistency()],
    "agreement": lambda config, around: [MapAgreement()],
    "entities": lambda config, around: [EntityCounts()],
}
"""By name in `measures`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """What can be measured here."""

    measures: tuple[Measure, ...]
    missing: Mapping[str, str]
    """Name in `measures` -> what it lacks, and where that is to be had."""


def choose_measures(config: EvaluationConfig, *, around: Around) -> Chosen:
    """The measures of a configuration that can be made, and why others cannot."""
    measures: list[Measure] = []
    missing: dict[str, str] = {}
    for name in config.measures:
        try:
            measures += REGISTRY[name](config, around)
        except (ValueError, ImportError) as error:
            missing[name] = str(error)
    return Chosen(measures=tuple(measures), missing=missing)


def make_measures(config: EvaluationConfig, *, around: Around) -> tuple[Measure, ...]:
    """The measures of a configuration.

    Raises:
        ValueError: Some cannot be made; a line for each, and how to go without them.
    """
    chosen = choose_measures(config, around=around)
    if chosen.missing:
        rest = ", ".join(name for name in config.measures if name not in chosen.missing)
        without = f"; without: measures=[{rest}]" if rest else ""
        reasons = "; ".join(f"{name}: {reason}" for name, reason in chosen.missing.items())
        raise ValueError(f"measures: cannot be made here: {reasons}{without}")
    return chosen.measures
