"""Counts what real deepspeed training hands to collectives, in a step and in a save.

    torchrun --nproc_per_node 2 tests/benchmarks/live_traffic.py CASES.json RESULT.json

CASES.json is a list of objects: `settings` (`key=value`, on top of configs/tiny.yaml) and
`deepspeed`, values put into the `zero_optimization` of deepspeed's own settings. Training is that
of `live_memory.py`. Rank 0 writes, for each case, bytes by kind of collective of one step and of
gathering every kind of tensor for a checkpoint.

Every collective of torch is seen, whoever calls it: the dispatcher of torch carries them out. The
size is that of the whole tensor: what an all-reduce or a reduce-scatter takes, what an all-gather
gives. Flags and norms, `words`, are counted apart from tensors.
"""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from live_memory import configure, random_batches
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sat_udpdiff.diffusion.schedule import make_schedule
from sat_udpdiff.distributed import Place, close_distributed, init_distributed
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
WORDS = 16
"""Bytes up to which something is a flag or a norm: no tensor of a network is as small."""
# Steps before the one that counts. Stage 3 records the order of modules in the first passes, and
# gathers by it from the third on; the others do the same from the first step.
WARM_UP = {1: 1, 2: 1, 3: 3}


class CollectiveBytes(TorchDispatchMode):
    """Bytes by kind of collective while code runs."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: Counter[str] = Counter()
        self.words: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation and note it if it is a collective."""
        if func.namespace == "c10d":
            name = func.__name__.split(".")[0]
            size = max((_bytes(argument) for argument in args), default=0)
            found = self.words if size <= WORDS else self.tensors
            found[KINDS.get(name, name)] += size
        return func(*args, **(kwargs or {}))


def _bytes(argument: Any) -> int:
    """Of the tensors in one argument of a collective: what it takes, or what it fills."""
    return sum(x.numel() * x.element_size() for x in tree_leaves(argument) if isinstance(x, Tensor))


def count(case: dict[str, Any], *, place: Place) -> dict[str, Any]:
    """Bytes of one step and of one save."""
    config = configure(case["settings"])
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
    batches = random_batches(config, place=place)
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


def main() -> None:
    """Count every case; rank 0 writes them."""
    cases = json.loads(Path(sys.argv[1]).read_text())
    place = init_distributed(device="cpu")
    results = [count(case, place=place) for case in cases]
    if place.is_main:
        Path(sys.argv[2]).write_text(json.dumps(results))
    close_distributed()


if __name__ == "__main__":
    main()
