"""Three ranks on two nodes that exist in name alone look around before the first step."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sat_udpdiff.config import ConfigError
from sat_udpdiff.config_checks import keep_global_batch
from sat_udpdiff.config_io import load_config
from sat_udpdiff.distributed import Place
from sat_udpdiff.plan import derive_sizes
from sat_udpdiff.plan.sizes import count_checkpoints
from sat_udpdiff.training.preflight import (
    compare_memory,
    describe,
    describe_batch,
    foresee_full_disk,
    lack_of_room,
    measure_room,
    preflight,
    slow_nodes,
)

ROOT = Path(__file__).parents[2]
BASE = [str(ROOT / f"configs/{name}.yaml") for name in ("tiny", "multitask")]
# Each rank, by itself: what one finds of the machines, case by case. Ranks are forks of one process
# that has imported everything.
PROGRAM = """
import os, shutil, sys
from collections import namedtuple
from pathlib import Path
from sat_udpdiff import distributed
from sat_udpdiff.config_io import load_config
from sat_udpdiff.training import preflight as p
from tests.parallel.forked_runs import succeeds
folder, base = Path(sys.argv[1]), sys.argv[2:]
p._SECONDS_TO_APPEAR = 0.1

def look(name, *words, place, **changed):
    run, shards = f"run.output={folder}/new/run", f"data.shards={folder}/shards"
    config = load_config(base, ["model.num_layers=1", run, shards, *words])
    print(f"== {name}", file=sys.stderr)
    known = {key: getattr(p, key) for key in changed}
    vars(p).update(changed)
    status = 0
    try:
        p.preflight(config, place=place)
    except SystemExit as end:
        status = end.code
    vars(p).update(known)
    print(f"-> {status}", file=sys.stderr)

def refuse(*words, **options):
    raise PermissionError(13, "Permission denied")

def fill(path, *words, **options):
    path.touch()
    raise OSError(28, "No space left on device")

def be_a_rank():
    rank = int(os.environ["RANK"])
    os.environ["SLURMD_NODENAME"] = "n2" if rank else "n1"
    place = distributed.init_distributed(device="cpu", timeout_minutes=2)
    look("well", place=place)
    look("layout", "parallel.sequence_size=3", place=place)
    os.environ["SLURMD_NODENAME"] = f"n{1 + rank}"
    look("links", place=place, slow_nodes=lambda rates: [f"slow: {sorted(rates)}"])
    os.environ["SLURMD_NODENAME"] = "n2" if rank else "n1"
    versions = p._versions()
    versions |= {"torch": "1.0"} if rank == 2 else {}
    nowhere = [f"data.shards={folder}/nowhere"] if rank == 1 else []
    look("versions", *nowhere, place=place, _versions=lambda: versions)
    device = {"device": "NVIDIA X"} if rank == 2 else {"device": "CPU"}
    look("devices", place=place, _device=lambda place: device)
    other = [f"data.shards={folder}/other"] if rank == 2 else []
    look("data", *other, place=place)
    held_out = [f"validation.shards={folder}/nowhere", "validation.every_steps=5"]
    look("held_out", *held_out, place=place)
    look("folder", *([f"run.output={folder}/elsewhere"] if rank else []), place=place)
    write, Path.write_bytes = Path.write_bytes, refuse if rank == 1 else Path.write_bytes
    look("locked", place=place)
    Path.write_bytes = write
    usage = shutil.disk_usage
    shutil.disk_usage = lambda path: namedtuple("usage", "total used free")(10**9, 10**9, 1000)
    look("room", "checkpoint.keep_last=3", place=place)
    shutil.disk_usage = usage
    look("file", f"run.output={folder}/file", place=place)
    write, Path.write_text = Path.write_text, fill
    look("full", place=place)
    Path.write_text = write
    distributed.close_distributed()
    return 0

sys.exit(not succeeds(be_a_rank, ranks=3, logs=folder / "logs"))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, str]], Path]:
    """What each rank said by case, and the folder."""
    folder = tmp_path_factory.mktemp("preflight")
    for name in ("shards", "other"):
        (folder / name).mkdir()
        (folder / name / "manifest.json").write_text(f'{{"name": "{name}"}}')
    (folder / "file").touch()
    (folder / "logs").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), *BASE],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    texts = [path.read_text() for path in sorted((folder / "logs").iterdir())]
    assert done.returncode == 0, (done.stderr, texts)
    parts = [re.split(r"^== (\w+)\n", text, flags=re.MULTILINE)[1:] for text in texts]
    return [dict(zip(of_rank[::2], of_rank[1::2], strict=True)) for of_rank in parts], folder


