"""Validation during training: sample videos, their scores, and losses under fixed noise."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from sat_udpdiff.config import Config, follows_fixed_noise, makes_sample_videos
from sat_udpdiff.distributed import Place
from sat_udpdiff.evaluation.choose import Around, make_measures
from sat_udpdiff.evaluation.measure import Measure
from sat_udpdiff.evaluation.settings import load
from sat_udpdiff.generation import Encoders
from sat_udpdiff.parallel.layout import lay_out
from sat_udpdiff.training import ranks
from sat_udpdiff.training.fixed_noise import FixedNoiseLosses
from sat_udpdiff.training.sample_scores import Findings, SampleScores
from sat_udpdiff.training.sample_videos import SampleVideos

_log = logging.getLogger(__name__)
_Share = TypeVar("_Share")


@dataclass(kw_only=True, slots=True)
class ValidationReport:
    """What one validation found, the same on every rank."""

    values: dict[str, float | None] = field(default_factory=dict)
    """Losses and scores by name; None is a number that is not finite."""
    notes: list[str] = field(default_factory=list)
    """Videos that a measure left out, with the reason."""
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Validation:
    """What is done every `validation.every_steps`; nothing of it changes the training.

    No random state is touched, and every module gets its mode back. What fails on one rank is
    reported, and that rank goes on to where the others wait for it.

    Args:
        place: Of this rank.
        losses: Held-out clips under fixed noise; None without them, as the others.
        videos: Sample videos.
        scores: Measures of these videos.
    """

    def __init__(
        self,
        *,
        place: Place,
        losses: FixedNoiseLosses | None = None,
        videos: SampleVideos | None = None,
        scores: SampleScores | None = None,
    ) -> None:
        self._place, self._losses, self._videos, self._scores = place, losses, videos, scores

    @torch.no_grad()
    def __call__(self, network: nn.Module, step: int) -> ValidationReport:
        """Judge the network as it is after a step; all ranks together. Errors become failures."""
        start = time.perf_counter()
        found = ValidationReport()
        with _evaluating(network):
            if self._losses is not None:
                self._measure_losses(network, losses=self._losses, found=found)
            if self._videos is not None:
                self._show(network, step, videos=self._videos, found=found)
        if bad := [name for name, value in found.values.items() if value is None]:
            expected = "validation: expected finite numbers, got others for"
            found.failures.append(f"{expected} {', '.join(bad)}")
        found.seconds = time.perf_counter() - start
        return found

    def _measure_losses(
        self, network: nn.Module, *, losses: FixedNoiseLosses, found: ValidationReport
    ) -> None:
        shares, reasons = self._on_all_ranks(lambda: losses(network))
        found.failures += [f"fixed-noise losses failed: {reason}" for reason in reasons]
        if not reasons:
            found.values |= losses.means(shares)

    def _show(
        self, network: nn.Module, step: int, *, videos: SampleVideos, found: ValidationReport
    ) -> None:
        findings = Findings()

        def make() -> None:
            for name, sample in videos(network, step):
                if self._scores is not None:
                    self._scores.judge(sample, name=name, findings=findings)

        _, reasons = self._on_all_ranks(make)
        found.failures += [f"sample videos failed: {reason}" for reason in reasons]
        if self._scores is None:
            return
        # Of all that were made, also where a rank did not get to its last one.
        shares = ranks.gather(findings, place=self._place)
        found.notes += [text for share in shares for text in share.excluded]
        values, failures = self._scores.join(shares)
        found.values |= values
        found.failures += failures

    def _on_all_ranks(self, do: Callable[[], _Share]) -> tuple[list[_Share], list[str]]:
        """What `do` returned on the ranks where it did not fail, and why it did on the others."""
        share = reason = None
        try:
            share = do()
        except Exception as error:  # whatever it is, days of training are worth more
            reason = f"{type(error).__name__}: {error}"
            _log.debug("validation failed", exc_info=True)
        of_ranks = ranks.gather((share, reason), place=self._place)
        reasons = [reason for _, reason in of_ranks if reason is not None]
        return [share for share, reason in of_ranks if reason is None], reasons


def make_validation(
    config: Config, *, encoders: Encoders | None, place: Place
) -> Validation | None:
    """All that `validation` asks for, ready; None where it asks for nothing.

    Raises:
        ValueError: Clips, measures or their weights are not there; names the setting.
    """
    losses = videos = scores = None
    if makes_sample_videos(config):
        assert encoders is not None
        videos = SampleVideos(config, encoders=encoders, place=place)
        scores = SampleScores(_measures(config, place=place), fps=config.data.fps)
    if follows_fixed_noise(config):
        # Ranks that go through the network together have the same clips.
        data_place = lay_out(config.parallel, place=place).data_place(place)
        losses = FixedNoiseLosses(config, encoders=encoders, place=data_place)
    if losses is None and videos is None:
        return None
    return Validation(place=place, losses=losses, videos=videos, scores=scores)


def _measures(config: Config, *, place: Place) -> list[Measure]:
    """The measures that `validation.measures` names, with the settings of an evaluation."""
    names, file = config.validation.measures, config.validation.evaluation
    if not names:
        return []
    try:
        settings = load([file] if file else [], [f"measures=[{', '.join(names)}]"])
        cache = Path(settings.run.cache or Path(config.run.output) / "features").expanduser()
        measures = make_measures(settings, around=Around(device=place.device, cache=cache))
    except ValueError as error:
        raise ValueError(f"validation.measures: {error}") from error
    return list(measures)


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """All modules in evaluation mode, then each in its own again."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
