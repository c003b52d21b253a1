"""Host memory that the ranks of a machine may take: what the kernel and the job's limits leave."""

import socket
from pathlib import Path

from sat_udpdiff.distributed import Place
from sat_udpdiff.training import ranks

# Of what is free; the loader and the operating system want some too.
_SHARE = 0.8
_ROOT = Path("/")


def lack_of_memory(need: int, *, place: Place) -> str | None:
    """What a machine cannot give its ranks, for a message; None if all machines can.

    Every rank calls it, and all get the same answer.

    Args:
        need: Bytes that this rank will take.
        place: Of this rank.
    """
    of_host: dict[str, list[tuple[int, int | None]]] = {}
    for host, taken, free in ranks.gather(
        (socket.gethostname(), need, available_bytes()), place=place
    ):
        of_host.setdefault(host, []).append((taken, free))
    for host, pairs in of_host.items():
        total = sum(taken for taken, _ in pairs)
        free = min((free for _, free in pairs if free is not None), default=None)
        if free is not None and total > _SHARE * free:
            return f"{total / 1e9:,.1f} GB of memory on {host}, where {free / 1e9:,.1f} GB are free"
    return None


def available_bytes(*, root: Path = _ROOT) -> int | None:
    """Memory that can be had without swapping, also below the limits of a job's control group.

    Args:
        root: Where proc and sys lie.

    Returns:
        Bytes; None where the system does not say.
    """
    found = [_free_memory(root / "proc/meminfo"), *_group_rooms(root)]
    known = [size for size in found if size is not None]
    return min(known) if known else None


def _free_memory(path: Path) -> int | None:
    for line in _lines(path):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _group_rooms(root: Path) -> list[int]:
    """Room in the control group (version 2) of this process, and in those it lies in."""
    rooms = []
    for line in _lines(root / "proc/self/cgroup"):
        if not line.startswith("0::/"):
            continue
        top = root / "sys/fs/cgroup"
        group = top / line.removeprefix("0::/")
        for folder in (group, *group.parents):
            if folder == top.parent:
                break
            room = _group_room(folder)
            rooms += [] if room is None else [room]
    return rooms


def _group_room(folder: Path) -> int | None:
    limit, used = (" ".join(_lines(folder / name)) for name in ("memory.max", "memory.current"))
    if not limit.isdecimal() or not used.isdecimal():
        return None
    stat = dict(line.split() for line in _lines(folder / "memory.stat"))
    # Files that were read lately count as used, and are let go when memory is wanted.
    return int(limit) - int(used) + int(stat.get("inactive_file", 0))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
