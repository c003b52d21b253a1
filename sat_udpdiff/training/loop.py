"""The training loop: one optimizer step, and everything around it."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import torch
from torch import Tensor, nn

from data_loaders.batches import AnyBatch
from data_loaders.damage import DamageCount
from data_loaders.loader import Batches
from sat_udpdiff.config import Config, global_batch
from sat_udpdiff.diffusion.loss import LossTerms
from sat_udpdiff.diffusion.schedule import NoiseSchedule
from sat_udpdiff.distributed import Place, node_name
from sat_udpdiff.generation import Encoders
from sat_udpdiff.parallel.layout import Layout, lay_out
from sat_udpdiff.training import ranks
from sat_udpdiff.training.checkpoint import Saver
from sat_udpdiff.training.ema import EMA
from sat_udpdiff.training.engine import TrainEngine
from sat_udpdiff.training.example import DiffusionExample, example_loss, make_example
from sat_udpdiff.training.hang_watch import HangWatch
from sat_udpdiff.training.metrics import Meter, Stopwatch, measure, split_meters
from sat_udpdiff.training.optimizer import learning_rate
from sat_udpdiff.training.run_lock import RunLock
from sat_udpdiff.training.run_log import EVENTS_FILE, RunLog
from sat_udpdiff.training.state import TrainState
from sat_udpdiff.training.stopping import StopRequest
from sat_udpdiff.training.throughput import flops_per_sample, peak_flops
from sat_udpdiff.training.validation import ValidationReport
from sat_udpdiff.training.watch import ForwardClock, SpikeWatch, Status, find_lag
from sat_udpdiff.weights.run_folder import step_folder

RESUME = "to resume, run the same command again"

Validator = Callable[[nn.Module, int], ValidationReport]
"""Looks at the network after a step, on all ranks together; what goes wrong is in the report."""


class TrainingError(RuntimeError):
    """The run cannot go on; the message says where it stands and what to look at."""


class Outcome(Enum):
    """What a step did to the weights."""

    MOVED = "moved"
    BAD = "bad"
    """Nothing: a loss or a gradient was not finite."""
    RESCALED = "rescaled"
    """Nothing: fp16 gradients overflowed, and the loss scale was halved."""


@dataclass(kw_only=True)
class Trainer:
    """The parts of a run."""

    config: Config
    place: Place
    engine: TrainEngine
    encoders: Encoders | None
    """None where cached latents take their place."""
    schedule: NoiseSchedule
    state: TrainState
    ema: EMA | None = None
    lock: RunLock | None = None
    """On the first rank: that the run folder is this run's, which no checkpoint is made without."""
    stop: StopRequest = field(default_factory=StopRequest)
    hang: HangWatch | None = None
    """Entered; None = a run that stands still does so for ever."""
    forward_clock: ForwardClock = field(init=False)
    spikes: SpikeWatch = field(init=False)

    def __post_init__(self) -> None:
        self.forward_clock = ForwardClock(self.place.device)
        self.spikes = SpikeWatch(self.state.spike_watch)

    @property
    def layout(self) -> Layout:
        """Which samples this rank works on, and with whom."""
        return lay_out(self.config.parallel, place=self.place)

    @property
    def global_batch(self) -> int:
        """Samples per optimizer step, over all data ranks and micro-batches."""
        return global_batch(self.config, processes=self.place.world_size)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """What one step leaves behind; tensors stay on the device."""

    measured: Tensor
    """Of `measure`, over this rank's samples."""
    lr: float
    outcome: Outcome
    is_asked_to_stop: bool
    loss: float
    """Mean over all samples of all ranks; nan where one of them is not finite."""
    samples: list[tuple[str, float]]
    """Key and loss of this rank's samples."""

    @property
    def bad_keys(self) -> list[str]:
        """Of this rank's samples whose loss is not finite."""
        return [key for key, loss in self.samples if not math.isfinite(loss)]


