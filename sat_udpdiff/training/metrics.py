"""Numbers of a run: metrics.jsonl always, a progress bar on the main rank, wandb when asked.

`Meter` sums on the device, so that steps in between do not wait for it; `RunLog` writes.
"""

import json
import math
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float64, Int64
from torch import Tensor
from tqdm import tqdm

from sat_udpdiff.config import TASKS, Config, DataConfig
from sat_udpdiff.config_io import to_values
from sat_udpdiff.diffusion.loss import LossTerms
from sat_udpdiff.distributed import Place
from sat_udpdiff.training.ranks import sum_over_ranks

METRICS_FILE = "metrics.jsonl"
QUARTILES = 4
"""Parts of the timesteps by which losses are told."""
VALIDATION = "validation"
"""`kind` of the lines that a validation writes; those of training have none."""
_MOST_DATA_WAIT = 0.05
"""Share of a step that may be spent waiting for data without a word."""
_CELL = re.compile(r"loss_(video|dense)_.*t_quartile_\d")
_NAMES = (
    "loss",
    "loss_video",
    "loss_dense",
    *(f"loss_{task}" for task in TASKS),
    *(f"loss_t_quartile_{q + 1}" for q in range(QUARTILES)),
)


def measure(
    terms: LossTerms,
    *,
    t: Int64[Tensor, "b"],
    task: Int64[Tensor, "b"] | None,
    num_timesteps: int,
) -> Float64[Tensor, "two k"]:
    """Sum over samples (row 0) and number of samples (row 1) of every mean that is logged.

    By task and by quartile of the timestep it is the total loss. Stays on the device. Without a
    dense map `task` is None, and nothing is counted for it.
    """
    total, video, dense = (x.detach().double() for x in (terms.total, terms.video, terms.dense))
    quartile = t * QUARTILES // num_timesteps
    ones = torch.ones_like(total)
    if task is None:
        masks = [ones, ones, *[torch.zeros_like(total)] * (1 + len(TASKS))]
    else:
        of_task = [(task.to(total.device) == i).double() for i in range(len(TASKS))]
        masks = [ones, ones, ones, *of_task]
    masks += [(quartile == q).double() for q in range(QUARTILES)]
    values = torch.stack([total, video, dense] + [total] * (len(_NAMES) - 3))
    counts = torch.stack(masks)
    return torch.stack([(values * counts).sum(1), counts.sum(1)])


class Meter:
    """Sums of losses and gradient norms since the last logged step, on this rank.

    Args:
        device: Of the losses.
        row: Sums to go on from, of `row()`.
    """

    def __init__(self, device: torch.device, *, row: Sequence[float] = ()) -> None:
        self._sums = torch.zeros(2, len(_NAMES) + 1, dtype=torch.float64, device=device)
        if row:
            self._sums.copy_(torch.tensor(row, dtype=torch.float64).view_as(self._sums))

    def add(self, measured: Float64[Tensor, "two k"], *, grad_norm: Tensor) -> None:
        """Add one step. `grad_norm` is global, and so counts the same on every rank."""
        norm = torch.stack([grad_norm.double(), torch.ones_like(grad_norm, dtype=torch.float64)])
        self._sums += torch.cat([measured, norm.to(measured.device)[:, None]], dim=1)

    def row(self) -> list[float]:
        """This rank's sums, for a checkpoint."""
        return self._sums.flatten().tolist()

    def means(self) -> dict[str, float | None]:
        """Means over all ranks since the last call, None where there was no sample; resets.

        The one point at which the host waits for the device, so for logged steps only.
        """
        sums, counts = sum_over_ranks(self._sums).tolist()
        self._sums.zero_()
        names = (*_NAMES, "grad_norm")
        pairs = zip(names, sums, counts, strict=True)
        return {name: value / count if count else None for name, value, count in pairs}


