"""A job that is killed and started again sees what an unbroken one sees; nothing outlives it."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_loaders.loader import Batches
from data_loaders.shards import write_shards
from data_loaders.synthetic import WorldConfig, make_clip
from sat_udpdiff.config_io import load_config

# What a training run does with its data: the state is the number of lines.
PROGRAM = """
import hashlib, json, sys
from data_loaders.loader import Batches
from sat_udpdiff.config_io import load_config

log, count, *overrides = sys.argv[1:]
config = load_config([], overrides)
with open(log, "a+") as file:
    file.seek(0)
    start = len(file.readlines())
    with Batches(config, start=start) as stream:
        for batch in stream:
            seen = [batch.keys, batch.captions, batch.task.tolist(), batch.drop_caption.tolist()]
            pixels = [hashlib.sha256(x.numpy().tobytes()).hexdigest() for x in
                      (batch.rgb, batch.dense)]
            processes = stream.process_ids()
            file.write(json.dumps([seen, pixels, processes]) + "\\n")
            file.flush()
            start += 1
            if start >= int(count):
                break
"""
COUNT = 24


def settings(folder: Path, *, workers: int) -> list[str]:
    return [
        f"data.shards={folder}",
        "data.num_frames=5",
        "data.height=16",
        "data.width=32",
        "data.crop=random",
        "data.shuffle_shards=2",
        "data.shuffle_run=2",
        f"data.num_workers={workers}",
        "train.micro_batch_size=1",
        "seed=3",
    ]


def is_running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_at_random_points_the_stream_goes_on_as_if_unbroken(tmp_path, user_env, workers):
    folder = tmp_path / "shards"
    world = WorldConfig(frames=9, height=32, width=48)
    write_shards(
        (make_clip(i, seed=0, config=world) for i in range(7)), folder, samples_per_shard=2
    )
    log = tmp_path / "log"
    command = [sys.executable, "-c", PROGRAM, str(log), str(COUNT)]
    command += settings(folder, workers=workers)
    draw = random.Random(workers)
    seen: list[str] = []
    while len(seen) < COUNT:
        wanted = len(seen) + draw.randint(3, 9)
        process = subprocess.Popen(command, env=user_env)
        deadline = time.monotonic() + 120
        while process.poll() is None and len(seen) < wanted:
            assert time.monotonic() < deadline
            time.sleep(0.005)
            seen = log.read_text().splitlines(keepends=True) if log.exists() else []
        process.send_signal(signal.SIGKILL)
        process.wait()
        # A line that was cut is no sample: the run has not counted it.
        seen = [line for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]
        log.write_text("".join(seen))
        children = json.loads(seen[-1])[2]
        while any(map(is_running, children)):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    config = load_config([], settings(folder, workers=0))
    with Batches(config) as stream:
        for line, batch in zip(seen, stream, strict=False):
            (keys, captions, task, dropped), _, _ = json.loads(line)
            assert keys == batch.keys and captions == batch.captions
            assert task == batch.task.tolist() and dropped == batch.drop_caption.tolist()
    # Pixels, and so colours and crops: against a job that was never killed.
    unbroken = tmp_path / "unbroken"
    command[3] = str(unbroken)
    subprocess.run(command, env=user_env, check=True, timeout=240)
    hashes = [json.loads(line)[1] for line in unbroken.read_text().splitlines()]
    assert [json.loads(line)[1] for line in seen[:COUNT]] == hashes
