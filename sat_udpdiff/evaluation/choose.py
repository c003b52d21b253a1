"""Names of measures to measures; all that is missing is told at once, before anything runs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from sat_udpdiff.evaluation.entity_counts import EntityCounts
from sat_udpdiff.evaluation.measure import Measure
from sat_udpdiff.evaluation.pixel_measures import FrameConsistency, MapAgreement
from sat_udpdiff.evaluation.settings import EvaluationConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Around:
    """What measures are made with, besides their settings."""

    device: torch.device
    cache: Path
    """Folder for what a measure keeps besides its features: labels of large models."""


Factory = Callable[[EvaluationConfig, Around], list[Measure]]
"""Finds the weights and makes the measures of a name, loading nothing that takes long.

ValueError: weights are missing; names the setting, the file and where users get it.
"""

REGISTRY: Mapping[str, Factory] = {
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