def split_meters(rows: Sequence[Sequence[float]], *, place: Place) -> Sequence[float]:
    """This rank's row of a checkpoint's meters; on another number of ranks rank 0 takes all."""
    if len(rows) == place.world_size:
        return rows[place.rank]
    if not rows or not place.is_main:
        return ()
    return [math.fsum(column) for column in zip(*rows, strict=True)]


class Stopwatch:
    """Seconds and steps since the last logged step, and the share spent waiting for data."""

    def __init__(self) -> None:
        self._start, self._steps, self._wait = time.perf_counter(), 0, 0.0

    def add(self, *, data_wait_seconds: float) -> None:
        """Count one step."""
        self._steps += 1
        self._wait += data_wait_seconds

    def read(
        self, *, global_batch: int, flops_per_sample: float, peak_flops: float | None
    ) -> dict[str, float | None]:
        """Means per step since the last call; resets.

        Args:
            global_batch: Samples per step.
            flops_per_sample: Of forward and backward.
            peak_flops: Of all devices together; None gives no MFU.
        """
        now, steps = time.perf_counter(), max(1, self._steps)
        seconds = (now - self._start) / steps
        rate = global_batch / seconds
        result: dict[str, float | None] = {
            "step_seconds": round(seconds, 4),
            "data_wait_seconds": round(self._wait / steps, 4),
            "samples_per_second": round(rate, 4),
            "mfu": round(rate * flops_per_sample / peak_flops, 4) if peak_flops else None,
        }
        self._start, self._steps, self._wait = now, 0, 0.0
        return result

    def leave_out(self, seconds: float) -> None:
        """Time that just went by for something else than training."""
        self._start += seconds


class RunLog:
    """Writes metrics on the main rank; on the others it does nothing.

    Args:
        config: Of the run.
        place: Of this rank.
        step: Steps done; lines of later steps, from before a crash, are cut off.
    """

    def __init__(self, config: Config, *, place: Place, step: int) -> None:
        self._is_main = place.is_main
        self._run = None
        self._config = config
        self._is_waiting = self._has_started = False
        if not self._is_main:
            return
        output = Path(config.run.output)
        self._path = output / METRICS_FILE
        cut_metrics(self._path, step=step)
        self._bar = tqdm(
            total=config.train.steps, initial=step, desc="train", unit="step", dynamic_ncols=True
        )
        mode = config.log.wandb
        if mode != "off":
            self._run = _start_wandb(config, mode=mode, output=output)

    def advance(self) -> None:
        """One more step is done."""
        if self._is_main:
            self._bar.update()

    def tell(self, message: str) -> None:
        """Print a line above the progress bar."""
        if self._is_main:
            self._bar.write(message, file=sys.stderr)

    def write(self, values: dict[str, Any]) -> None:
        """Append one logged step; values are JSON's, None for what does not apply."""
        if not self._is_main:
            return
        self._append(values)
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
        self._append(line)
        self.tell(f"step {step}: validation: {_shown(values)} ({seconds:.1f} s)")
        self._send({f"{VALIDATION}/{name}": value for name, value in values.items()}, step=step)

    def _append(self, line: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")

    def _send(self, values: Mapping[str, Any], *, step: int) -> None:
        """To wandb, if it is on."""
        if self._run is None:
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

    def close(self) -> None:
        """End the progress bar and the wandb run."""
        if self._is_main:
            self._bar.close()
        if self._run is not None:
            self._run.finish()


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


def cut_metrics(path: Path, *, step: int) -> None:
    """Drop the lines after `step`, and a half-written last line, so each step is there once."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            is_kept = json.loads(line)["step"] <= step
        except (ValueError, KeyError, TypeError):
            is_kept = False
        if is_kept:
            kept.append(line + "\n")
    partial = path.with_name(path.name + ".partial")
    partial.write_text("".join(kept), encoding="utf-8")
    partial.replace(path)


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
        path.write_text(secrets.token_hex(8) + "\n", encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()