def train_step(trainer: Trainer, batches: Iterator[AnyBatch]) -> StepReport:
    """One optimizer step over `train.accumulation_steps` micro-batches.

    The host waits for the device at one point, when the last backward is queued: whether every
    loss on every rank is finite decides if the weights move. deepspeed waits there for the gradient
    norm in any case.
    """
    config, engine, state = trainer.config, trainer.engine, trainer.state
    losses: list[Tensor] = []
    measured: list[Tensor] = []
    keys: list[str] = []
    for micro_step in range(config.train.accumulation_steps):
        batch = next(batches)
        example = _example(trainer, batch)
        terms = _forward(trainer, example)
        is_last = micro_step == config.train.accumulation_steps - 1
        engine.backward(terms.total.mean(), is_last=is_last)
        num_timesteps = config.diffusion.num_train_timesteps
        task = batch.task if batch.dense is not None else None
        measured.append(measure(terms, t=example.t, task=task, num_timesteps=num_timesteps))
        losses.append(terms.total.detach())
        keys += batch.keys
    samples = list(zip(keys, torch.cat(losses).tolist(), strict=True))
    finite = [loss for _, loss in samples if math.isfinite(loss)]
    words = (len(finite), len(samples), math.fsum(finite), bool(trainer.stop.name))
    words = [*map(float, words), trainer.layout.mark(keys)]
    num_finite, count, total, num_asked_to_stop, marks = ranks.sums(words, place=trainer.place)
    if marks:
        raise _different_samples(trainer, keys)
    is_bad = num_finite < count
    lr = learning_rate(state.step, config=config.optimizer, total_steps=config.train.steps)
    has_moved = engine.step(lr=lr, skip=is_bad)
    state.step += 1
    state.samples_seen += trainer.global_batch
    return StepReport(
        measured=torch.stack(measured).sum(0),
        lr=lr,
        outcome=_outcome(is_bad, has_moved=has_moved, precision=config.train.precision),
        is_asked_to_stop=num_asked_to_stop > 0,
        loss=math.nan if is_bad else total / count,
        samples=samples,
    )


def _example(trainer: Trainer, batch: AnyBatch) -> DiffusionExample:
    return make_example(
        batch,
        encoders=trainer.encoders,
        config=trainer.config,
        samples_seen=trainer.state.samples_seen,
        global_batch=trainer.global_batch,
    )


def _different_samples(trainer: Trainer, keys: list[str]) -> TrainingError:
    """Of ranks that work on the same samples and were given others; every rank calls it."""
    place, layout = trainer.place, trainer.layout
    first, *_ = layout.peers("sequence", "tensor")
    found = ranks.gather((first, f"rank {place.rank} on {node_name()}", keys), place=place)
    for peer, who, own in found:
        _, first_who, expected = found[peer]
        if own != expected:
            return TrainingError(
                f"step {trainer.state.step + 1}: {who} read {', '.join(own)}, and {first_who}, "
                f"whose samples it shares, {', '.join(expected)}: a clip is damaged for one alone; "
                f"look at its disk; {RESUME}"
            )
    raise AssertionError("marks differ where keys do")


def _forward(trainer: Trainer, example: DiffusionExample) -> LossTerms:
    with trainer.forward_clock:
        return example_loss(
            trainer.engine, example, schedule=trainer.schedule, config=trainer.config
        )


def _outcome(is_bad: bool, *, has_moved: bool, precision: str) -> Outcome:
    if has_moved:
        return Outcome.MOVED
    # fp16 finds its loss scale by overflowing now and then; a loss that is not finite is no such
    # overflow.
    is_scaling = precision == "fp16" and not is_bad
    return Outcome.RESCALED if is_scaling else Outcome.BAD


class TimedBatches:
    """Batches, and the seconds that their consumer waited for them."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        self._seconds = 0.0

    @property
    def damage(self) -> DamageCount:
        """Clips that this rank could not use so far."""
        return self._batches.damage

    def __iter__(self) -> Iterator[AnyBatch]:
        return self

    def __next__(self) -> AnyBatch:
        start = time.perf_counter()
        batch = next(self._batches)
        self._seconds += time.perf_counter() - start
        return batch

    def take_seconds(self) -> float:
        """Seconds since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds


