"""Clips per second of the loader beside CogVideoX's rule by decord and plain PyAV, in one run.

    python tests/benchmarks/bench_loader.py [--settings tiny paper vp9 720p 720p30] [--repeats 5]

Every contestant runs in a process of its own, with 1 and then 2 workers; all give float32 batches
in [-1, 1] on the CPU, of RGB alone (`model.dense_groups=0`, what CogVideoX loads) or of RGB and
dense maps as colours. They take turns: a round is one turn each, over the same sample numbers, with
as many depth maps as segmentations, while all other contestants are stopped (SIGSTOP). So nothing
is prepared ahead between turns, and a turn begins where the contestant's last one ended. Before the
first turn a contestant loads one batch, is left alone until it has prepared all that it prepares
ahead, and then loads more than that: here its memory is polled, which slows down, and not later.

clips/s: median over rounds, with the lowest and highest; CPU s: user and system time per clip of
the process and its children, also a median; GiB: the largest sum of their proportional set sizes,
and of shared memory on its way; ratios are to the first row of their block (above 1 is better in
clips/s, below 1 in memory).
"""

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path

import cv2
import numpy as np
import torch
from loader_rivals import ClipFiles, CogVideoX, PlainPyAV
from process_tree import PeakMemory, cpu_seconds, send

