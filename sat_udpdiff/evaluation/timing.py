"""Inference time by stage, beside the paper's table 4.

The stages are entered by `generate` itself, so what is timed is what sampling runs.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import get_args

import torch

from sat_udpdiff.config import Config
from sat_udpdiff.evaluation.measure import Fact, Score
from sat_udpdiff.evaluation.paper import table_rows
from sat_udpdiff.generation import Encoders, Network, SampleRequest, Stage, generate

STAGES: tuple[Stage, ...] = get_args(Stage)
_PAPER = "A100, 50 steps"
"""Of table 4; which stages its seconds hold is not said."""
_LEAST_RUNS = 3
_COLUMNS = {
    "text": "text",
    "denoise": "denoise",
    "vae_video": "VAE, video",
    "vae_dense": "VAE, dense",
    "colormap": "ids or depth",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingTime:
    """Seconds of one sample, several times over."""

    device: str
    """Its name."""
    precision: str
    """dtype of the network's weights."""
    num_steps: int
    num_frames: int
    height: int
    width: int
    stages: Mapping[Stage, tuple[float, ...]]
    """By stage, one number per run; 0 for the dense map of a network without one."""
    totals: tuple[float, ...]
    """From the prompt to the sample, one per run; the stages and what lies between them."""

    @property
    def total(self) -> float:
        """Median of all."""
        return median(self.totals)

    @property
    def total_without_dense(self) -> float:
        """Median of what a sample costs whose dense map is neither decoded nor read."""
        of_map = zip(self.stages["vae_dense"], self.stages["colormap"], strict=True)
        extra = [decoded + read for decoded, read in of_map]
        return median(total - one for total, one in zip(self.totals, extra, strict=True))

    @property
    def score(self) -> Score:
        """`seconds`, the median of all; its facts are how it was timed, and medians by stage."""
        facts: dict[str, Fact] = {
            "device": self.device,
            "precision": self.precision,
            "num_steps": self.num_steps,
            "size": f"{self.num_frames}x{self.height}x{self.width}",
            "runs": len(self.totals),
            "lowest": min(self.totals),
            "highest": max(self.totals),
            "without_dense": self.total_without_dense,
            **{stage: median(laps) for stage, laps in self.stages.items()},
        }
        return Score(name="seconds", value=self.total, higher_is_better=False, facts=facts)


def time_sampling(
    network: Network,
    request: SampleRequest,
    *,
    encoders: Encoders,
    config: Config,
    runs: int = 3,
) -> SamplingTime:
    """Time the sampling of one request several times, after one run that is not counted.

    In that one kernels are chosen and tables filled. A CUDA device is waited for at both ends of
    every stage; that keeps stages apart and slows sampling by as little as ten waits per video.

    Args:
        network: In evaluation mode, on the encoders' device.
        request: Of one seed.
        encoders: As for `generate`.
        config: As for `generate`; `sample.num_steps` is the number of steps.
        runs: Timed, 3 or more.

    Raises:
        ValueError: More than one seed, too few runs, or a request that does not fit the network.
    """
    if len(request.seeds) != 1:
        raise ValueError(f"seeds: expected one, whose time is told, got {len(request.seeds)}")
    if runs < _LEAST_RUNS:
        raise ValueError(f"runs: expected {_LEAST_RUNS} or more, got {runs}")
    device = encoders.codec.device
    laps = []
    for _ in range(1 + runs):
        clock = _Clock(device)
        start = clock.now()
        generate(network, request, encoders=encoders, config=config, watch=clock.stage)
        laps.append((clock.now() - start, clock.seconds))
    del laps[0]
    return SamplingTime(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        precision=config.train.precision,
        num_steps=config.sample.num_steps,
        num_frames=request.num_frames,
        height=request.height,
        width=request.width,
        stages={stage: tuple(seconds.get(stage, 0.0) for _, seconds in laps) for stage in STAGES},
        totals=tuple(total for total, _ in laps),
    )


def timing_table(times: Mapping[str, SamplingTime]) -> str:
    """Markdown: medians in seconds, lowest and highest total, and the paper's rows.

    Args:
        times: By name of the network.
    """
    heads = ["network", "where", *_COLUMNS.values(), "total", "without dense decode"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, one in times.items():
        where = (
            f"{one.device}, {one.precision}, {one.num_steps} steps, "
            f"{one.num_frames}x{one.height}x{one.width}, {len(one.totals)} runs"
        )
        cells = [f"{median(one.stages[stage]):.3f}" for stage in STAGES]
        spread = f"{one.total:.2f} ({min(one.totals):.2f} .. {max(one.totals):.2f})"
        cells = [name, where, *cells, spread, f"{one.total_without_dense:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    for row in table_rows(4):
        seconds = f"{row.values['seconds']:.2f}"
        cells = [f"paper: {row.name}", _PAPER, *("" for _ in _COLUMNS), seconds, ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


class _Clock:
    """Adds up seconds by stage; waits for the device, whose work is only queued by Python."""

    def __init__(self, device: torch.device):
        self.seconds: dict[Stage, float] = {}
        self._device = device

    def now(self) -> float:
        """Seconds, when all that was queued is done."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    @contextmanager
    def stage(self, stage: Stage) -> Iterator[None]:
        """A stage, timed."""
        start = self.now()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + self.now() - start
