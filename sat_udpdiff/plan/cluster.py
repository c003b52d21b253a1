"""Nodes, network, disk and failures that a run is planned for, as options of `train.py --plan`."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from sat_udpdiff.config import ConfigError
from sat_udpdiff.plan.network import CARDS_GBIT

OPTIONS = ("nodes", "network", "disk", "mtbf_hours", "restart_minutes")
_NETWORK = "hdr"
_DISK_GB = 2.0
# Of one node. Llama 3's 2,048 nodes had 419 unplanned interruptions in 54 days (arXiv:2407.21783,
# section 3.3.4): one in 6,300 hours of a node.
_MTBF_HOURS = 5000.0
_RESTART_MINUTES = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """What is around the GPUs."""

    nodes: int
    network: str
    """As it was named."""
    network_rate: float
    """Bytes per second that a node sends to the others, by the data sheet."""
    disk_rate: float
    """Bytes per second that the disk takes from all ranks together."""
    mtbf_seconds: float
    """Between two failures of a node, in the mean."""
    restart_seconds: float
    """From a failure to the first step after it."""
    assumed: frozenset[str]
    """Of OPTIONS, those that were not given."""


def add_options(group: argparse._ArgumentGroup) -> None:
    """Add the options that `read_cluster` reads."""
    group.add_argument(
        "--nodes",
        metavar="N",
        help="how many the GPUs lie on, in equal numbers (default 1); with this or one of the "
        "options below the plan tells what nodes tell each other, and what saves and failures cost",
    )
    group.add_argument(
        "--network",
        metavar="NAME",
        help=f"between nodes: a card of each node ({', '.join(CARDS_GBIT)}), several as in 8xhdr, "
        f"or Gbit/s of a node (default {_NETWORK})",
    )
    group.add_argument(
        "--disk",
        metavar="GB/S",
        help="what the disk of run.output takes from all ranks together, 10^9 bytes per second "
        f"(default {_DISK_GB:g})",
    )
    group.add_argument(
        "--mtbf-hours",
        metavar="H",
        help=f"mean time between two failures of one node (default {_MTBF_HOURS:,.0f})",
    )
    group.add_argument(
        "--restart-minutes",
        metavar="M",
        help="from a failure to the first step after it, waiting for nodes included (default "
        f"{_RESTART_MINUTES:g})",
    )


def read_cluster(options: argparse.Namespace) -> Cluster | None:
    """What the options describe; None where none of them was given.

    Raises:
        ConfigError: A value cannot be used; one line with the option, expected and got.
    """
    given = {name: getattr(options, name) for name in OPTIONS}
    if all(value is None for value in given.values()):
        return None
    nodes = read_count(given["nodes"], option="--nodes")
    network = (given["network"] or _NETWORK).lower()
    disk = _above_zero(given["disk"], option="--disk", example="GB per second above 0, such as 2")
    mtbf = _above_zero(
        given["mtbf_hours"], option="--mtbf-hours", example="hours above 0, such as 5000"
    )
    restart = _above_zero(
        given["restart_minutes"], option="--restart-minutes", example="minutes above 0, such as 10"
    )
    return Cluster(
        nodes=nodes or 1,
        network=network,
        network_rate=_gbit(network) * 1e9 / 8,
        disk_rate=1e9 * (disk or _DISK_GB),
        mtbf_seconds=3600 * (mtbf or _MTBF_HOURS),
        restart_seconds=60 * (restart or _RESTART_MINUTES),
        assumed=frozenset(name for name, value in given.items() if value is None),
    )


def _gbit(network: str) -> float:
    """Gbit/s of a node: a card's name, `COUNTxNAME`, or the number itself."""
    cards = re.fullmatch(r"(?:([1-9][0-9]*)x)?([a-z0-9]+)", network)
    if cards and cards[2] in CARDS_GBIT:
        return int(cards[1] or 1) * CARDS_GBIT[cards[2]]
    expected = (
        f"{', '.join(CARDS_GBIT)}, several as in 8xhdr, or Gbit/s of a node above 0, such as 400"
    )
    found = _above_zero(network, option="--network", example=expected)
    assert found is not None  # there was a text
    return found


def _above_zero(text: str | None, *, option: str, example: str) -> float | None:
    return read_number(text, option=option, expected=example, is_valid=lambda value: value > 0)


def read_count(text: str | None, *, option: str) -> int | None:
    """A whole number of at least 1; None where the option was not given.

    Raises:
        ConfigError: It is none.
    """
    value = read_number(
        text,
        option=option,
        expected="a whole number of at least 1",
        is_valid=lambda value: value >= 1 and value == int(value),
    )
    return None if value is None else int(value)


def read_number(
    text: str | None, *, option: str, expected: str, is_valid: Callable[[float], bool]
) -> float | None:
    """The number of an option; None where it was not given.

    Raises:
        ConfigError: It is no finite number, or none that is valid.
    """
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or not is_valid(value):
        raise ConfigError(f"{option}: expected {expected}, got {text}")
    return value