from data_loaders.loader import Batches
from data_loaders.order import draws
from data_loaders.schema import Sample
from data_loaders.shards import ShardIndex, write_shards
from data_loaders.synthetic import make_clip
from data_loaders.synthetic_scene import WorldConfig
from sat_udpdiff.config import Config, DataConfig, ModelConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Clips as stored and as wanted."""

    about: str
    codec: str
    stored: tuple[int, int, int]
    wanted: tuple[int, int, int]
    fps: float = 8.0
    """Of what is stored; 8 are wanted."""
    micro_batch: int = 1
    num_clips: int = 4
    turn: int = 4
    """Clips of a turn."""
    workers: tuple[int, ...] = (1, 2)
    dali: bool = True


PAPER = (49, 480, 720)
SETTINGS = {
    "tiny": Setting(
        about="9x32x48, ffv1, batches of 4",
        codec="ffv1",
        stored=(9, 32, 48),
        wanted=(9, 32, 48),
        micro_batch=4,
        num_clips=32,
        turn=200,
    ),
    "paper": Setting(about="49x480x720, h264", codec="h264", stored=PAPER, wanted=PAPER),
    "vp9": Setting(about="49x480x720, vp9", codec="vp9", stored=PAPER, wanted=PAPER, workers=(2,)),
    "720p": Setting(
        about="49x720x1280 to 49x480x720, h264",
        codec="h264",
        stored=(49, 720, 1280),
        wanted=PAPER,
        workers=(2,),
    ),
    "720p30": Setting(
        about="185x720x1280 at 30 fps to 49x480x720 at 8 fps, h264",
        codec="h264",
        stored=(185, 720, 1280),
        wanted=PAPER,
        fps=30.0,
        num_clips=2,
        turn=2,
        workers=(2,),
        dali=False,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """Who loads what."""

    name: str
    folder: str
    setting: str
    workers: int
    dense: bool
    seed: int

    @property
    def config(self) -> Config:
        """Ours, which also tells the others the sizes."""
        setting = SETTINGS[self.setting]
        frames, height, width = setting.wanted
        data = DataConfig(
            shards=self.folder,
            num_frames=frames,
            height=height,
            width=width,
            num_workers=self.workers,
            decoder="dali" if self.name == "ours, dali" else "pyav",
            # A process that is stopped for a while is no process that hangs.
            decode_seconds=1e6,
        )
        return Config(
            seed=self.seed,
            data=data,
            model=ModelConfig(dense_groups=int(self.dense)),
            train=TrainConfig(micro_batch_size=setting.micro_batch),
        )


def _enlarged(sample: Sample, *, setting: Setting) -> Sample:
    """A clip of the wanted size from a small one: rendering it would take longer than all else."""
    frames, height, width = setting.stored
    size, number = (width, height), len(sample.rgb)
    assert sample.entity_ids is not None and sample.depth is not None
    times = np.linspace(0, number - 1, frames).round().astype(int)
    # Noise that moves with the camera keeps h264 from an easy time: 0.4 to 0.5 bits per pixel at
    # crf 14, as of detailed real clips.
    noise = np.random.default_rng(0).integers(-1, 2, (height + number, width + number, 3))

    def textured(t: int) -> np.ndarray:
        frame = cv2.resize(sample.rgb[t], size, interpolation=cv2.INTER_CUBIC)
        return np.clip(frame + noise[t : t + height, t : t + width], 0, 255).astype(np.uint8)

    ids = [cv2.resize(one, size, interpolation=cv2.INTER_NEAREST) for one in sample.entity_ids]
    depth = [cv2.resize(one, size) for one in sample.depth]
    return replace(
        sample,
        rgb=np.stack([textured(t) for t in times]),
        entity_ids=np.stack([ids[t] for t in times]),
        depth=np.stack([depth[t] for t in times]),
        fps=setting.fps,
    )


def _make(folder: Path, *, setting: Setting) -> float:
    """Write the clips; returns bits per pixel of the RGB."""
    frames, height, width = setting.stored
    small = height <= 64
    world = WorldConfig(
        frames=frames, height=height if small else 96, width=width if small else 144
    )
    samples: Iterator[Sample] = (
        make_clip(i, seed=0, config=world) for i in range(setting.num_clips)
    )
    if not small:
        samples = (_enlarged(sample, setting=setting) for sample in samples)
    write_shards(samples, folder, rgb_codec=setting.codec)
    index = ShardIndex.open(folder)
    total = 0
    for i in range(len(index)):
        stored = index.sample(i)
        name, content = stored.rgb_file()
        total += len(content)
        _file(folder, i, "rgb", Path(name).suffix).write_bytes(content)
        for label, member in (("entity_ids", "seg.mkv"), ("depth", "depth.mkv")):
            _file(folder, i, label, ".mkv").write_bytes(stored.read_bytes(member))
    return total * 8 / len(index) / frames / height / width


def _file(folder: Path, number: int, what: str, suffix: str) -> Path:
    return folder / f"clip-{number:03d}.{what}{suffix}"


def _balanced_seed(setting: Setting, *, workers: int, rounds: int) -> int:
    """A seed under which every turn has as many depth maps as segmentations."""
    start = (1 + _warm_up(workers)) * setting.micro_batch
    for seed in count():
        tasks = [
            draws(n, seed=seed, data=DataConfig()).task == "depth"
            for n in range(start, start + rounds * setting.turn)
        ]
        turns = [sum(tasks[i : i + setting.turn]) for i in range(0, len(tasks), setting.turn)]
        if all(abs(2 * depths - setting.turn) <= setting.turn // 20 for depths in turns):
            return seed
    raise AssertionError


def _warm_up(workers: int) -> int:
    """Batches, more than any contestant prepares ahead (two per worker, and up to three joined)."""
    return 2 * workers + 4


def _open(contestant: Contestant) -> Iterator[object]:
    config = contestant.config
    if contestant.name.startswith("ours"):
        return Batches(config)
    folder = Path(contestant.folder)
    rival = CogVideoX if contestant.name == "CogVideoX rule" else PlainPyAV
    video = {"vp9": ".webm", "h264": ".mp4", "ffv1": ".mkv"}[SETTINGS[contestant.setting].codec]
    clips = [
        ClipFiles(
            rgb=_file(folder, i, "rgb", video),
            entity_ids=_file(folder, i, "entity_ids", ".mkv"),
            depth=_file(folder, i, "depth", ".mkv"),
        )
        for i in range(SETTINGS[contestant.setting].num_clips)
    ]
    dataset = rival(clips, config=config)
    return iter(
        torch.utils.data.DataLoader(
            dataset,
            batch_size=config.train.micro_batch_size,
            num_workers=config.data.num_workers,
        )
    )


def _check(batch: object, *, contestant: Contestant) -> None:
    if contestant.name.startswith("ours"):
        found = [batch.rgb, batch.dense]
    else:
        found = list(batch) if isinstance(batch, list) else [batch, None]
    config = contestant.config
    shape = (config.train.micro_batch_size, config.data.num_frames, 3)
    shape += (config.data.height, config.data.width)
    assert (found[1] is None) != contestant.dense
    for tensor in found[: 1 + contestant.dense]:
        assert tensor.shape == shape and tensor.dtype == torch.float32
        assert -1 <= tensor.min() < -0.2 and 0.2 < tensor.max() <= 1


def serve(contestant: Contestant) -> None:
    """The process of one contestant: for each number read, load so many batches, tell the time."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    batches = _open(contestant)
    _check(next(batches), contestant=contestant)
    print("ready", flush=True)
    for line in sys.stdin:
        begin = time.perf_counter()
        for _ in range(int(line)):
            next(batches)
        print(time.perf_counter() - begin, flush=True)
    if isinstance(batches, Batches):
        batches.close()


