"""What a run writes: metrics.jsonl, events.jsonl and heartbeat.json; the progress bar; wandb."""

import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from data_loaders.atomic_file import sync_folder, write_atomically
from data_loaders.progress_bar import progress_bar
from sat_udpdiff.config import Config, DataConfig
from sat_udpdiff.config_io import to_values
from sat_udpdiff.distributed import Place, node_name
from sat_udpdiff.training.watch import HEARTBEAT_FILE, LAG, Heartbeat, Lag, Status

METRICS_FILE = "metrics.jsonl"
EVENTS_FILE = "events.jsonl"
"""What does not happen every step: losses that are not finite or jump, with the samples' keys."""
VALIDATION = "validation"
"""`kind` of the lines that a validation writes; those of training have none."""
_MOST_DATA_WAIT = 0.05
"""Share of a step that may be spent waiting for data without a word."""
_LAGS_TOLD = 3
"""Logged steps in a row with the same slow rank: one alone may be chance."""
_CELL = re.compile(r"loss_(video|dense)_.*t_quartile_\d")


class RunLog:
    """Writes metrics on the main rank; on the others it does nothing.

    Args:
        config: Of the run.
        place: Of this rank.
        step: Steps done; lines of later steps, from before a crash, are cut off.

    Raises:
        ValueError: wandb cannot start.
    """

    def __init__(self, config: Config, *, place: Place, step: int) -> None:
        self._is_main = place.is_main
        self.validated_step = 0
        """Of the last validation whose line is there; 0 on other ranks than the first."""
        self._run = None
        self._config = config
        self._is_waiting = self._has_started = False
        self._lagging: int | None = None
        self._times_lagging = 0
        if not self._is_main:
            return
        output = Path(config.run.output)
        self._metrics, self._events = output / METRICS_FILE, output / EVENTS_FILE
        kept = cut_lines(self._metrics, step=step)
        cut_lines(self._events, step=step)
        validated = [line["step"] for line in kept if line.get("kind") == VALIDATION]
        self.validated_step = max(validated, default=0)
        self._heartbeat = Heartbeat(
            output,
            total_steps=config.train.steps,
            every_seconds=config.log.heartbeat_seconds,
            step=step,
        )
        self._heartbeat_failed = False
        steps = config.train.steps
        self._bar = progress_bar(total=steps, initial=step, desc="train", unit="step")
        mode = config.log.wandb
        if mode != "off":
            self._run = _start_wandb(config, mode=mode, output=output)

    def advance(self, step: int, *, loss: float) -> None:
        """One more step is done, with this loss over all ranks."""
        if self._is_main:
            self._bar.update()
            self._beat(lambda: self._heartbeat.step(step, loss=loss))

    def tell(self, message: str) -> None:
        """Print a line above the progress bar."""
        if self._is_main:
            self._bar.write(message, file=sys.stderr)

    def write(self, values: dict[str, Any]) -> None:
        """Append one logged step; values are JSON's, None for what does not apply."""
        if not self._is_main:
            return
        _append(self._metrics, values)
        self._bar.set_postfix_str(_postfix(values), refresh=False)
        self._tell_about_waiting(values)
        self._send(values, step=values["step"])

    def write_validation(
        self, values: Mapping[str, float | None], *, step: int, seconds: float
    ) -> None:
        """Append what a validation found, as a line of its own kind, and print it."""
        if not self._is_main:
            return
        line = {"step": step, "kind": VALIDATION, **values, "seconds": round(seconds, 4)}
        _append(self._metrics, line)
        self.validated_step = step
        self.tell(f"step {step}: validation: {_shown(values)} ({seconds:.1f} s)")
        self._send({f"{VALIDATION}/{name}": value for name, value in values.items()}, step=step)

    def write_event(self, message: str, *, step: int, kind: str, **facts: Any) -> None:
        """Print what happened in a step, and append it to events.jsonl with its facts."""
        if not self._is_main:
            return
        self.tell(f"step {step}: {message}")
        _append(self._events, {"step": step, "kind": kind, "message": message, **facts})

    def flush(self) -> None:
        """Have the disk keep what was written so far; called before a checkpoint is published.

        Otherwise a loss of power could leave a checkpoint without the lines of the steps before,
        which a resumed run does not write again.

        Raises:
            OSError: The disk is full or not writable.
        """
        if not self._is_main:
            return
        for path in (self._metrics, self._events):
            if path.exists():
                with naming(path), path.open("a", encoding="utf-8") as file:
                    os.fsync(file.fileno())
        with naming(self._metrics.parent):
            sync_folder(self._metrics.parent)

    def _beat(self, write: Callable[[], None]) -> None:
        """A heartbeat that cannot be written is told of once; training is worth more."""
        try:
            write()
        except OSError as error:
            if not self._heartbeat_failed:
                self.tell(f"{HEARTBEAT_FILE} cannot be written ({error}); training goes on")
            self._heartbeat_failed = True

    def _send(self, values: Mapping[str, Any], *, step: int) -> None:
        """To wandb, if it is on."""
        # A resume repeats the steps after the last checkpoint, which wandb has from before.
        if self._run is None or step < self._run.step:
            return
        shown = {name: value for name, value in values.items() if value is not None}
        try:
            self._run.log(shown, step=step)
        except Exception as error:  # its own process may have died
            self._run = None
            self.tell(f"wandb failed ({error}); {METRICS_FILE} goes on")

    def _tell_about_waiting(self, values: dict[str, Any]) -> None:
        """Say what to change, each time that the wait for data becomes too long."""
        share = values["data_wait_seconds"] / values["step_seconds"]
        if not self._has_started:
            # The first batch of a run has to be waited for.
            self._has_started = True
            return
        was_waiting, self._is_waiting = self._is_waiting, share > _MOST_DATA_WAIT
        if self._is_waiting and not was_waiting:
            advice = data_advice(self._config.data, cores=len(os.sched_getaffinity(0)))
            self.tell(
                f"step {values['step']}: {share:.0%} of the time went by waiting for data: {advice}"
            )

    def tell_about_lag(self, lag: Lag | None, *, hosts: Sequence[str], step: int) -> None:
        """Say which rank the others wait for, each time that one has lagged three times in a row.

        Args:
            lag: Of the slowest rank since the last logged step; None for one rank alone.
            hosts: By rank.
            step: Steps done.
        """
        if lag is not None and lag.ratio < LAG:
            lag = None
        is_same = lag is not None and lag.rank == self._lagging
        self._lagging = None if lag is None else lag.rank
        self._times_lagging = self._times_lagging + 1 if is_same else 1
        if lag is not None and self._times_lagging == _LAGS_TOLD:
            message = (
                f"rank {lag.rank} on {hosts[lag.rank]} takes {lag.ratio:.2f} times as long as the "
                "others for its forward passes, and all wait for it"
            )
            self.write_event(message, step=step, kind="slow_rank", rank=lag.rank)

    def say_end(self, status: Status) -> None:
        """Write into the heartbeat, for good, what became of the run."""
        if self._is_main:
            self._beat(lambda: self._heartbeat.write(status))

    def close(self, status: Status) -> None:
        """End the progress bar and the wandb run, and say how the run ended."""
        if self._is_main:
            self._bar.close()
        self.say_end(status)
        run, self._run = self._run, None
        if run is None:
            return
        try:
            run.finish()
        except Exception as error:  # what became of the training is another matter
            self.tell(f"wandb did not end ({error}); {METRICS_FILE} is complete")