def run(trainer: Trainer, batches: Batches, *, validate: Validator | None = None) -> bool:
    """Train to `train.steps`, or to the end of the step in which a signal asks to stop.

    SIGTERM, SIGUSR1 (a time limit, a preemption) and Ctrl-C save and return. A run that stands
    still for longer than `trainer.hang` allows ends the process, with the stack of every rank.

    Args:
        trainer: Restored to where the run stands.
        batches: Beginning with sample number `trainer.state.samples_seen`.
        validate: What is done every `validation.every_steps`; what goes wrong in it is reported
            and never ends the run. A signal puts it off until the run goes on.

    Returns:
        Whether all steps are done; if not, the same command goes on.

    Raises:
        TrainingError: More than `train.max_bad_steps` steps in a row were not finite.
        CheckpointError: A checkpoint could not be written; the one before is whole.
    """
    config, state = trainer.config, trainer.state
    row = split_meters(state.meters, place=trainer.place)
    meter = Meter(trainer.place.device, row=row)
    timed, watch = TimedBatches(batches), Stopwatch()
    log = RunLog(config, place=trainer.place, step=state.step)
    status: Status = "failed"
    hang = trainer.hang or HangWatch(minutes=0.0, place=trainer.place)
    guard = trainer.lock.check if trainer.lock else lambda: None
    saver = Saver(config, place=trainer.place, guard=guard, tell=log.tell)
    try:
        hang.last_words = lambda: log.say_end("hung")
        with trainer.stop.noted():
            while True:
                if validate is not None and _is_validation_due(trainer, log=log):
                    with hang.paused():
                        _validate(trainer, validate, watch=watch, log=log)
                if state.step >= config.train.steps:
                    break
                report = train_step(trainer, timed)
                saver.poll()
                _account(trainer, report, meter=meter, log=log)
                watch.add(data_wait_seconds=timed.take_seconds())
                is_end = report.is_asked_to_stop or state.step == config.train.steps
                if _is_due(state.step, config.log.every_steps) or state.step == config.train.steps:
                    _write(trainer, report, meter=meter, watch=watch, data=timed, log=log)
                if is_end or _is_due(state.step, config.checkpoint.every_steps):
                    log.flush()
                    _save(trainer, meter, saver=saver)
                if is_end:
                    saver.finish()
                hang.beat()
                if report.is_asked_to_stop and state.step < config.train.steps:
                    log.tell(f"stopped by a signal after step {state.step} and saved; {RESUME}")
                    break
        status = "finished" if state.step >= config.train.steps else "stopped"
        if status == "finished":
            newest = step_folder(Path(config.run.output), step=state.step)
            log.tell(f"all {config.train.steps:,} steps are done: {newest}")
    except TrainingError:
        saver.finish()  # all ranks are here
        raise
    finally:
        saver.close()
        log.close(status)
    return state.step >= config.train.steps


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _is_validation_due(trainer: Trainer, *, log: RunLog) -> bool:
    """After this step, unless its line is there: a run that goes on may lack that of its step."""
    step = trainer.state.step
    if step == 0 or not _is_due(step, trainer.config.validation.every_steps):
        return False
    return ranks.gather(log.validated_step, place=trainer.place)[0] != step


def _account(trainer: Trainer, report: StepReport, *, meter: Meter, log: RunLog) -> None:
    """Count the step as what it was."""
    state = trainer.state
    log.advance(state.step, loss=report.loss)
    if report.outcome is Outcome.BAD:
        _account_bad(trainer, report, log=log)
        return
    state.bad_in_a_row = 0
    if (times := trainer.spikes.observe(report.loss)) is not None:
        samples = _samples_of_all(trainer, report)
        message = f"the loss jumped to {report.loss:.4g}, {times:.1f} times the usual"
        log.write_event(message, step=state.step, kind="loss_spike", samples=samples)
    if report.outcome is Outcome.MOVED:
        grad_norm = trainer.engine.grad_norm()
        if trainer.layout.counts:
            meter.add(report.measured, grad_norm=grad_norm)
        if trainer.ema is not None:
            trainer.ema.update(trainer.engine.masters())
    else:
        state.overflow_steps += 1