class Process:
    """A contestant as seen by the one who takes the time; stopped unless it is its turn."""

    def __init__(self, contestant: Contestant) -> None:
        self.contestant = contestant
        self.rates: list[float] = []
        self.cpu: list[float] = []
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--contestant", json.dumps(asdict(contestant))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self._batch = SETTINGS[contestant.setting].micro_batch
        self.peak = 0

    def warm_up(self) -> None:
        """Bring it to where its turns begin."""
        with PeakMemory(self._process.pid) as peak:
            assert self._answer() == "ready", f"{self.contestant} has ended"
            self._wait_until_idle()
            self._load(_warm_up(self.contestant.workers))
        self.peak = peak.bytes
        send(self._process.pid, signal.SIGSTOP)

    def turn(self, clips: int) -> None:
        """Load clips and note how fast."""
        pid = self._process.pid
        before = cpu_seconds(pid)
        send(pid, signal.SIGCONT)
        seconds = self._load(clips // self._batch)
        send(pid, signal.SIGSTOP)
        self.rates.append(clips / seconds)
        self.cpu.append((cpu_seconds(pid) - before) / clips)

    def end(self) -> None:
        """Let it close what it holds."""
        send(self._process.pid, signal.SIGCONT)
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _wait_until_idle(self) -> None:
        spent, still = cpu_seconds(self._process.pid), 0
        while still < 3:
            time.sleep(0.2)
            now = cpu_seconds(self._process.pid)
            still = still + 1 if now - spent < 0.02 else 0
            spent = now

    def _load(self, batches: int) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{batches}\n")
        self._process.stdin.flush()
        return float(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


def _block(base: Contestant, *, repeats: int) -> None:
    """Compare all contestants of a setting at one number of workers; print the rows."""
    setting = SETTINGS[base.setting]
    names = [("ours, pyav", False), ("CogVideoX rule", False), ("plain PyAV", False)]
    names += [("ours, pyav", True), ("plain PyAV", True)]
    if setting.dali:
        names[1:1] = [("ours, dali", False)]
        names[-1:-1] = [("ours, dali", True)]
    if base.setting == "tiny":
        # decord 0.6.0 fails on pictures 48 wide, whatever the codec.
        names = [name for name in names if name[0] != "CogVideoX rule"]
    make = partial(replace, base)
    processes: list[Process] = []
    try:
        for name, dense in names:
            processes.append(Process(make(name=name, dense=dense)))
            processes[-1].warm_up()
        for _ in range(repeats):
            for process in processes:
                process.turn(setting.turn)
    finally:
        for process in processes:
            process.end()
    for dense in (False, True):
        rows = [process for process in processes if process.contestant.dense == dense]
        for process in rows:
            print(_row(process, first=rows[0]), flush=True)


def _row(process: Process, *, first: Process) -> str:
    rate, ours = (statistics.median(one.rates) for one in (process, first))
    contestant = process.contestant
    return " | ".join(
        [
            f"| {contestant.workers}",
            "RGB + dense" if contestant.dense else "RGB",
            contestant.name,
            f"{rate:.2f} ({min(process.rates):.2f} .. {max(process.rates):.2f})",
            f"{rate / ours:.2f}",
            f"{statistics.median(process.cpu):.3f}",
            f"{process.peak / 2**30:.2f}",
            f"{process.peak / first.peak:.2f} |",
        ]
    )


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None, help="for the clips; default /tmp")
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    # Its contestants are stopped most of the time, and would otherwise outlive it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if arguments.contestant:
        serve(Contestant(**json.loads(arguments.contestant)))
        return
    packages = ("torch", "av", "decord", "nvidia-dali-cuda130")
    print(
        f"python {platform.python_version()}, {os.cpu_count()} CPUs, "
        + ", ".join(f"{name} {_version(name)}" for name in packages)
    )
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        for name in arguments.settings:
            setting = SETTINGS[name]
            folder = Path(scratch) / name
            bits = _make(folder, setting=setting)
            print(f"\n{name}: {setting.about}, {bits:.2f} bits per pixel\n")
            print("| workers | what | contestant | clips/s | ratio | CPU s | GiB | ratio |")
            print("|---|---|---|---|---|---|---|---|", flush=True)
            for workers in setting.workers:
                base = Contestant(
                    name="",
                    folder=str(folder),
                    setting=name,
                    workers=workers,
                    dense=False,
                    seed=_balanced_seed(setting, workers=workers, rounds=arguments.repeats),
                )
                _block(base, repeats=arguments.repeats)
            print(f"\nload {os.getloadavg()[0]:.1f}", flush=True)


if __name__ == "__main__":
    main()