def test_all_ranks_go_on_or_all_end(told):
    said, folder = told
    well = ("well", "layout", "links")
    ends = {name: "-> 0\n" if name in well else "-> 1\n" for name in said[0]}
    assert len(ends) == 12
    for of_rank in said[1:]:
        assert of_rank == ends
    for name, text in said[0].items():
        assert text.endswith(ends[name])
    # Nothing is left behind, not even the folder that was tried.
    found = sorted(path.name for path in folder.iterdir())
    assert found == ["file", "logs", "other", "shards"]


def test_one_line_when_all_is_well(told):
    (said, *_), _ = told
    assert re.fullmatch(
        r"train.py: preflight: 3 ranks on 2 nodes \(CPU\); global batch 12 = 4 x 1 x 3 "
        r"\(micro-batch, accumulation, ranks\); all-reduce of 4 MB in [\d.]+ ms \([\d.]+ GB/s\); "
        r"[\d,.]+ GB free for checkpoints: [\d.]+ MB each, at most 1 at a time\n-> 0\n",
        said["well"],
    )


def test_one_process_has_nobody_to_reduce_with(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    (tmp_path / "manifest.json").write_text("{}")
    config = load_config(BASE, [f"data.shards={tmp_path}", f"run.output={tmp_path}/run"])
    cpu = torch.device("cpu")
    preflight(config, place=Place(rank=0, world_size=1, local_rank=0, device=cpu, backend="gloo"))
    assert re.fullmatch(
        r"train.py: preflight: 1 rank on n1 \(CPU\); global batch 4 = 4 x 1 x 1 "
        r"\(micro-batch, accumulation, ranks\); [\d,.]+ GB free for checkpoints: [\d.]+ MB each, "
        r"at most 1 at a time\n",
        capsys.readouterr().err,
    )


def test_ranks_that_share_samples_count_once(told):
    (said, *_), _ = told
    assert (
        "global batch 4 = 4 x 1 x 1 (micro-batch, accumulation, data ranks); "
        "3 ranks per sample (sequence 3 x tensor 1)"
    ) in said["layout"]
    layout = ["parallel.sequence_size=3", "parallel.tensor_size=2", "model.num_heads=6"]
    config = load_config(BASE, [*layout, "train.accumulation_steps=5"])
    assert describe_batch(config, processes=12) == (
        "global batch 40 = 4 x 5 x 2 (micro-batch, accumulation, data ranks); "
        "6 ranks per sample (sequence 3 x tensor 2)"
    )


def faults(told, case: str) -> list[str]:
    """What the first rank listed, line by line."""
    first, *lines, _ = told[0][0][case].splitlines()
    assert first.startswith("train.py: preflight: the run cannot start on these machines")
    return lines


def test_what_differs_is_named_with_node_and_rank(told):
    version, data = faults(told, "versions")
    assert re.fullmatch(r"  n2 \(rank 2\): torch is 1\.0, and [\d.+a-z]+ on the others", version)
    assert f"  n2 (rank 1): data.shards={told[1]}/nowhere: " in data
    assert faults(told, "devices") == ["  n2 (rank 2): device is NVIDIA X, and CPU on the others"]


def test_data_that_differs_or_is_not_there_is_named(told):
    (line,) = faults(told, "data")
    assert re.match(r"  n2 \(rank 2\): manifest of data.shards is \w+, and \w+ on the oth", line)
    of_first, of_second = faults(told, "held_out")
    assert of_first.startswith(f"  n1 (rank 0): validation.shards={told[1]}/nowhere: ")
    assert of_second.startswith(f"  n2 (ranks 1-2): validation.shards={told[1]}/nowhere: ")


def test_a_folder_that_is_not_shared_is_named(told):
    assert faults(told, "folder") == [
        f"  n2 (ranks 1-2): run.output={told[1]}/elsewhere: what the first rank wrote there is not "
        "seen here: choose a folder on a disk that all nodes share"
    ]


def test_a_folder_that_one_rank_cannot_write_to_is_named(told):
    assert faults(told, "locked") == [
        f"  n2 (rank 1): run.output={told[1]}/new/run: cannot be written to: Permission denied"
    ]


def test_a_file_in_the_place_of_the_run_is_named(told):
    (line,) = faults(told, "file")
    assert line == f"  n1 (rank 0): run.output={told[1]}/file: cannot be written to: File exists"


def test_a_full_disk_is_named(told):
    assert faults(told, "full") == [
        f"  n1 (rank 0): run.output={told[1]}/new/run: cannot be written to: No space left on "
        "device"
    ]


def test_checkpoints_without_room_are_counted(told):
    # 200 steps with a checkpoint every 250: one, whatever is kept.
    assert faults(told, "room") == [
        f"  n1 (rank 0): run.output={told[1]}/new/run: 0.00 MB are free, a checkpoint takes 10.46 "
        "MB, and 1 more of them (checkpoint.keep_last=3, keep_every=0) take 10.46 MB"
    ]


@pytest.mark.parametrize("steps", [7, 10, 60, 61])
@pytest.mark.parametrize("keep", [0, 1, 2, 5])
@pytest.mark.parametrize("for_ever", [0, 5, 20])
def test_checkpoints_at_once_are_those_that_saving_and_deleting_leaves(steps, keep, for_ever):
    words = ["checkpoint.every_steps=5", f"checkpoint.keep_last={keep}"]
    config = load_config(
        BASE, [*words, f"checkpoint.keep_every={for_ever}", f"train.steps={steps}"]
    )
    there, most = [], 0
    for step in sorted({*range(5, steps + 1, 5), steps}):
        there.append(step)
        most = max(most, len(there))
        oldest = there[-keep] if keep and len(there) >= keep else 0
        there = [s for s in there if s >= oldest or (for_ever and s % for_ever == 0)]
    assert count_checkpoints(config) == most


def test_what_is_kept_for_ever_is_foreseen(tmp_path, monkeypatch):
    keep = ["checkpoint.keep_last=2", "checkpoint.keep_every=1000", "checkpoint.every_steps=500"]
    config = load_config(BASE, [*keep, "train.steps=10_000", f"run.output={tmp_path}"])
    usage = SimpleNamespace(free=4 * 10**9)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    room = measure_room(config, checkpoint_bytes=10**9)
    # Steps 9,000 to 10,000 while the last is written, and 1,000 to 8,000.
    assert (room.soon, room.still, room.most) == (3, 11, 11)
    assert lack_of_room(config, room=room) == []
    (warning,) = foresee_full_disk(config, room=room)
    assert warning == (
        "the disk is full before the end: 4.00 GB are free, a checkpoint takes 1.00 GB, and 11 "
        "more of them (checkpoint.keep_last=2, keep_every=1000) take 11.00 GB"
    )
    # Those that are there make room for the next.
    for step in (500, 1000):
        (tmp_path / f"checkpoints/step_{step:08d}").mkdir(parents=True)
    usage.free = 10**9
    room = measure_room(config, checkpoint_bytes=10**9)
    assert (room.soon, room.still) == (1, 9)
    assert lack_of_room(config, room=room) == []
    usage.free -= 1
    assert lack_of_room(config, room=measure_room(config, checkpoint_bytes=10**9))


def test_a_plan_that_needs_more_than_a_gpu_has_is_told(monkeypatch):
    gpu = torch.device("cuda", 0)
    place = Place(rank=0, world_size=1, local_rank=0, device=gpu, backend="nccl")
    config = load_config(BASE, [])
    sizes = derive_sizes(config)
    memory = SimpleNamespace(total_memory=10**8)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: memory)
    (line,) = compare_memory(config, sizes=sizes, place=place)
    assert re.match(r"by the plan a GPU needs [\d.]+ GB, and has 0\.1; train.py --plan says", line)
    memory.total_memory = 10**12
    assert compare_memory(config, sizes=sizes, place=place) == []


