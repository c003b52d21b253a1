"""A run on more nodes: its traffic, its steps, its saves and what failures cost it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sat_udpdiff.config import Config, ConfigError, ParallelConfig, global_batch
from sat_udpdiff.config_checks import validate
from sat_udpdiff.plan.cluster import Cluster
from sat_udpdiff.plan.machine import Machine
from sat_udpdiff.plan.memory import estimate_memory
from sat_udpdiff.plan.network import (
    REACHED,
    WITHIN_GB,
    Computing,
    Layout,
    Links,
    exposed_seconds,
    wanted_between,
    wire,
)
from sat_udpdiff.plan.offload import offload_seconds
from sat_udpdiff.plan.sizes import Sizes, count_kinds, derive_sizes
from sat_udpdiff.plan.survival import (
    TO_HOST_RATE,
    Loss,
    SaveTime,
    best_interval,
    expected_loss,
    writing_seconds,
)
from sat_udpdiff.plan.traffic import (
    Exchange,
    exchanges_of,
    gathering_exchanges,
    sample_exchanges,
)
from sat_udpdiff.plan.work import Work, count_work

TOLERATED = 0.05
"""Share of a step that waiting for the network may take where a bandwidth is asked for."""
_FEWEST_ROWS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Beside:
    """Seconds of a step in which GPUs do not compute."""

    offload: float
    """For `train.offload`."""
    waiting: float
    """For each other."""

    @property
    def total(self) -> float:
        """Both."""
        return self.offload + self.waiting


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """The run on some number of nodes, with as many samples per GPU as on one."""

    layout: Layout
    step_seconds: float
    waiting_seconds: float
    """Of them, those in which GPUs wait for each other."""
    efficiency: float
    """Samples per second and GPU, of those on one node."""
    wanted_rate: float | None
    """Bytes per second of a node, by the data sheet, at which waiting takes at most TOLERATED of
    the computing; 0 on one node; None where the links within nodes are too slow for it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """The run divided among its GPUs in another way, each GPU's micro-batch as it is."""

    zero_stage: int
    parallel: ParallelConfig
    batch: int
    """Of all GPUs."""
    memory: float
    """Bytes of a GPU, at the peak."""
    sent: float
    """Bytes that a GPU sends in a step."""
    step_seconds: float
    waiting_seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """Saving every so many steps."""

    steps: int
    seconds: float
    loss: Loss


@dataclass(frozen=True, kw_only=True, slots=True)
class Survival:
    """What saves and failures cost a run."""

    save: SaveTime
    mtbf_seconds: float
    """Of the job: any node's failure ends it."""
    chosen: Interval
    """`checkpoint.every_steps`."""
    otherwise: Interval
    """The same with the other value of `checkpoint.asynchronous`."""
    best: Interval


def layout_of(config: Config, *, machine: Machine) -> Layout:
    """Where the ranks are; all GPUs on one node where nobody said how many there are.

    Raises:
        ConfigError: `parallel` does not go with the GPUs; has all numbers.
    """
    nodes = machine.cluster.nodes if machine.cluster else 1
    parallel = config.parallel
    return Layout(
        nodes=nodes,
        gpus=machine.gpus // nodes,
        tensor=parallel.tensor_size,
        sequence=parallel.sequence_size,
    )


def computing_of(layout: Layout, *, config: Config, work: Work, rate: float) -> Computing:
    """Seconds that a GPU computes.

    Ranks that share a sample share the network's work; each encodes the whole clip.

    Args:
        layout: Where the ranks are.
        config: Batch, accumulation, ranks that share a sample, offload.
        work: Of a sample.
        rate: FLOP/s that a GPU reaches.
    """
    micro_batch, size = config.train.micro_batch_size / rate, config.parallel.size
    forward = micro_batch * work.forward / size
    backward = micro_batch * (work.backward + work.recomputed + work.attention) / size
    passes = forward + backward + micro_batch * work.encoding
    offload = offload_seconds(config, world_size=layout.world_size, gpus_of_node=layout.gpus)
    step = passes * config.train.accumulation_steps + offload
    return Computing(forward=forward, backward=backward, step=step)


def beside_of(config: Config, *, sizes: Sizes, work: Work, machine: Machine, rate: float) -> Beside:
    """What a step takes beside computing.

    Where nobody told of nodes, all GPUs are taken to share one, and what ZeRO sends is left to the
    share of the peak that is reached.
    """
    layout, cluster = layout_of(config, machine=machine), machine.cluster
    computing = computing_of(layout, config=config, work=work, rate=rate)
    if cluster is None:
        within = REACHED * 1e9 * WITHIN_GB[machine.gpu]
        links, exchanges = Links(within=within, between=within), sample_exchanges
    else:
        links, exchanges = links_of(machine, cluster), exchanges_of
    return Beside(
        offload=offload_seconds(config, world_size=layout.world_size, gpus_of_node=layout.gpus),
        waiting=exposed_seconds(
            exchanges(config, sizes=sizes), computing=computing, layout=layout, links=links
        ),
    )


def links_of(machine: Machine, cluster: Cluster) -> Links:
    """What collectives are taken to reach."""
    within = REACHED * 1e9 * WITHIN_GB[machine.gpu]
    return Links(within=within, between=REACHED * cluster.network_rate)


