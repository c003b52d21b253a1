"""Counts what real deepspeed training hands to collectives, in a step and in a save.

    python tests/benchmarks/live_traffic.py CASES.json RESULT.json

CASES.json is a list of objects: `ranks`, `settings` (`key=value`, on top of configs/tiny.yaml) and
`deepspeed`, values put into the `zero_optimization` of deepspeed's own settings. Training is that
of `live_memory.py`. RESULT.json holds for each case what rank 0 took part in during one step and
while every kind of tensor was gathered for a checkpoint: bytes by kind of collective and ranks that
took part, as in `all-reduce 0,1`.

Every collective of torch is seen, whoever calls it: the dispatcher of torch carries them out. The
size is that of the whole tensor: what an all-reduce or a reduce-scatter takes, what an all-gather
gives. Flags and norms, `words`, are counted apart from tensors; what a process tells itself alone
is not counted. The ranks are forks of this process, which imports once for all of them.
"""

import importlib
import json
import multiprocessing
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from live_memory import configure, random_batches
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sat_udpdiff.diffusion.schedule import make_schedule
from sat_udpdiff.distributed import Place, close_distributed, init_distributed
from sat_udpdiff.free_port import free_port
from sat_udpdiff.parallel.layout import lay_out
from sat_udpdiff.plan.sizes import derive_sizes
from sat_udpdiff.training import engine as engine_module
from sat_udpdiff.training.engine import MASTERS, MOMENTS, to_deepspeed
from sat_udpdiff.training.loop import Trainer, train_step
from sat_udpdiff.training.setup import build_engine, restore_or_start

KINDS = {
    "allreduce_": "all-reduce",
    "_allgather_base_": "all-gather",
    "allgather_": "all-gather",
    "_reduce_scatter_base_": "reduce-scatter",
    "reduce_scatter_": "reduce-scatter",
    "alltoall_base_": "all-to-all",
}
IMPORTS = (
    "deepspeed.runtime.engine",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "deepspeed.runtime.zero.stage3",
    "functorch.compile",
    "torch._dynamo",
    "torch.utils.cpp_extension",
)
"""What training imports when it needs it; here once, for all forks."""
WORDS = 64
"""Bytes up to which something is a flag or a norm: no tensor of a network is as small."""
# Steps before the one that counts. Stage 3 records the order of modules in the first passes, and
# gathers by it from the third on; the others do the same from the first step.
WARM_UP = {1: 1, 2: 1, 3: 3}


class CollectiveBytes(TorchDispatchMode):
    """Bytes by kind of collective and its ranks while code runs."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: Counter[str] = Counter()
        self.words: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation and note it if it is a collective."""
        if func.namespace == "c10d":
            ranks = _ranks(args)
            name = func.__name__.split(".")[0]
            size = max((_bytes(argument) for argument in args), default=0)
            found = self.words if size <= WORDS else self.tensors
            if len(ranks) > 1:
                found[f"{KINDS.get(name, name)} {','.join(map(str, ranks))}"] += size
        return func(*args, **(kwargs or {}))


def _ranks(args: Any) -> list[int]:
    """Who takes part: the group is the first of a collective's arguments that is an object."""
    group = next(argument for argument in args if isinstance(argument, torch.ScriptObject))
    return dist.get_process_group_ranks(dist.ProcessGroup.unbox(group))


def _bytes(argument: Any) -> int:
    """Of the tensors in one argument of a collective: what it takes, or what it fills."""
    return sum(x.numel() * x.element_size() for x in tree_leaves(argument) if isinstance(x, Tensor))


def count(case: dict[str, Any], *, place: Place) -> dict[str, Any]:
    """Bytes of one step and of one save."""
    config = configure(case["settings"])
    # Builds a network, once, which would take SAT's groups away from one that is cut.
    derive_sizes(config)
    _put_into_deepspeed(case.get("deepspeed", {}))
    engine = build_engine(config, place=place, resume_point=None)
    state, ema = restore_or_start(engine, config=config, resume_point=None)
    trainer = Trainer(
        config=config,
        place=place,
        engine=engine,
        encoders=None,
        schedule=make_schedule(config.diffusion),
        state=state,
        ema=ema,
    )
    batches = random_batches(config, place=lay_out(config.parallel, place=place).data_place(place))
    for _ in range(WARM_UP[config.train.zero_stage]):
        train_step(trainer, batches)
    with CollectiveBytes() as step:
        train_step(trainer, batches)
    with CollectiveBytes() as save:
        for kind in (MASTERS, *MOMENTS):
            engine.gather(kind, keep=False)
    return {"step": step.tensors, "words": step.words, "save": save.tensors}


def _put_into_deepspeed(values: dict[str, Any]) -> None:
    """Change what the engine tells deepspeed; the project's own settings leave these alone."""

    def changed(*args: Any, **kwargs: Any) -> dict[str, Any]:
        settings = to_deepspeed(*args, **kwargs)
        settings["zero_optimization"] |= values
        return settings

    engine_module.to_deepspeed = changed


def be_rank(rank: int, case: dict[str, Any], port: int, result: Path) -> None:
    """One process of a case; the first writes what it counted."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(case["ranks"])}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    place = init_distributed(device="cpu")
    counted = count(case, place=place)
    if place.is_main:
        result.write_text(json.dumps(counted))
    close_distributed()


def count_forked(case: dict[str, Any], *, result: Path) -> dict[str, Any]:
    """Run one case on its ranks; ends the program if one of them fails."""
    port = free_port()
    context = multiprocessing.get_context("fork")
    children = [
        context.Process(target=be_rank, args=(rank, case, port, result))
        for rank in range(case["ranks"])
    ]
    for child in children:
        child.start()
    while any(child.exitcode is None for child in children):
        if any(child.exitcode for child in children):  # the others would wait for it
            for child in children:
                child.kill()
            sys.exit(f"failed: {case}")
        time.sleep(0.05)
    if any(child.exitcode for child in children):
        sys.exit(f"failed: {case}")
    return json.loads(result.read_text())


def main() -> None:
    """Count every case."""
    for module in IMPORTS:
        importlib.import_module(module)
    cases, result = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    result.write_text(json.dumps([count_forked(case, result=result) for case in cases]))


if __name__ == "__main__":
    main()
