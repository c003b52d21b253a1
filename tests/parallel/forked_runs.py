"""Runs of train.py or sample.py on several processes, one after another, for one start.

    python forked_runs.py [sample] train RUNS.json

The names say what to import beforehand.
Each process of a run is a fork of this one, which has imported everything and started nothing: the
imports take longer than all steps of such a run. RUNS.json is a list of {"program":
"sat_udpdiff.train", "ranks": 4, "arguments": [..]}, where a program is a module with a `main`; the
first run that fails ends the program with what its processes wrote. A run with "fails": true must
fail; what it wrote is shown, and the next one follows.
"""

import importlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

from sat_udpdiff.free_port import free_port

_PATIENCE = 20.0
"""Seconds that the others have to end when one process has failed."""
_IMPORTS = {
    "train": (
        "deepspeed.runtime.engine",
        "deepspeed.runtime.zero.muon.muon_optimizer",
        "deepspeed.runtime.zero.stage3",
        "functorch.compile",
        "torch._dynamo",
        "torch.utils.cpp_extension",
    ),
    "sample": (
        "diffusers.models.autoencoders.autoencoder_kl_cogvideox",
        "transformers.models.t5.modeling_t5",
        "sat_udpdiff.parallel.network",
        "sat_udpdiff.weights.adapted",
    ),
}
"""By kind of program: what it imports only when it needs it, which it will."""


def main() -> int:
    """Make all runs; returns the exit status."""
    *kinds, plan = sys.argv[1:]
    for kind in kinds:
        import_for(kind)
    for run in json.loads(Path(plan).read_text(encoding="utf-8")):
        program = importlib.import_module(run["program"]).main
        with tempfile.TemporaryDirectory() as folder:
            call = partial(program, run["arguments"])
            is_well = succeeds(call, ranks=run["ranks"], logs=Path(folder))
            if not is_well:
                texts = [log.read_text(encoding="utf-8") for log in sorted(Path(folder).iterdir())]
                sys.stderr.write(f"{run}\n" + "\n".join(texts))
            if is_well == run.get("fails", False):
                return 1
    return 0


def import_for(kind: str) -> None:
    """All that a kind of program will import when it needs it."""
    for module in _IMPORTS[kind]:
        importlib.import_module(module)


def succeeds(call: Callable[[], int], *, ranks: int, logs: Path) -> bool:
    """Whether all processes of one run return 0."""
    port = free_port()
    common = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    children = set()
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            os.environ |= common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            os._exit(be_rank(call, log=logs / f"rank{rank}"))
        children.add(child)
    return wait_for(children)


def be_rank(call: Callable[[], int], *, log: Path) -> int:
    """One process of a run, which writes to `log`; returns its exit status."""
    with log.open("w", encoding="utf-8") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
        try:
            return call()
        except BaseException:
            traceback.print_exc()
            return 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()


def wait_for(children: set[int]) -> bool:
    """Whether all end with 0; those that wait for a failed one are ended."""
    is_well, deadline = True, float("inf")
    while children:
        child, status = os.waitpid(-1, os.WNOHANG)
        if child:
            children.discard(child)
            if status and is_well:
                is_well, deadline = False, time.monotonic() + _PATIENCE
        elif time.monotonic() > deadline:
            for other in children:
                os.kill(other, signal.SIGKILL)
            deadline = float("inf")
        else:
            time.sleep(0.02)
    return is_well


if __name__ == "__main__":
    sys.exit(main())
