"""The GPUs that a run is planned for, as the options of `train.py --plan` name them."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from sat_udpdiff.config import Config, ConfigError
from sat_udpdiff.config_values import hint
from sat_udpdiff.plan import cluster
from sat_udpdiff.plan.cluster import Cluster, read_cluster, read_count, read_number
from sat_udpdiff.training.throughput import GPUS

_DEFAULT_GPUS = 8
_DEFAULT_GPU = "a100"
_OPTIONS = ("gpus", "gpu", "gpu_memory", "mfu", *cluster.OPTIONS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """The GPUs of a run."""

    gpus: int
    """On all nodes together."""
    gpu: str
    """Key of GPUS."""
    memory: float
    """Of one, in bytes."""
    peak_flops: float
    """Of one at 16 bits, FLOP/s."""
    mfu: float
    """Share of the peak that all that a step computes is expected to reach."""
    cluster: Cluster | None = None
    """What is around them; None where nobody asked."""

    def peak_at(self, precision: str) -> float | None:
        """Peak FLOP/s for a training precision; None for fp32, of which no table is kept."""
        return None if precision == "fp32" else self.peak_flops


@dataclass(frozen=True, kw_only=True, slots=True)
class Situation:
    """A configuration on a machine: what a plan is made for."""

    config: Config
    machine: Machine


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add `--plan` and the options that go with it. They are read by `read_machine`."""
    group = parser.add_argument_group(
        "planning", "print what the run will be, without data, a GPU or starting it"
    )
    group.add_argument(
        "--plan",
        action="store_true",
        help="print work, memory, time and advice; the exit status is 0 where it fits, 1 where it "
        "does not, 2 for a wrong option",
    )
    group.add_argument(
        "--gpus",
        metavar="N",
        help=f"how many on all nodes together (default {_DEFAULT_GPUS} per node)",
    )
    group.add_argument(
        "--gpu", metavar="TYPE", help=f"{', '.join(GPUS)} (default {_DEFAULT_GPU}, the paper's)"
    )
    group.add_argument(
        "--gpu-memory", metavar="GB", help="memory of one, 10^9 bytes (default: of the type)"
    )
    group.add_argument(
        "--mfu",
        metavar="SHARE",
        help="share of the GPU's peak that a step is expected to reach, recomputed layers and "
        "encoders included (default: 0.48 for A100, 0.4 for others)",
    )
    cluster.add_options(group)


def is_planning(options: argparse.Namespace) -> bool:
    """Whether `--plan` was given.

    Raises:
        ConfigError: One of its options was given without it.
    """
    if not options.plan:
        for name in _OPTIONS:
            if getattr(options, name) is not None:
                raise ConfigError(f"--{name.replace('_', '-')}: only together with --plan")
    return options.plan


def read_machine(options: argparse.Namespace) -> Machine:
    """The machine that the options describe.

    Raises:
        ConfigError: A value cannot be used; one line with the option, expected and got.
    """
    name = (options.gpu or _DEFAULT_GPU).lower()
    if name not in GPUS:
        raise ConfigError(f"--gpu: expected one of {', '.join(GPUS)}{hint(name, GPUS)}, got {name}")
    gpu = GPUS[name]
    around = read_cluster(options)
    nodes = around.nodes if around else 1
    count = read_count(options.gpus, option="--gpus")
    if count is not None and count % nodes:
        raise ConfigError(f"--gpus: expected a multiple of --nodes {nodes}, got {count}")
    memory_gb = read_number(
        options.gpu_memory,
        option="--gpu-memory",
        expected="GB above 0, such as 80",
        is_valid=lambda value: value > 0,
    )
    share = read_number(
        options.mfu,
        option="--mfu",
        expected="a share above 0, up to 1",
        is_valid=lambda value: 0 < value <= 1,
    )
    return Machine(
        gpus=_DEFAULT_GPUS * nodes if count is None else count,
        gpu=name,
        memory=1e9 * (gpu.memory_gb if memory_gb is None else memory_gb),
        peak_flops=gpu.peak_flops,
        mfu=gpu.assumed_mfu if share is None else share,
        cluster=around,
    )