def read_metrics(run: Path, *, kind: Literal["training", "validation"]) -> list[dict[str, Any]]:
    """Lines of a run's metrics.jsonl: those of logged steps, or those of validations."""
    lines = (run / METRICS_FILE).read_text(encoding="utf-8").splitlines()
    wanted = VALIDATION if kind == VALIDATION else None
    return [line for line in map(json.loads, lines) if line.get("kind") == wanted]


def data_advice(data: DataConfig, *, cores: int) -> str:
    """What to change when training waits for data, the most useful first."""
    if data.source == "latents":
        return "the cache is read too slowly: put it on a faster disk, or raise data.prefetch"
    ways = ["cache the latents (python -m data_loaders.latents, then data.source=latents)"]
    if data.num_workers < cores:
        ways.insert(0, f"raise data.num_workers (now {data.num_workers}; {cores} cores here)")
    if data.decoder == "pyav":
        ways.append(
            "store clips in the size that is trained, or let a GPU decode (data.decoder=dali)"
        )
    return "; or ".join(ways)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError of the block say which file it was about: a full disk does not."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def _append(path: Path, line: Mapping[str, Any]) -> None:
    with naming(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, allow_nan=False) + "\n")


def cut_lines(path: Path, *, step: int) -> list[dict[str, Any]]:
    """Drop the lines after `step`, and a half-written last line, so each step is there once.

    Returns:
        The lines that are kept; none where there is no file.
    """
    if not path.exists():
        return []
    lines, kept = [], []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            values = json.loads(line)
            is_kept = values["step"] <= step
        except (ValueError, KeyError, TypeError):
            continue
        if is_kept:
            lines.append(line + "\n")
            kept.append(values)
    partial = path.with_name(path.name + ".partial")
    with naming(path):
        with partial.open("w", encoding="utf-8") as file:
            file.write("".join(lines))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    return kept