def scale(
    exchanges: Sequence[Exchange],
    *,
    computing_on: Callable[[Layout], Computing],
    layout: Layout,
    links: Links,
) -> list[Scale]:
    """The run on 1, 2, 4, 8, .. nodes, up to those of `layout` and at least 8, and on `layout`.

    Args:
        exchanges: Of a step.
        computing_on: What a GPU computes, on so many nodes.
        layout: With the number of GPUs on each node.
        links: Between them.
    """
    found: list[Scale] = []
    for nodes in _node_counts(layout):
        trial = replace(layout, nodes=nodes)
        computing = computing_on(trial)
        waiting = exposed_seconds(exchanges, computing=computing, layout=trial, links=links)
        step = computing.step + waiting
        wanted = wanted_between(
            exchanges, computing=computing, layout=trial, links=links, share=TOLERATED
        )
        found.append(
            Scale(
                layout=trial,
                step_seconds=step,
                waiting_seconds=waiting,
                efficiency=(found[0].step_seconds if found else step) / step,
                wanted_rate=None if wanted is None else wanted / REACHED,
            )
        )
    return found


def _node_counts(layout: Layout) -> list[int]:
    powers, count = [], 1
    while count <= max(layout.nodes, _FEWEST_ROWS):
        powers.append(count)
        count *= 2
    inner = layout.tensor * layout.sequence
    # Not those with fewer GPUs than share a sample.
    return sorted(n for n in {layout.nodes, *powers} if n * layout.gpus % inner == 0)


def ways_of(config: Config, *, machine: Machine, links: Links, rate: float) -> list[Way]:
    """The run as it is, the stages of ZeRO, and this one with weights or tokens shared in a node.

    Args:
        config: Of the run.
        machine: Nodes, and the GPUs of each.
        links: Between them.
        rate: FLOP/s that a GPU reaches.
    """
    gpus, own = layout_of(config, machine=machine).gpus, config.train.zero_stage
    parts = [n for n in (2, 4, 8) if gpus % n == 0]
    parts = sorted({*parts[:1], *parts[-1:]})  # the smallest and the largest
    splits = [(own, config.parallel.tensor_size, config.parallel.sequence_size)]
    splits += [(stage, 1, 1) for stage in (1, 2, 3)]
    splits += [(own, part, 1) for part in parts] + [(own, 1, part) for part in parts]
    found = []
    for stage, tensor, sequence in sorted(set(splits), key=lambda split: (*split[1:], split[0])):
        changed = _divided(config, stage=stage, tensor=tensor, sequence=sequence)
        if changed is not None:
            found.append(_way(changed, machine=machine, links=links, rate=rate))
    return found


def _divided(config: Config, *, stage: int, tensor: int, sequence: int) -> Config | None:
    """The configuration with its processes in another layout; None where that is refused."""
    parallel = ParallelConfig(tensor_size=tensor, sequence_size=sequence)
    train: Any = replace(config.train, zero_stage=stage)
    # Sample videos are made by ranks alone; they are no matter of traffic.
    validation = replace(config.validation, every_steps=0)
    changed = replace(config, train=train, parallel=parallel, validation=validation)
    try:
        validate(changed)
    except ConfigError:
        return None
    return changed


def _way(config: Config, *, machine: Machine, links: Links, rate: float) -> Way:
    train, sizes = config.train, derive_sizes(config)
    layout = layout_of(config, machine=machine)
    exchanges = exchanges_of(config, sizes=sizes)
    computing = computing_of(layout, config=config, work=count_work(config), rate=rate)
    waiting = exposed_seconds(exchanges, computing=computing, layout=layout, links=links)
    return Way(
        zero_stage=train.zero_stage,
        parallel=config.parallel,
        batch=global_batch(config, processes=layout.world_size),
        memory=estimate_memory(config, sizes=sizes, world_size=layout.world_size).total,
        sent=sum(wire(x, layout=layout).sent * x.times for x in exchanges),
        step_seconds=computing.step + waiting,
        waiting_seconds=waiting,
    )


def node_bytes(exchanges: Sequence[Exchange], *, layout: Layout) -> tuple[float, float]:
    """Bytes that leave a node in a step, with flat and with hierarchical rings."""
    flat = sum(wire(x, layout=layout).between * x.times for x in exchanges)
    tall = sum(wire(x, layout=layout, rings="hierarchical").between * x.times for x in exchanges)
    return flat, tall


def plan_save(
    config: Config, *, sizes: Sizes, layout: Layout, links: Links, disk_rate: float
) -> SaveTime:
    """Seconds of a checkpoint of this configuration.

    All ranks gather one kind of tensor after another, each for another writer.
    """
    kinds, size = count_kinds(config), float(sizes.network_bytes)
    shards = sum(wire(x, layout=layout).seconds(links) for x in gathering_exchanges(config))
    return SaveTime(
        gathering=kinds * (shards + size / TO_HOST_RATE),
        writing=writing_seconds(
            kinds=kinds, kind_bytes=size, ranks=layout.world_size, disk_rate=disk_rate
        ),
        asynchronous=config.checkpoint.asynchronous,
    )


def plan_survival(
    config: Config, *, save: SaveTime, step_seconds: float, cluster: Cluster
) -> Survival:
    """What saves and failures cost, as configured and at best."""
    mtbf = cluster.mtbf_seconds / cluster.nodes

    def every(steps: int, *, save: SaveTime = save) -> Interval:
        seconds = steps * step_seconds
        loss = expected_loss(save, interval=seconds, restart=cluster.restart_seconds, mtbf=mtbf)
        return Interval(steps=steps, seconds=seconds, loss=loss)

    best = _two_digits(best_interval(save, mtbf=mtbf) / step_seconds)
    chosen = config.checkpoint.every_steps
    return Survival(
        save=save,
        mtbf_seconds=mtbf,
        chosen=every(chosen),
        otherwise=every(chosen, save=replace(save, asynchronous=not save.asynchronous)),
        # A run saves at its end in any case.
        best=every(min(best, config.train.steps)),
    )


def _two_digits(steps: float) -> int:
    """Steps as one would set them: two digits, then zeros; at least 1."""
    return max(1, int(float(f"{steps:.1e}")))
