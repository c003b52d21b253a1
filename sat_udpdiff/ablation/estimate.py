"""What is to be done, and how long it will take by what was measured here."""

import json
import subprocess
from collections.abc import Iterator, Sequence
from statistics import fmean

from sat_udpdiff.ablation.processes import environment
from sat_udpdiff.ablation.settings import AblationConfig
from sat_udpdiff.ablation.timing import Timing
from sat_udpdiff.ablation.training import State
from sat_udpdiff.ablation.work import TRAIN, Ablation, Unit
from sat_udpdiff.encoders.source import TINY
from sat_udpdiff.tiny.recipe import REPOSITORY, startable

_PROGRAM_SECONDS = 10.0
"""Of a program until its first step: imports and weights, on two cores."""


def plan(ablation: Ablation, units: Sequence[Unit]) -> Iterator[str]:
    """Lines that say what would be done, and for how long.

    Raises:
        ValueError: The measurement failed; says why.
    """
    config = ablation.config
    left = [unit for unit in units if not ablation.is_done(unit)]
    trainings = [unit for unit in left if unit.training.state() is not State.DONE]
    judged = sum(
        len(list(ablation.unjudged(unit))) * len(unit.training.arm.judged) for unit in left
    )
    yield (
        f"{len(units)} trainings of {config.training.steps} steps, {len(trainings)} of them left; "
        f"{judged} sets of {config.evaluation.prompts.count} samples left to make and judge, one "
        f"for each checkpoint and task; {config.run.jobs} side by side"
    )
    for unit in left:
        steps = ", ".join(map(str, unit.steps))
        state = unit.training.state().value
        yield f"  {unit.training.name}: training {state}, judged at {steps}"
    if not left:
        return
    seconds = _of_finished(units)
    source = "by the mean of what is done here"
    if seconds is None:
        yield f"measuring a few steps, in {config.run.jobs} processes side by side"
        timing = measure(ablation, units[0])
        if timing is None:
            yield (
                "no estimate: nothing is done yet, and this network is not timed here; "
                "train.py --plan foretells a training"
            )
            return
        seconds = _foretell(config, timing)
        source = (
            f"by {config.run.jobs} measurements side by side: {timing.train_step:.2f} s per step, "
            f"{timing.sample_step:.3f} s per sampling step"
        )
    train, judge = seconds
    hours = (len(trainings) * train + judged * judge) / config.run.jobs / 3600
    yield (
        f"about {hours:.1f} hours: {train:.0f} s per training, {judge:.0f} s per set of samples "
        f"({source})"
    )


def _of_finished(units: Sequence[Unit]) -> tuple[float, float] | None:
    """Seconds of a training and of a set of samples, by those that are done."""
    trained, judged = [], []
    for unit in units:
        if unit.training.state() is State.DONE:
            for part, seconds in unit.seconds().items():
                if part == TRAIN:
                    trained.append(seconds)
                else:
                    judged.append(seconds / len(unit.training.arm.judged))
    return (fmean(trained), fmean(judged)) if trained and judged else None


def _foretell(config: AblationConfig, timing: Timing) -> tuple[float, float]:
    training = config.training
    sample = config.evaluation.sample.num_steps or timing.num_steps
    per_sample = sample * timing.sample_step + timing.sample_fixed
    return (
        _PROGRAM_SECONDS + training.steps * timing.train_step / training.ranks,
        _PROGRAM_SECONDS + config.evaluation.prompts.count * per_sample / training.ranks,
    )


def measure(ablation: Ablation, unit: Unit) -> Timing | None:
    """Time steps as they will be taken: as many processes at once as there will be.

    Returns:
        Means over the processes; None where the network is not the tiny one, whose encoders are
        here for sure.

    Raises:
        ValueError: A measurement failed.
    """
    training = unit.training
    config = training.config()
    if config.codec.weights != TINY or config.text.weights != TINY:
        return None
    micro = config.train.micro_batch_size
    words = ["python", "-m", "sat_udpdiff.ablation.timing", "--base", *training.base]
    words += [f"train.micro_batch_size={micro}"]
    found = _time(words, jobs=ablation.config.run.jobs)
    return Timing(
        train_step=fmean(timing.train_step for timing in found),
        sample_step=fmean(timing.sample_step for timing in found),
        sample_fixed=fmean(timing.sample_fixed for timing in found),
        num_steps=found[0].num_steps,
    )


def _time(words: Sequence[str], *, jobs: int) -> list[Timing]:
    """What so many processes of a command say; none of them outlives this call."""
    processes = [
        subprocess.Popen(  # noqa: S603 - no shell, our words
            startable(words),
            cwd=REPOSITORY,
            env=environment(jobs=jobs),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(jobs)
    ]
    try:
        said = [process.communicate() for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for process, (_, errors) in zip(processes, said, strict=True):
        if process.returncode:
            reason = (errors.strip().splitlines() or ["it says nothing"])[-1]
            raise ValueError(f"timing ended with status {process.returncode}: {reason}")
    return [Timing(**json.loads(output.splitlines()[-1])) for output, _ in said]