def _postfix(values: dict[str, Any]) -> str:
    mfu = "" if values["mfu"] is None else f" mfu {values['mfu']:.1%}"
    loss = "none" if values["loss"] is None else f"{values['loss']:.4f}"
    return (
        f"loss {loss} lr {values['lr']:.2e} {values['step_seconds']:.2f} s/step "
        f"{values['samples_per_second']:.2f} samples/s "
        f"wait {values['data_wait_seconds']:.2f} s{mfu}"
    )


def _shown(values: Mapping[str, float | None]) -> str:
    """The numbers that fit a line of a terminal: not those of single cells."""
    chosen = {name: value for name, value in values.items() if not _CELL.fullmatch(name)}
    return ", ".join(
        f"{name} {'none' if value is None else format(value, '.4g')}"
        for name, value in chosen.items()
    )


def _start_wandb(config: Config, *, mode: Literal["offline", "online"], output: Path) -> Any:
    """A wandb run that goes on after a restart and sends the configuration alone.

    Folders are cut to their last part; code, git state, packages and host stay here.
    """
    import wandb

    private = wandb.Settings(
        disable_git=True,
        save_code=False,
        console="off",
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )
    try:
        return wandb.init(
            project=config.log.wandb_project,
            mode=mode,
            dir=str(output),
            id=_wandb_id(output),
            resume="allow",
            config=redact(to_values(config)),
            settings=private,
        )
    except wandb.Error as error:
        raise ValueError(
            f"log.wandb={mode}: cannot start ({error}); `wandb login`, or set offline or off"
        ) from error


def redact(values: Any) -> Any:
    """Configuration values without the folders in which things lie."""
    if isinstance(values, dict):
        return {key: redact(value) for key, value in values.items()}
    if isinstance(values, list):
        return [redact(value) for value in values]
    if isinstance(values, str) and values.startswith(("/", "~", "./", "../")):
        return os.path.basename(values.rstrip("/"))
    return values


def _wandb_id(output: Path) -> str:
    import secrets

    path = output / "wandb_id"
    if not path.exists():
        write_atomically(path, f"{secrets.token_hex(8)}\n".encode())
    return path.read_text(encoding="utf-8").strip()


def log_by_rank(place: Place) -> None:
    """Let the first rank log warnings, and the others errors alone, with rank and host before them.

    What is worth a warning, to a logger or to Python's `warnings`, is so on every rank, and is told
    once.
    """
    if place.is_main:
        level, who = logging.WARNING, ""
    else:
        who = f"[rank {place.rank} of {place.world_size} on {node_name()}] "
        level = logging.ERROR
        logging.captureWarnings(True)
    logging.basicConfig(level=level, format=f"{who}%(levelname)s %(name)s: %(message)s")
