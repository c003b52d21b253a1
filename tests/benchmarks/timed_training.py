"""train.py with a stopwatch at every part of it; for `bench_loop.py`, which reads what it writes.

    [torchrun ...] tests/benchmarks/timed_training.py RESULT.json ARGUMENTS_OF_TRAIN...

On the first rank it writes seconds by part: of the start, from the birth of the process to the end
of the first step, and of every later step, from one to the next. A part is counted without the
parts that it calls. On a GPU the device is waited for at the borders of a part.
"""

import functools
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

BORN = time.clock_gettime(time.CLOCK_BOOTTIME) - (
    int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
    / os.sysconf("SC_CLK_TCK")
)
"""Seconds since this process was made, as this module begins."""
BEGAN = time.perf_counter()


class Parts:
    """Seconds by part, each without those within it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.wait: Callable[[], None] = lambda: None
        self._inner = [0.0]

    def take(self) -> dict[str, float]:
        """What was counted since the last call."""
        taken, self.seconds = dict(self.seconds), defaultdict(float)
        return taken

    def time(self, owner: Any, name: str, *, part: str) -> None:
        """Count what `owner.name` takes from now on as `part`."""
        call = getattr(owner, name)

        @functools.wraps(call)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self.wait()
            self._inner.append(0.0)
            start = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self.wait()
                whole = time.perf_counter() - start
                self.seconds[part] += whole - self._inner.pop()
                self._inner[-1] += whole

        setattr(owner, name, timed)


class Steps:
    """Times of the start and of every step, written at the end."""

    def __init__(self, parts: Parts, *, path: Path) -> None:
        self._parts, self._path = parts, path
        self._start: dict[str, float] = {}
        self._steps: list[dict[str, float]] = []
        self._since: float | None = None

    def mark(self) -> None:
        """A step is about to begin; the time since the last such call is one step's."""
        now = time.perf_counter()
        parts = self._parts.take()
        if self._since is None:
            self._start = parts
        else:
            self._steps.append({"whole": now - self._since, **parts})
        self._since = now

    def end_start(self) -> None:
        """The first step is done."""
        if "whole" not in self._start:
            self._start |= {"whole": BORN + time.perf_counter() - BEGAN}

    def write(self) -> None:
        """Write the times, without the first step and the last, which ends with a checkpoint."""
        content = {"start": self._start, "steps": self._steps[1:]}
        self._path.write_text(json.dumps(content), encoding="utf-8")


def main() -> int:
    """Train; returns the exit status of `train.py`."""
    from sat_udpdiff import train
    from sat_udpdiff.training import loop
    from sat_udpdiff.training.ema import EMA
    from sat_udpdiff.training.engine import TrainEngine

    parts = Parts()
    parts.seconds["python and its packages"] = BORN + time.perf_counter() - BEGAN
    steps = Steps(parts, path=Path(sys.argv[1]))
    for name, part in (
        ("parse_cli", "settings"),
        ("init_distributed", "meeting the ranks"),
        ("hold", "run lock"),
        ("preflight", "preflight"),
        ("find_resume_point", "finding and checking the checkpoint"),
        ("check_weights", "weights"),
        ("Batches", "data"),
        ("load_encoders", "frozen networks"),
        ("make_validation", "held-out clips"),
        ("build_engine", "network and deepspeed"),
        ("restore_or_start", "optimizer"),
    ):
        parts.time(train, name, part=part)
    parts.time(loop.TimedBatches, "__next__", part="data")
    parts.time(loop, "make_example", part="example")
    parts.time(loop, "example_loss", part="forward")
    parts.time(TrainEngine, "backward", part="backward")
    parts.time(TrainEngine, "step", part="optimizer")
    parts.time(EMA, "update", part="averaged weights")
    parts.time(loop.ranks, "sums", part="agreeing with the other ranks")
    step = loop.train_step

    def marked(trainer: loop.Trainer, batches: Any) -> Any:
        if trainer.place.device.type == "cuda":
            import torch

            parts.wait = torch.cuda.synchronize
        steps.mark()
        report = step(trainer, batches)
        steps.end_start()
        return report

    loop.train_step = marked
    status = train.main(sys.argv[2:])
    if os.environ.get("RANK", "0") == "0":
        steps.write()
    return status


if __name__ == "__main__":
    sys.exit(main())
