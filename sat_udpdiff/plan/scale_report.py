"""What `--plan` says of nodes, network, saves and failures."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from sat_udpdiff.config import Config, global_batch
from sat_udpdiff.plan.cluster import Cluster
from sat_udpdiff.plan.machine import Machine
from sat_udpdiff.plan.network import REACHED, WITHIN_GB, Layout
from sat_udpdiff.plan.scaling import (
    TOLERATED,
    Scale,
    Survival,
    Way,
    computing_of,
    layout_of,
    links_of,
    node_bytes,
    plan_save,
    plan_survival,
    scale,
    ways_of,
)
from sat_udpdiff.plan.sizes import Sizes, count_kinds
from sat_udpdiff.plan.survival import SaveTime
from sat_udpdiff.plan.tables import days, rows, seconds, size_of
from sat_udpdiff.plan.traffic import Exchange, exchanges_of
from sat_udpdiff.plan.work import Work

HOW_TO_ASK = (
    "nodes, network, saves and failures: add --nodes N, --network NAME, --disk GB/S or "
    "--mtbf-hours H"
)
_NAME_WIDTH = 20
# A better interval is worth a word where it saves this share of the training.
_WORTH_A_WORD = 0.002


def cluster_section(config: Config, *, machine: Machine, sizes: Sizes, work: Work) -> str:
    """The section on what is around the GPUs; one line on how to ask where nobody did."""
    cluster = machine.cluster
    if cluster is None:
        return HOW_TO_ASK
    layout = layout_of(config, machine=machine)
    links = links_of(machine, cluster)
    exchanges = exchanges_of(config, sizes=sizes)
    save = plan_save(config, sizes=sizes, layout=layout, links=links, disk_rate=cluster.disk_rate)
    pairs = [
        ("network", _describe_network(machine, cluster)),
        *_traffic_rows(exchanges, layout=layout),
    ]
    lines = ["nodes, network, saves and failures (* = assumed)", _table(pairs)]
    after = _save_rows(save, config, sizes=sizes, layout=layout, cluster=cluster)
    peak = machine.peak_at(config.train.precision)
    if peak is None:
        after.append(("time lost", "unknown, as the time of a step is"))
    else:
        rate = peak * machine.mfu
        computing_on = partial(computing_of, config=config, work=work, rate=rate)
        scales = scale(exchanges, computing_on=computing_on, layout=layout, links=links)
        lines += [_scale_table(config, scales), ""]
        if layout.world_size > 1:
            ways = ways_of(config, machine=machine, links=links, rate=rate)
            lines += [_way_table(config, ways, machine=machine), ""]
        (current,) = [row for row in scales if row.layout.nodes == cluster.nodes]
        survival = plan_survival(
            config, save=save, step_seconds=current.step_seconds, cluster=cluster
        )
        run = config.train.steps * current.step_seconds
        after += _survival_rows(survival, cluster=cluster, run_seconds=run)
    return "\n".join([*lines, _table(after)])


def _table(pairs: Sequence[tuple[str, str]]) -> str:
    return rows(pairs, width=_NAME_WIDTH, indent="  ")


def _mark(cluster: Cluster, option: str) -> str:
    return "*" if option in cluster.assumed else ""


def _describe_network(machine: Machine, cluster: Cluster) -> str:
    gbit = cluster.network_rate * 8 / 1e9
    named = cluster.network + _mark(cluster, "network")
    between = f"{named}, {gbit:g} Gbit/s of a node" if named != f"{gbit:g}" else f"{gbit:g} Gbit/s"
    return (
        f"{between}; {WITHIN_GB[machine.gpu]:g} GB/s of a GPU within its node; {REACHED:.0%}* of "
        "both is reached"
    )


def _traffic_rows(exchanges: Sequence[Exchange], *, layout: Layout) -> list[tuple[str, str]]:
    """What each GPU takes part in, and what of it leaves a node."""
    if layout.world_size == 1:
        return [("in a step", "nothing: one GPU")]
    lines = []
    for exchange in exchanges:
        times = f"{exchange.times} x " if exchange.times > 1 else ""
        beside = (
            "all wait"
            if exchange.beside == "nothing"
            else f"beside the {exchange.beside} pass of its micro-batch"
        )
        lines.append(f"{exchange.kind} of {times}{size_of(exchange.size)}: "
                     f"{exchange.what}{_among(exchange, layout)}; {beside}")  # fmt: skip
    pairs = [("in a step" if not i else "", line) for i, line in enumerate(lines)]
    if layout.nodes > 1:
        flat, tall = node_bytes(exchanges, layout=layout)
        sent = f"{flat / 1e9:,.2f} GB in a step through flat rings"
        pairs.append(("a node sends", f"{sent}, {tall / 1e9:,.2f} GB through hierarchical ones"))
    return pairs


def _among(exchange: Exchange, layout: Layout) -> str:
    """Who takes part, where it is not all."""
    size = layout.group(exchange.among).size
    if size == layout.world_size:
        return ""
    who = "the GPUs of a sample" if exchange.among != "zero" else f"{size} GPUs"
    return f", among {who}" if size > 1 else ", of one GPU, which sends nothing"


def _scale_table(config: Config, scales: Sequence[Scale]) -> str:
    """A row for each number of nodes."""
    wanted = f"Gbit/s to wait {TOLERATED:.0%} at most"
    head = f"  {'nodes':>7}{'GPUs':>7}{'batch':>8}{'step':>10}{'waiting':>10}{'efficiency':>12}"
    lines = [f"{head}{wanted:>28}"]
    for row in scales:
        layout = row.layout
        batch = global_batch(config, processes=layout.world_size)
        lines.append(
            f"  {layout.nodes:>7}{layout.world_size:>7}{batch:>8}{seconds(row.step_seconds):>10}"
            f"{seconds(row.waiting_seconds):>10}{row.efficiency:>12.0%}{_wanted_cell(row):>28}"
        )
    return "\n".join(lines)


def _wanted_cell(row: Scale) -> str:
    if row.layout.nodes == 1:
        return "-"
    if row.wanted_rate is None:
        return "none: links within"
    return f"{row.wanted_rate * 8 / 1e9:,.1f}"


def _way_table(config: Config, ways: Sequence[Way], *, machine: Machine) -> str:
    """A row for each way to divide the run among the GPUs."""
    nodes = machine.cluster.nodes if machine.cluster else 1
    where = f"on {nodes} x {machine.gpus // nodes} GPUs"
    lines = [f"  {where:<26}{'batch':>8}{'step':>10}{'waiting':>10}{'samples/h':>12}"
             f"{'a GPU sends':>16}{'memory of each':>17}"]  # fmt: skip
    for way in ways:
        tensor, sequence = way.parallel.tensor_size, way.parallel.sequence_size
        split = f", tensor {tensor}" if tensor > 1 else ""
        split += f", sequence {sequence}" if sequence > 1 else ""
        is_own = (way.zero_stage, way.parallel) == (config.train.zero_stage, config.parallel)
        rate = 3600 * way.batch / way.step_seconds
        name = f"ZeRO {way.zero_stage}{split}"
        lacks = " (too much)" if way.memory > machine.memory else ""
        lines.append(
            f"  {name:<26}{way.batch:>8}{seconds(way.step_seconds):>10}"
            f"{seconds(way.waiting_seconds):>10}{rate:>12,.0f}{way.sent / 1e9:>13,.2f} GB"
            f"{way.memory / 1e9:>14,.1f} GB{lacks}{'  <- this run' if is_own else ''}"
        )
    return "\n".join(lines)


def _save_rows(
    save: SaveTime, config: Config, *, sizes: Sizes, layout: Layout, cluster: Cluster
) -> list[tuple[str, str]]:
    writers = min(layout.world_size, count_kinds(config))
    who = f"{writers} ranks write side by side" if writers > 1 else "one rank writes"
    disk = f"on a disk of {cluster.disk_rate / 1e9:g} GB/s{_mark(cluster, 'disk')}"
    writing = f"{who} for {seconds(save.writing)}* {disk}"
    size = f"{sizes.checkpoint_bytes / 1e9:,.2f} GB"
    if not save.asynchronous:
        return [
            ("a save", f"{size}: training waits {seconds(save.total)}, of which "
                       f"{seconds(save.gathering)}* to gather;"),
            ("", f"then {writing}"),
        ]  # fmt: skip
    return [
        ("a save", f"{size}: training waits {seconds(save.gathering)}* to gather, then goes on"),
        ("", f"while {writing};"),
        ("", f"the save counts {seconds(save.total)} after it began"),
    ]


def _survival_rows(
    survival: Survival, *, cluster: Cluster, run_seconds: float
) -> list[tuple[str, str]]:
    mtbf, chosen, best = survival.mtbf_seconds, survival.chosen, survival.best
    whole = run_seconds * (1 + chosen.loss.total)
    node = f"{cluster.mtbf_seconds / 3600:,.0f} h{_mark(cluster, 'mtbf_hours')}"
    restart = f"{cluster.restart_seconds / 60:g} min{_mark(cluster, 'restart_minutes')}"
    pairs = [
        ("failures", f"one in {node} of a node, in {days(mtbf / 86_400)} of the job; "
                     f"{whole / mtbf:.2g} expected in the run"),
        ("the run", f"{days(whole / 86_400)} with waiting, saves and failures"),
        ("time lost", f"{chosen.loss.total:.2%} of the training, saving every {chosen.steps:,} "
                      f"steps ({days(chosen.seconds / 86_400)}): {chosen.loss.saving:.2%} saves, "
                      f"{chosen.loss.failures:.2%} work"),
        ("", f"done again and restarts of {restart}"),
        ("", _otherwise(survival)),
        ("least lost", f"{best.loss.total:.2%}, saving every {best.steps:,} steps "
                       f"({days(best.seconds / 86_400)}), by Daly 2006"),
    ]  # fmt: skip
    if chosen.loss.total - best.loss.total > _WORTH_A_WORD:
        pairs.append(("", f"-> checkpoint.every_steps={best.steps}"))
    return pairs


def _otherwise(survival: Survival) -> str:
    """The loss with the other kind of saves."""
    other = "false" if survival.save.asynchronous else "true"
    loss = survival.otherwise.loss
    parts = f"{loss.saving:.2%} saves, {loss.failures:.2%} work and restarts"
    return f"with checkpoint.asynchronous={other} {loss.total:.2%}: {parts}"
