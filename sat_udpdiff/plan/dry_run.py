"""What `--dry-run` prints: the resolved configuration, its sizes, and its memory on few and many.

`--plan` says more, for one machine.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from sat_udpdiff.config import Config, global_batch
from sat_udpdiff.config_checks import keep_global_batch
from sat_udpdiff.config_io import dump_config, notes
from sat_udpdiff.distributed import read_launch_facts
from sat_udpdiff.plan.memory import Memory, estimate_memory
from sat_udpdiff.plan.sizes import Sizes, derive_sizes
from sat_udpdiff.plan.tables import (
    RECOMPUTED_LAYERS,
    describe_checkpoint,
    describe_run,
    flops,
    rows,
)

_LABELS = {
    "weights": "weights",
    "optimizer": "fp32 weights and moments",
    "ema": "average of the weights",
    "text_encoder": "text encoder",
    "codec": "video codec",
    "overhead": "CUDA context and workspaces",
    "start": "| start: weights twice",
    "encoding": "| encoding a clip",
    "passes": "| forward and backward",
    "step": "| optimizer step",
    "sampling": "| sample videos",
    "total": "peak (of the | rows, the largest)",
}


def dry_run_report(config: Config, *, world_sizes: Sequence[int] | None = None) -> str:
    """The text of `--dry-run`.

    Args:
        config: A checked configuration.
        world_sizes: Columns of the memory table; None: one sample's processes, 8 and what the
            launcher says. Those that cannot be divided into groups of a sample are left out.

    Raises:
        DataError: The manifest of shards or latents that are there cannot be read.
        ValueError: The codec does not fit the configuration.
    """
    launched = read_launch_facts(os.environ).world_size
    config = keep_global_batch(config, processes=launched)
    sizes = derive_sizes(config)
    size = config.parallel.size
    columns = sorted({n for n in world_sizes or (size, 8, launched) if n % size == 0})
    parts = [
        "# resolved configuration",
        dump_config(config),
        "# derived sizes",
        _format_sizes(config, sizes=sizes, world_size=launched),
        "",
        "# estimated memory per device, GB of 10^9 bytes",
        _format_memory(config, sizes=sizes, world_sizes=columns),
    ]
    parts += [f"note: {note}" for note in notes(config)]
    return "\n".join(parts) + "\n"


def _format_sizes(config: Config, *, sizes: Sizes, world_size: int) -> str:
    train = config.train
    batch = global_batch(config, processes=world_size)
    step = sizes.sample_flops * batch
    layers = RECOMPUTED_LAYERS[config.model.activation_checkpointing]
    pairs = [
        *describe_run(config, sizes=sizes, gpus=world_size, processes="processes"),
        ("forward", f"{flops(sizes.forward_flops)} per sample, the network alone"),
        ("step", f"{flops(step)} recomputing {layers}"),
        ("run", flops(step * train.steps)),
        ("checkpoint", describe_checkpoint(config, sizes=sizes)),
    ]
    return rows([(f"{name}:", text) for name, text in pairs], width=19)


def _format_memory(config: Config, *, sizes: Sizes, world_sizes: Sequence[int]) -> str:
    memories = [estimate_memory(config, sizes=sizes, world_size=count) for count in world_sizes]
    head = f"{'devices':<36}" + "".join(f"{count:>10}" for count in world_sizes)
    body = [
        f"{label:<36}" + "".join(f"{_cell(memory, name) / 1e9:>10.2f}" for memory in memories)
        for name, label in _LABELS.items()
    ]
    return "\n".join([head, *body])


def _cell(memory: Memory, name: str) -> float:
    return memory.phases[name] if name in memory.phases else getattr(memory, name)
