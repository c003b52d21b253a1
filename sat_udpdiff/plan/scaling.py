"""A run on more nodes: its traffic, its steps, its saves and what failures cost it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sat_udpdiff.config import Config
from sat_udpdiff.plan.cluster import Cluster
from sat_udpdiff.plan.machine import Machine
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
from sat_udpdiff.plan.sizes import Sizes, count_kinds, count_parameters, derive_sizes
from sat_udpdiff.plan.survival import (
    Loss,
    SaveTime,
    best_interval,
    expected_loss,
    save_time,
)
from sat_udpdiff.plan.traffic import (
    Exchange,
    sequence_exchanges,
    share_of_rank,
    tensor_exchanges,
    zero_exchanges,
)
from sat_udpdiff.plan.work import Work, count_work

TOLERATED = 0.05
"""Share of a step that waiting for the network may take where a bandwidth is asked for."""
_FEWEST_ROWS = 8


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
    tensor: int
    sequence: int
    batch: int
    """Of all GPUs."""
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
    best: Interval


def exchanges_of(
    config: Config, *, sizes: Sizes, tensor: int = 1, sequence: int = 1
) -> list[Exchange]:
    """All that the ranks send each other in a step.

    Args:
        config: Any configuration.
        sizes: Of it.
        tensor: Ranks that share the weights of a layer.
        sequence: Ranks that share the tokens of a sample.
    """
    parameters = share_of_rank(count_parameters(config), model=config.model, tensor=tensor)
    return [
        *zero_exchanges(config, parameters=parameters, sequence=sequence),
        *tensor_exchanges(config, sizes=sizes, tensor=tensor, sequence=sequence),
        *sequence_exchanges(config, sizes=sizes, tensor=tensor, sequence=sequence),
    ]


def computing_of(
    config: Config, *, work: Work, rate: float, ranks_per_sample: int = 1
) -> Computing:
    """Seconds that a GPU computes.

    Ranks that share a sample share the network's work; each encodes the whole clip.

    Args:
        config: Batch and accumulation.
        work: Of a sample.
        rate: FLOP/s that a GPU reaches.
        ranks_per_sample: That share its work: tensor parallel times sequence parallel ones.
    """
    micro_batch = config.train.micro_batch_size / rate
    forward = micro_batch * work.forward / ranks_per_sample
    backward = micro_batch * (work.backward + work.recomputed + work.attention) / ranks_per_sample
    passes = forward + backward + micro_batch * work.encoding
    return Computing(
        forward=forward, backward=backward, step=passes * config.train.accumulation_steps
    )


def links_of(machine: Machine, cluster: Cluster) -> Links:
    """What collectives are taken to reach."""
    within = REACHED * 1e9 * WITHIN_GB[machine.gpu]
    return Links(within=within, between=REACHED * cluster.network_rate)


def scale(
    exchanges: Sequence[Exchange], *, computing: Computing, layout: Layout, links: Links
) -> list[Scale]:
    """The run on 1, 2, 4, 8, .. nodes, up to those of `layout` and at least 8, and on `layout`.

    Args:
        exchanges: Of a step.
        computing: On one GPU.
        layout: With the number of GPUs on each node.
        links: Between them.
    """
    counts = {layout.nodes}
    count = 1
    while count <= max(layout.nodes, _FEWEST_ROWS):
        counts.add(count)
        count *= 2
    inner = layout.tensor * layout.sequence
    found: list[Scale] = []
    for nodes in sorted(counts):
        if nodes * layout.gpus % inner:  # fewer GPUs than share a sample
            continue
        trial = replace(layout, nodes=nodes)
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


def other_ways(config: Config, *, layout: Layout, links: Links, rate: float) -> list[Way]:
    """The stages of ZeRO, then this one with layers or sequences split within nodes.

    Args:
        config: Any configuration.
        layout: Nodes, and the GPUs of each.
        links: Between them.
        rate: FLOP/s that a GPU reaches.
    """
    splits = [(stage, 1, 1) for stage in (1, 2, 3)]
    parts = [
        part for part in (2, 4, 8) if layout.gpus % part == 0 and config.model.num_heads % part == 0
    ]
    parts = sorted({*parts[:1], *parts[-1:]})  # the smallest and the largest
    own = config.train.zero_stage
    splits += [(own, part, 1) for part in parts] + [(own, 1, part) for part in parts]
    found = []
    for stage, tensor, sequence in splits:
        changed = replace(config, train=replace(config.train, zero_stage=stage))
        split = replace(layout, tensor=tensor, sequence=sequence)
        found.append(_way(changed, layout=split, links=links, rate=rate))
    return found


def _way(config: Config, *, layout: Layout, links: Links, rate: float) -> Way:
    train, tensor, sequence = config.train, layout.tensor, layout.sequence
    exchanges = exchanges_of(config, sizes=derive_sizes(config), tensor=tensor, sequence=sequence)
    computing = computing_of(
        config, work=count_work(config), rate=rate, ranks_per_sample=tensor * sequence
    )
    waiting = exposed_seconds(exchanges, computing=computing, layout=layout, links=links)
    return Way(
        zero_stage=train.zero_stage,
        tensor=tensor,
        sequence=sequence,
        batch=train.micro_batch_size * train.accumulation_steps * layout.copies,
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
    """Seconds of a checkpoint of this configuration."""
    # Stages 1 and 2 sum a tensor that is zero but for each rank's share.
    kind = "all-gather" if config.train.zero_stage == 3 else "all-reduce"
    gathering = Exchange(
        what="a kind of tensor, fp32",
        kind=kind,
        among="zero",
        size=float(sizes.network_bytes),
        times=1,
        beside="nothing",
    )
    return save_time(
        kinds=count_kinds(config),
        kind_bytes=float(sizes.network_bytes),
        ranks=layout.world_size,
        gather_seconds=wire(gathering, layout=layout).seconds(links),
        disk_rate=disk_rate,
    )


def plan_survival(
    config: Config, *, save: SaveTime, step_seconds: float, cluster: Cluster
) -> Survival:
    """What saves and failures cost, as configured and at best."""
    mtbf = cluster.mtbf_seconds / cluster.nodes

    def every(steps: int) -> Interval:
        loss = expected_loss(
            interval=steps * step_seconds,
            save=save.total,
            restart=cluster.restart_seconds,
            mtbf=mtbf,
        )
        return Interval(steps=steps, seconds=steps * step_seconds, loss=loss)

    best = _two_digits(best_interval(save=save.total, mtbf=mtbf) / step_seconds)
    return Survival(
        save=save,
        mtbf_seconds=mtbf,
        chosen=every(config.checkpoint.every_steps),
        # A run saves at its end in any case.
        best=every(min(best, config.train.steps)),
    )


def _two_digits(steps: float) -> int:
    """Steps as one would set them: two digits, then zeros; at least 1."""
    return max(1, int(float(f"{steps:.1e}")))