def test_faults_are_folded_by_node():
    faults = [(0, "x"), (1, "x"), (2, "x"), (3, "y"), (2, "y")]
    assert describe(faults, nodes=["a", "a", "b", "b"]).splitlines() == [
        "  a (ranks 0-1): x",
        "  b (rank 2): x",
        "  b (ranks 2-3): y",
    ]


def test_the_links_of_three_nodes_are_timed(told):
    assert "train.py: warning: slow: ['n1', 'n2', 'n3']\n" in told[0][0]["links"]


def test_slow_nodes_are_those_below_half_of_the_median():
    rates = {"a": 10e9, "b": 11e9, "c": 4e9, "d": 5.4e9, "e": 12e9}
    (line,) = slow_nodes(rates)
    assert line.startswith("the link of c does 4.00 GB/s, the median is 10.00")
    assert slow_nodes({}) == []


@pytest.mark.parametrize(("ranks", "steps"), [(1, 8), (2, 4), (4, 2), (8, 1)])
def test_the_global_batch_is_kept_on_any_number_of_ranks(ranks, steps):
    config = load_config(BASE, ["train.global_batch=32", "train.accumulation_steps=5"])
    assert keep_global_batch(config, processes=ranks).train.accumulation_steps == steps


def test_without_a_global_batch_nothing_changes():
    config = load_config(BASE, ["train.accumulation_steps=5"])
    assert keep_global_batch(config, processes=3) == config


@pytest.mark.parametrize(("ranks", "nearest"), [(3, "24, 36"), (9, "36")])
def test_a_global_batch_that_cannot_be_made_is_refused_with_the_numbers(ranks, nearest):
    config = load_config(BASE, ["train.global_batch=32"])
    with pytest.raises(ConfigError) as caught:
        keep_global_batch(config, processes=ranks)
    assert str(caught.value) == (
        f"train.global_batch: expected a multiple of {4 * ranks} = 4 (train.micro_batch_size) x "
        f"{ranks} ranks (nearest: {nearest}), got 32"
    )
