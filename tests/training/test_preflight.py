"""Three ranks on two nodes that exist in name alone look around before the first step."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sat_udpdiff.config import ConfigError
from sat_udpdiff.config_checks import keep_global_batch
from sat_udpdiff.config_io import load_config
from sat_udpdiff.training.preflight import describe, slow_nodes

ROOT = Path(__file__).parents[2]
BASE = [str(ROOT / f"configs/{name}.yaml") for name in ("tiny", "multitask")]
# Each rank, by itself: what one finds of the machines, case by case.
PROGRAM = """
import shutil, sys
from collections import namedtuple
from pathlib import Path
from sat_udpdiff import distributed
from sat_udpdiff.config_io import load_config
from sat_udpdiff.training import preflight as p
place = distributed.init_distributed(device="cpu", timeout_minutes=2)
folder, base = Path(sys.argv[1]), sys.argv[2:]
p._SECONDS_TO_APPEAR = 0.1

def look(name, *words):
    run, shards = f"run.output={folder}/new/run", f"data.shards={folder}/shards"
    config = load_config(base, ["model.num_layers=1", run, shards, *words])
    print(f"== {name}", file=sys.stderr, flush=True)
    status = 0
    try:
        p.preflight(config, place=place)
    except SystemExit as end:
        status = end.code
    print(f"{name} {status}", flush=True)

look("well")
known = p._versions
if place.rank == 2:
    p._versions = lambda: known() | {"torch": "1.0"}
look("versions", *([f"data.shards={folder}/nowhere"] if place.rank == 1 else []))
p._versions = known
look("folder", *([f"run.output={folder}/elsewhere"] if place.rank > 0 else []))
usage = shutil.disk_usage
if place.rank == 0:
    full = namedtuple("usage", "total used free")(10**9, 10**9, 1000)
    shutil.disk_usage = lambda path: full
look("room", "checkpoint.keep_last=3")
shutil.disk_usage = usage
(folder / "file").touch()
look("file", f"run.output={folder}/file")
distributed.close_distributed()
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], dict[str, str], Path]:
    """What each rank printed, what the first one said by case, and the folder."""
    folder = tmp_path_factory.mktemp("preflight")
    (folder / "shards").mkdir()
    (folder / "shards" / "manifest.json").write_text("{}")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    same = {"WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(folder), *BASE],
            env=os.environ
            | same
            | {"RANK": str(rank), "LOCAL_RANK": "0", "SLURMD_NODENAME": node}
            | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, node in enumerate(("n1", "n2", "n2"))
    ]
    try:
        ended = [process.communicate(timeout=400) for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0, 0], ended
    parts = re.split(r"^== (\w+)\n", ended[0][1], flags=re.MULTILINE)[1:]
    for _, errors in ended[1:]:
        assert "preflight" not in errors
    printed = [out for out, _ in ended]
    return printed, dict(zip(parts[::2], parts[1::2], strict=True)), folder


def test_all_ranks_go_on_or_all_end(told):
    printed, _, folder = told
    assert printed == ["well 0\nversions 1\nfolder 1\nroom 1\nfile 1\n"] * 3
    # Nothing is left behind, not even the folder that was tried.
    assert sorted(path.name for path in folder.iterdir()) == ["file", "shards"]


def test_one_line_when_all_is_well(told):
    _, said, _ = told
    assert re.fullmatch(
        r"train.py: preflight: 3 ranks on 2 nodes \(CPU\); global batch 12 = 4 x 1 x 3 "
        r"\(micro-batch, accumulation, ranks\); all-reduce of 4 MB in [\d.]+ ms \([\d.]+ GB/s\); "
        r"[\d,]+ GB free for checkpoints\n",
        said["well"],
    )


def test_what_differs_is_named_with_node_and_rank(told):
    _, said, folder = told
    lines = said["versions"].splitlines()
    assert lines[0].startswith("train.py: preflight: the run cannot start on these machines")
    assert re.fullmatch(r"  n2 \(rank 2\): torch is 1\.0, and [\d.+a-z]+ on the others", lines[1])
    assert f"  n2 (rank 1): data.shards={folder}/nowhere: " in lines[2]
    assert len(lines) == 3


def test_a_folder_that_is_not_shared_is_named(told):
    _, said, folder = told
    assert said["folder"].splitlines()[1:] == [
        f"  n2 (ranks 1-2): run.output={folder}/elsewhere: what the first rank wrote there is not "
        "seen here: choose a folder on a disk that all nodes share"
    ]


def test_checkpoints_without_room_are_counted(told):
    _, said, _ = told
    (line,) = said["room"].splitlines()[1:]
    assert line.startswith("  n1 (rank 0): run.output=")
    # 200 steps with a checkpoint every 250: one, whatever is kept.
    assert "0.0 GB are free, and 1 checkpoints of 0.01 GB (checkpoint.keep_last=3) take" in line


def test_a_file_in_the_place_of_the_run_is_named(told):
    _, said, folder = told
    (line,) = said["file"].splitlines()[1:]
    assert line == f"  n1 (rank 0): run.output={folder}/file: cannot be written to: File exists"


def test_faults_are_folded_by_node():
    faults = [(0, "x"), (1, "x"), (2, "x"), (3, "y"), (2, "y")]
    assert describe(faults, nodes=["a", "a", "b", "b"]).splitlines() == [
        "  a (ranks 0-1): x",
        "  b (rank 2): x",
        "  b (ranks 2-3): y",
    ]


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