def _account_bad(trainer: Trainer, report: StepReport, *, log: RunLog) -> None:
    state, most = trainer.state, trainer.config.train.max_bad_steps
    state.bad_steps += 1
    state.bad_in_a_row += 1
    samples = _samples_of_all(trainer, report)
    keys = sorted({key for key, loss in samples if loss is None})
    what = f"the loss of {', '.join(keys)}" if keys else "the gradient"
    message = f"{what} is not finite; the step was skipped"
    so_far = f"{state.bad_in_a_row} in a row, {state.bad_steps} in all, train.max_bad_steps={most}"
    log.write_event(f"{message} ({so_far})", step=state.step, kind="not_finite", samples=samples)
    if state.bad_in_a_row > most:
        raise TrainingError(
            f"step {state.step}: {message}, and train.max_bad_steps={most} before it were skipped, "
            f"too; the last checkpoint is as it was. Look at these samples ({EVENTS_FILE}), lower "
            "optimizer.lr, or use train.precision=fp32"
        )


def _samples_of_all(trainer: Trainer, report: StepReport) -> list[tuple[str, float | None]]:
    """Key and loss of all samples, each once; None for a loss that is not finite."""
    counted = report.samples if trainer.layout.counts else []
    gathered = ranks.gather(counted, place=trainer.place)
    samples = [sample for of_rank in gathered for sample in of_rank]
    return [(key, loss if math.isfinite(loss) else None) for key, loss in samples]


def _write(  # noqa: PLR0913 - what a line of the log is made of
    trainer: Trainer,
    report: StepReport,
    *,
    meter: Meter,
    watch: Stopwatch,
    data: TimedBatches,
    log: RunLog,
) -> None:
    """Log the means since the last logged step."""
    config, state, place = trainer.config, trainer.state, trainer.place
    peak = peak_flops(place.device, precision=config.train.precision)
    forward = trainer.forward_clock.take_seconds() / watch.steps
    times = watch.read(
        global_batch=trainer.global_batch,
        flops_per_sample=flops_per_sample(config),
        peak_flops=peak * place.world_size if peak else None,
    )
    of_ranks = ranks.gather(
        (times["data_wait_seconds"], data.damage.reasons, forward, node_name()),
        place=place,
    )
    # All ranks stand still until the slowest has its data.
    times["data_wait_seconds"] = max(wait for wait, *_ in of_ranks)
    damage = data.damage.joined(reasons for _, reasons, *_ in of_ranks)
    *_, forwards, hosts = zip(*of_ranks, strict=True)
    lag = find_lag(forwards)
    log.tell_about_lag(lag, hosts=hosts, step=state.step)
    values = {
        "step": state.step,
        **meter.means(),
        "lr": report.lr,
        "samples_seen": state.samples_seen,
        "bad_steps": state.bad_steps,
        "overflow_steps": state.overflow_steps,
        "damaged_clips": len(damage.reasons),
        **times,
        "rank_lag_seconds": None if lag is None else round(lag.seconds, 4),
    }
    log.write(values)
    damage.check()


def _save(trainer: Trainer, meter: Meter, *, saver: Saver) -> None:
    trainer.state.meters = ranks.gather(meter.row(), place=trainer.place)
    trainer.state.spike_watch = trainer.spikes.state()
    saver.save(trainer.engine, ema=trainer.ema, state=trainer.state)


def _validate(trainer: Trainer, validate: Validator, *, watch: Stopwatch, log: RunLog) -> None:
    """Log what a validation finds; a failure costs a message and nothing else."""
    state = trainer.state
    report = validate(trainer.engine.module, state.step)
    watch.leave_out(report.seconds)
    state.failed_validations += len(report.failures)
    for message in (*report.notes, *report.failures):
        log.tell(f"step {state.step}: {message}")
    if report.values:
        log.write_validation(report.values, step=state.step, seconds=report.seconds)
