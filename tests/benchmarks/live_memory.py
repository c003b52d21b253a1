"""Trains two real steps per case and tells what tensors took, beside what the plan says.

    torchrun --nproc_per_node 2 tests/benchmarks/live_memory.py CASES.json RESULT.json

CASES.json is a list of lists of settings (`key=value`) on top of configs/tiny.yaml. Training is
that of `train.py` (deepspeed on gloo, the real step), from random latents. Rank 0 writes, for each
case, the planned bytes and the counted ones of the rank that has most.

What is counted are the storages of all tensors that live at once (`TensorBytes`), from before the
network is made. The resident memory of the process, which the kernel tells, is noted beside it: it
has the allocator's holes and lacks pages that nobody wrote to.
"""

import gc
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from data_loaders.batches import LatentBatch
from sat_udpdiff.config import Config
from sat_udpdiff.config_io import load_config
from sat_udpdiff.diffusion.schedule import make_schedule
from sat_udpdiff.distributed import Place, close_distributed, init_distributed
from sat_udpdiff.encoders.latents import LatentDistribution
from sat_udpdiff.parallel.layout import lay_out
from sat_udpdiff.plan.counting import TensorBytes, storage_id
from sat_udpdiff.plan.memory import Memory, estimate_memory
from sat_udpdiff.plan.sizes import derive_sizes
from sat_udpdiff.training import ranks
from sat_udpdiff.training.engine import MOMENTS, TrainEngine
from sat_udpdiff.training.loop import Trainer, train_step
from sat_udpdiff.training.setup import build_engine, restore_or_start

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = [str(CONFIGS / "tiny.yaml"), str(CONFIGS / "multitask.yaml")]
ALWAYS = ("data.source=latents", "init.weights=null", "validation.every_steps=0")


def configure(settings: list[str]) -> Config:
    """The configuration of a case."""
    return load_config(FILES, [*ALWAYS, *settings])


def random_batches(config: Config, *, place: Place) -> Iterator[LatentBatch]:
    """Micro-batches of noise in the sizes that cached latents would have."""
    frames, channels, height, width = derive_sizes(config).latent
    count, step = config.train.micro_batch_size, 0
    generator = torch.Generator().manual_seed(place.rank)

    def draw() -> LatentDistribution:
        shape = (count, frames, config.model.latent_channels, height, width)
        return LatentDistribution(
            mean=torch.randn(shape, generator=generator), logvar=torch.zeros(shape)
        )

    while True:
        first = (step * place.world_size + place.rank) * count
        step += 1
        shape = (count, config.model.text_length, config.model.text_dim)
        yield LatentBatch(
            task=torch.arange(count) % 2,
            captions=[""] * count,
            drop_caption=torch.zeros(count, dtype=torch.bool),
            keys=[f"{first + i}" for i in range(count)],
            numbers=torch.arange(first, first + count),
            video=draw(),
            dense=draw() if channels > config.model.latent_channels else None,
            text=torch.randn(shape, generator=generator),
        )


def measure(settings: list[str], *, place: Place) -> dict[str, Any]:
    """Counted and planned bytes of one case on this rank."""
    config = configure(settings)
    # Builds a network, once, which would take SAT's groups away from one that is cut.
    derive_sizes(config)
    gc.collect()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    with TensorBytes("cpu") as memory:
        engine = build_engine(config, place=place, resume_point=None)
        state, ema = restore_or_start(engine, config=config, resume_point=None)
        start = memory.peak
        trainer = Trainer(
            config=config,
            place=place,
            engine=engine,
            encoders=None,
            schedule=make_schedule(config.diffusion),
            state=state,
            ema=ema,
        )
        held = states_of(engine, masters=[] if ema is None else ema.shadow)
        peaks: dict[str, int] = {}
        with phases(engine, memory, peaks):
            layout = lay_out(config.parallel, place=place)
            batches = random_batches(config, place=layout.data_place(place))
            for _ in range(2):
                train_step(trainer, batches)
                if ema is not None:
                    ema.update(engine.masters())
        peaks["step"] = max(peaks["step"], memory.peak)
    counted = {"start": start, **peaks}
    grown = resident("VmHWM") - before
    del trainer, engine, state, ema
    gc.collect()
    planned = estimate_memory(
        config, sizes=derive_sizes(config), world_size=place.world_size, device_type="cpu"
    )
    return {
        "settings": settings,
        "states": held,
        "planned_states": {name: getattr(planned, name) for name in held},
        "counted": {**counted, "total": max(counted.values())},
        "planned": _phases(planned),
        "planned_host": planned.host,
        "resident": grown,
    }


def _phases(planned: Memory) -> dict[str, float]:
    found = {name: planned.held + value for name, value in planned.phases.items()}
    return {name: found[name] for name in ("start", "passes", "step")} | {"total": planned.total}


def states_of(engine: TrainEngine, *, masters: list[torch.Tensor]) -> dict[str, int]:
    """Bytes of what the live engine keeps between two steps; `masters` are those of the EMA."""
    optimizer = engine._engine.optimizer
    weights = [getattr(weight, "ds_tensor", weight) for weight in engine.module.parameters()]
    own = engine.masters()
    moments = [optimizer.optimizer.state[master][kind] for master in own for kind in MOMENTS]
    seen = {storage_id(weight) for weight in weights}
    # In fp32 and stage 3 the masters are the weights.
    own = [master for master in own if storage_id(master) not in seen]
    return {
        "weights": bytes_of(weights),
        "optimizer": bytes_of([*own, *moments]),
        "ema": bytes_of(masters),
    }


def bytes_of(tensors: list[torch.Tensor]) -> int:
    """Of their storages, each once."""
    return sum({storage_id(x): x.untyped_storage().nbytes() for x in tensors}.values())


class phases:  # noqa: N801 - reads as a statement
    """Notes the peak of the passes and of the optimizer step, each by itself."""

    def __init__(self, engine: TrainEngine, memory: TensorBytes, peaks: dict[str, int]) -> None:
        self._engine, self._memory, self._peaks = engine, memory, peaks
        self._step: Callable[..., bool] = engine.step

    def __enter__(self) -> None:
        self._memory.peak = self._memory.held
        self._engine.step = self._timed  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        self._engine.step = self._step  # type: ignore[method-assign]

    def _timed(self, **arguments: Any) -> bool:
        self._note("passes")
        moved = self._step(**arguments)
        self._note("step")
        return moved

    def _note(self, name: str) -> None:
        self._peaks[name] = max(self._peaks.get(name, 0), self._memory.peak)
        self._memory.peak = self._memory.held


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process, bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} in /proc/self/status")


def main() -> None:
    """Measure every case; rank 0 writes them."""
    cases = json.loads(Path(sys.argv[1]).read_text())
    place = init_distributed(device="cpu")
    results = []
    for settings in cases:
        of_ranks = ranks.gather(measure(settings, place=place), place=place)
        results.append(max(of_ranks, key=lambda result: result["counted"]["total"]))
    if place.is_main:
        Path(sys.argv[2]).write_text(json.dumps(results))
    close_distributed()


if __name__ == "__main__":
    main()
