"""What `--plan` says of nodes, network, saves and failures."""

from __future__ import annotations

from collections.abc import Sequence

from sat_udpdiff.config import Config
from sat_udpdiff.plan.cluster import Cluster
from sat_udpdiff.plan.machine import Machine
from sat_udpdiff.plan.network import REACHED, WITHIN_GB, Layout
from sat_udpdiff.plan.scaling import (
    TOLERATED,
    Scale,
    Survival,
    Way,
    computing_of,
    exchanges_of,
    links_of,
    node_bytes,
    other_ways,
    plan_save,
    plan_survival,
    scale,
)
from sat_udpdiff.plan.sizes import Sizes, count_kinds
from sat_udpdiff.plan.survival import SaveTime
from sat_udpdiff.plan.tables import days, rows, seconds
from sat_udpdiff.plan.traffic import Exchange
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
    layout = Layout(nodes=cluster.nodes, gpus=machine.gpus // cluster.nodes)
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
        computing = computing_of(config, work=work, rate=rate)
        scales = scale(exchanges, computing=computing, layout=layout, links=links)
        lines += [_scale_table(config, scales), ""]
        if layout.world_size > 1:
            ways = other_ways(config, layout=layout, links=links, rate=rate)
            lines += [_way_table(config, ways, layout=layout), ""]
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
        lines.append(f"{exchange.kind} of {times}{exchange.size / 1e9:,.2f} GB: "
                     f"{exchange.what}; {beside}")  # fmt: skip
    pairs = [("in a step" if not i else "", line) for i, line in enumerate(lines)]
    if layout.nodes > 1:
        flat, tall = node_bytes(exchanges, layout=layout)
        sent = f"{flat / 1e9:,.2f} GB in a step through flat rings"
        pairs.append(("a node sends", f"{sent}, {tall / 1e9:,.2f} GB through hierarchical ones"))
    return pairs


def _scale_table(config: Config, scales: Sequence[Scale]) -> str:
    """A row for each number of nodes."""
    train = config.train
    wanted = f"Gbit/s of a node for {TOLERATED:.0%}"
    head = f"  {'nodes':>7}{'GPUs':>7}{'batch':>8}{'step':>10}{'waiting':>10}{'efficiency':>12}"
    lines = [f"{head}{wanted:>28}"]
    for row in scales:
        layout = row.layout
        batch = layout.copies * train.micro_batch_size * train.accumulation_steps
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


def _way_table(config: Config, ways: Sequence[Way], *, layout: Layout) -> str:
    """A row for each way to divide the run among the GPUs."""
    where = f"{layout.nodes} x {layout.gpus} GPUs"
    lines = [f"  {'on ' + where:<28}{'batch':>8}{'step':>10}{'waiting':>10}{'samples/h':>12}"
             f"{'a GPU sends':>16}"]  # fmt: skip
    for way in ways:
        split = f", tensor {way.tensor}" if way.tensor > 1 else ""
        split += f", sequence {way.sequence}" if way.sequence > 1 else ""
        is_own = way.zero_stage == config.train.zero_stage and not split
        rate = 3600 * way.batch / way.step_seconds
        name = f"ZeRO {way.zero_stage}{split}"
        lines.append(
            f"  {name:<28}{way.batch:>8}{seconds(way.step_seconds):>10}"
            f"{seconds(way.waiting_seconds):>10}{rate:>12,.0f}{way.sent / 1e9:>13,.2f} GB"
            f"{'  <- this run' if is_own else ''}"
        )
    return "\n".join(lines)


def _save_rows(
    save: SaveTime, config: Config, *, sizes: Sizes, layout: Layout, cluster: Cluster
) -> list[tuple[str, str]]:
    writers = min(layout.world_size, count_kinds(config))
    who = f"{writers} ranks side by side" if writers > 1 else "one rank"
    disk = f"{cluster.disk_rate / 1e9:g} GB/s{_mark(cluster, 'disk')}"
    return [
        ("a save", f"{sizes.checkpoint_bytes / 1e9:,.2f} GB in {seconds(save.total)}, for which "
                   f"training waits: {seconds(save.gathering)}* to gather,"),
        ("", f"{seconds(save.writing)}* to write, {who}, on a disk of {disk}"),
    ]  # fmt: skip


def _survival_rows(
    survival: Survival, *, cluster: Cluster, run_seconds: float
) -> list[tuple[str, str]]:
    mtbf, chosen, best = survival.mtbf_seconds, survival.chosen, survival.best
    whole = run_seconds * (1 + chosen.loss.total)
    node = f"{cluster.mtbf_seconds / 3600:,.0f} h{_mark(cluster, 'mtbf_hours')}"
    restart = f"{cluster.restart_seconds / 60:g} min{_mark(cluster, 'restart_minutes')}"
    pairs = [
        ("failures", f"one in {node} of a node, in {days(mtbf / 86_400)} of the job; "
                     f"{whole / mtbf:.2g} in the run"),
        ("the run", f"{days(whole / 86_400)} with waiting, saves and failures"),
        ("time lost", f"{chosen.loss.total:.2%} of the training, saving every {chosen.steps:,} "
                      f"steps ({days(chosen.seconds / 86_400)}): {chosen.loss.saving:.2%} saves, "
                      f"{chosen.loss.failures:.2%} work"),
        ("", f"done again and restarts of {restart}"),
        ("least lost", f"{best.loss.total:.2%}, saving every {best.steps:,} steps "
                       f"({days(best.seconds / 86_400)}), by Daly 2006"),
    ]  # fmt: skip
    if chosen.loss.total - best.loss.total > _WORTH_A_WORD:
        pairs.append(("", f"-> checkpoint.every_steps={best.steps}"))
    return pairs
