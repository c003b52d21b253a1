"""Before the first step: has every machine of the run what the run needs.

A week of a cluster is lost in other ways than by a wrong network: by one node with another torch,
a folder that lies on a node's own disk, a cable. Each rank looks around, what all found is told by
the first in one message that names nodes and ranks, and all end; or a line says that all is well.
"""

import hashlib
import secrets
import shutil
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from platform import python_version
from statistics import median

import torch
import torch.distributed as dist

import data_loaders
import sat_udpdiff
from data_loaders.shard_files import files_at
from sat_udpdiff.config import Config, global_batch
from sat_udpdiff.distributed import Place, node_name, spell_ranks
from sat_udpdiff.plan import derive_sizes, estimate_memory
from sat_udpdiff.plan.sizes import Sizes, count_checkpoints
from sat_udpdiff.plan.tables import size_of
from sat_udpdiff.training import ranks
from sat_udpdiff.weights.run_folder import step_folders

_PACKAGES = ("torch", "deepspeed", "SwissArmyTransformer", "safetensors", "udpdiff")
_PREFIX = ".preflight_"
_REPEATS = 3
_SECONDS_TO_APPEAR = 10.0
"""NFS may know for some seconds of no file where another node has just made one."""
_SLOW = 0.5
"""Share of the median at which a node's link is called slow."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """What one rank found."""

    node: str
    facts: Mapping[str, str]
    """What must be the same everywhere: name -> value."""
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, slots=True)
class Room:
    """Bytes for checkpoints, and how many of them they must hold."""

    free: int
    each: int
    """Of one checkpoint."""
    soon: int
    """Checkpoints to come until each new one takes the place of an old one."""
    still: int
    """Checkpoints to come that will lie there at once, up to the end of the run."""
    most: int
    """The same with those that are there already."""


def preflight(config: Config, *, place: Place) -> None:
    """Compare the machines, ask them for what the run needs, and measure how they reach each other.

    Every rank calls it, once; the folder of the run is as it was afterwards.

    Raises:
        SystemExit: With status 1 on all ranks, when the first one has told what is wrong.
    """
    faults, facts = _look_at_data(config)
    own = Findings(
        node=node_name(), facts={**_versions(), **_device(place), **facts}, faults=faults
    )
    found = ranks.gather(own, place=place)
    nodes = [one.node for one in found]
    _end_if_any(
        [*_differences(found), *_faults([one.faults for one in found])], nodes=nodes, place=place
    )
    sizes = derive_sizes(config)
    with _folder(Path(config.run.output), place=place) as token:
        faults = _look_at_folder(Path(config.run.output), token)
        room = measure_room(config, checkpoint_bytes=sizes.checkpoint_bytes)
        if place.is_main:
            faults += lack_of_room(config, room=room)
        seen = ranks.gather(faults, place=place)
    _end_if_any(_faults(seen), nodes=nodes, place=place)
    speed = _time_all_reduce(place)
    warnings = slow_nodes(_time_links(nodes, place=place))
    warnings += compare_memory(config, sizes=sizes, place=place)
    if place.is_main:
        warnings += foresee_full_disk(config, room=room)
        _say_all_is_well(config, nodes=nodes, device=own.facts["device"], speed=speed, room=room)
        for line in warnings:
            _say(f"warning: {line}")


def _versions() -> dict[str, str]:
    """Of Python, the packages, and the very code that runs, committed or not."""
    code = hashlib.sha256()
    for package in (sat_udpdiff, data_loaders):
        for folder in package.__path__:
            for path in sorted(Path(folder).rglob("*.py")):
                code.update(path.read_bytes())
    versions = {"Python": python_version(), "code of udpdiff": code.hexdigest()[:12]}
    return versions | {name: _version(name) for name in _PACKAGES}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # udpdiff itself, from a checkout on PYTHONPATH
        return "not installed"


def _device(place: Place) -> dict[str, str]:
    if place.device.type == "cpu":
        return {"device": "CPU"}
    return {
        "device": torch.cuda.get_device_name(place.device),
        "number of devices": str(torch.cuda.device_count()),
        "CUDA of torch": str(torch.version.cuda),
    }


def _look_at_data(config: Config) -> tuple[list[str], dict[str, str]]:
    """What is wrong with the manifests, and their fingerprints: copies on the nodes may differ."""
    data, held_out = config.data, config.validation
    named = (
        {"data.shards": data.shards} if data.source == "video" else {"data.latents": data.latents}
    )
    if held_out.every_steps:
        named |= {"validation.shards": held_out.shards, "validation.latents": held_out.latents}
    faults, facts = [], {}
    for key, name in named.items():
        if not name and not key.startswith("data."):
            continue
        try:
            content = files_at(name).read_manifest()
        except (ValueError, OSError) as error:
            faults.append(f"{key}={name}: {error}")
        else:
            facts[f"manifest of {key}"] = hashlib.sha256(content).hexdigest()[:12]
    return faults, facts


@contextmanager
def _folder(run: Path, *, place: Place) -> Iterator[str]:
    """The folder of the run with a token of the first rank in it, whose text is given to all."""
    made = [path for path in (run, *run.parents) if not path.exists()] if place.is_main else []
    token, fault = secrets.token_hex(8), ""
    own = run / f"{_PREFIX}{token}"
    try:
        if place.is_main:
            try:
                run.mkdir(parents=True, exist_ok=True)
                own.write_text(token, encoding="utf-8")
            except OSError as error:
                fault = f"run.output={run}: cannot be written to: {error.strerror}"
        token, fault = ranks.gather((token, fault), place=place)[0]
        _end_if_any([(0, fault)] if fault else [], nodes=[node_name()], place=place)
        yield token
    finally:
        # What could not be made, or no longer be changed, has been told.
        if place.is_main:
            with suppress(OSError):
                own.unlink(missing_ok=True)
        for folder in made:
            with suppress(OSError):
                folder.rmdir()


def _look_at_folder(run: Path, token: str) -> list[str]:
    """What keeps this rank from sharing the folder of the run with the first one."""
    path = run / f"{_PREFIX}{token}"
    deadline = time.monotonic() + _SECONDS_TO_APPEAR
    while not path.is_file() and time.monotonic() < deadline:
        time.sleep(0.2)
    try:
        is_shared = path.read_text(encoding="utf-8") == token
    except OSError:
        is_shared = False
    if not is_shared:
        return [
            f"run.output={run}: what the first rank wrote there is not seen here: "
            "choose a folder on a disk that all nodes share"
        ]
    own = run / f"{_PREFIX}{token}_{node_name()}_{secrets.token_hex(4)}"
    try:
        own.write_bytes(b"")
        own.unlink()
    except OSError as error:
        return [f"run.output={run}: cannot be written to: {error.strerror}"]
    return []


def measure_room(config: Config, *, checkpoint_bytes: int) -> Room:
    """What is free for the checkpoints of a run, and how many it will keep there.

    Args:
        config: Of the run.
        checkpoint_bytes: Of one checkpoint.
    """
    run, most = Path(config.run.output), count_checkpoints(config)
    present = len(step_folders(run))
    # One more than is kept lies there while it is written.
    soon = min(config.checkpoint.keep_last + 1, most) if config.checkpoint.keep_last else 1
    return Room(
        free=_free(run),
        each=checkpoint_bytes,
        soon=max(1, soon - present),
        still=max(1, most - present),
        most=most,
    )


def lack_of_room(config: Config, *, room: Room) -> list[str]:
    """A line where the next checkpoints have no room: the run would end with the first of them."""
    if room.soon * room.each <= room.free:
        return []
    return [f"run.output={config.run.output}: {_spell_room(config, room=room, count=room.soon)}"]


def foresee_full_disk(config: Config, *, room: Room) -> list[str]:
    """A line where there is room for the next checkpoints and not for all that will be kept."""
    if room.still * room.each <= room.free:
        return []
    return [f"the disk is full before the end: {_spell_room(config, room=room, count=room.still)}"]


def _spell_room(config: Config, *, room: Room, count: int) -> str:
    keep = config.checkpoint
    return (
        f"{size_of(room.free)} are free, a checkpoint takes {size_of(room.each)}, and "
        f"{count} more of them (checkpoint.keep_last={keep.keep_last}, "
        f"keep_every={keep.keep_every}) take {size_of(count * room.each)}"
    )


def _free(folder: Path) -> int:
    return shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free


def _time_all_reduce(place: Place) -> str:
    """The fastest of some all-reduces over all ranks, in words; empty for one rank alone."""
    count = place.world_size
    if count == 1:
        return ""
    numbers = torch.zeros(1 << (24 if place.device.type == "cuda" else 20), device=place.device)
    times = []
    for _ in range(1 + _REPEATS):
        start = time.perf_counter()
        dist.all_reduce(numbers)
        _synchronise(place)
        times.append(time.perf_counter() - start)
    seconds = min(times[1:])  # the first one makes the connections
    rate = 2 * (1 - 1 / count) * numbers.nbytes / seconds
    size = f"{numbers.nbytes / 1e6:.0f} MB"
    return f"all-reduce of {size} in {seconds * 1e3:.1f} ms ({rate / 1e9:.2f} GB/s)"


def _time_links(nodes: Sequence[str], *, place: Place) -> dict[str, float]:
    """Bytes per second of each node's best link to one of two others; {} for fewer than three.

    An all-reduce is as fast as its slowest link everywhere. So the first ranks of the nodes send to
    each other in pairs, and then in other pairs: a node that is slow in both is slow itself.
    """
    firsts = list({node: nodes.index(node) for node in nodes}.values())
    if len(firsts) < 3:
        return {}
    best = 0.0
    if place.rank in firsts:
        number = firsts.index(place.rank)
        for shift in (0, 1):
            position = (number + shift) % len(firsts)
            partner = (position ^ 1) - shift
            if max(position, position ^ 1) < len(firsts):
                best = max(best, _exchange(firsts[partner % len(firsts)], place=place))
    rates = ranks.gather(best, place=place)
    return {nodes[first]: rates[first] for first in firsts if rates[first]}


def _exchange(other: int, *, place: Place) -> float:
    """Bytes per second to another rank and back."""
    numbers = torch.zeros(1 << (22 if place.device.type == "cuda" else 18), device=place.device)
    seconds = 0.0
    for _ in range(2):  # the first makes the connection
        start = time.perf_counter()
        for is_sending in (place.rank < other, place.rank > other):
            dist.send(numbers, dst=other) if is_sending else dist.recv(numbers, src=other)
        _synchronise(place)
        seconds = time.perf_counter() - start
    return 2 * numbers.nbytes / seconds


def _synchronise(place: Place) -> None:
    if place.device.type == "cuda":
        torch.cuda.synchronize(place.device)


def slow_nodes(rates: Mapping[str, float]) -> list[str]:
    """A line for each node whose link is far below the median.

    Args:
        rates: Bytes per second by node.
    """
    if not rates:
        return []
    middle = median(rates.values())
    return [
        f"the link of {node} does {rate / 1e9:.2f} GB/s, the median is {middle / 1e9:.2f}: every "
        "step waits for it"
        for node, rate in rates.items()
        if rate < _SLOW * middle
    ]


def compare_memory(config: Config, *, sizes: Sizes, place: Place) -> list[str]:
    """A line where the plan needs more memory than a GPU has; its figures are estimates."""
    if place.device.type == "cpu":
        return []
    planned = estimate_memory(config, sizes=sizes, world_size=place.world_size).total
    memory = torch.cuda.get_device_properties(place.device).total_memory
    if planned <= memory:
        return []
    return [
        f"by the plan a GPU needs {planned / 1e9:.1f} GB, and has {memory / 1e9:.1f}; train.py "
        "--plan says what to change"
    ]


def _differences(found: Sequence[Findings]) -> list[tuple[int, str]]:
    """(rank, what differs from most others)."""
    faults = []
    for name in dict.fromkeys(name for one in found for name in one.facts):
        values = [one.facts.get(name) for one in found]
        usual = Counter(value for value in values if value is not None).most_common(1)[0][0]
        faults += [
            (rank, f"{name} is {value}, and {usual} on the others")
            for rank, value in enumerate(values)
            if value not in (usual, None)
        ]
    return faults


def _faults(of_ranks: Sequence[Sequence[str]]) -> list[tuple[int, str]]:
    return [(rank, fault) for rank, faults in enumerate(of_ranks) for fault in faults]


def describe(faults: Sequence[tuple[int, str]], *, nodes: Sequence[str]) -> str:
    """A line for each node and each thing that is wrong there.

    Args:
        faults: (rank, what is wrong).
        nodes: Name of the node of each rank.
    """
    where: dict[tuple[str, str], list[int]] = defaultdict(list)
    for rank, fault in faults:
        where[nodes[rank], fault].append(rank)
    return "\n".join(
        f"  {node} ({spell_ranks(of_ranks)}): {fault}" for (node, fault), of_ranks in where.items()
    )


def _end_if_any(faults: Sequence[tuple[int, str]], *, nodes: Sequence[str], place: Place) -> None:
    """Tell the faults, which all ranks know alike, and end; nothing where there are none."""
    if not faults:
        return
    if place.is_main:
        _say(
            "preflight: the run cannot start on these machines (run.preflight=false: start it all "
            f"the same):\n{describe(faults, nodes=nodes)}"
        )
    # A launcher ends all ranks with the first one, which must have spoken by then.
    ranks.wait_for_all(place=place)
    raise SystemExit(1)


def _say_all_is_well(
    config: Config, *, nodes: Sequence[str], device: str, speed: str, room: Room
) -> None:
    count, machines = len(nodes), Counter(nodes)
    where = f"{len(machines)} nodes" if len(machines) > 1 else nodes[0]
    parts = [
        f"preflight: {count} rank{'s' if count > 1 else ''} on {where} ({device})",
        describe_batch(config, processes=count),
        *([speed] if speed else []),
        f"{size_of(room.free)} free for checkpoints: {size_of(room.each)} each, at most "
        f"{room.most} at a time",
    ]
    _say("; ".join(parts))


def describe_batch(config: Config, *, processes: int) -> str:
    """The samples of a step as a product, and who shares them."""
    train, shared = config.train, config.parallel
    batch = global_batch(config, processes=processes)
    ranks_of_data = processes // shared.size
    factors = f"{train.micro_batch_size} x {train.accumulation_steps} x {ranks_of_data}"
    if shared.size == 1:
        return f"global batch {batch} = {factors} (micro-batch, accumulation, ranks)"
    return (
        f"global batch {batch} = {factors} (micro-batch, accumulation, data ranks); {shared.size} "
        f"ranks per sample (sequence {shared.sequence_size} x tensor {shared.tensor_size})"
    )


def _say(message: str) -> None:
    sys.stderr.write(f"train.py: {message}\n")
