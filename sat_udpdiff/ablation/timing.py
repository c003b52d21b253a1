"""How long a training step and a sample take here, measured on a network of the real size.

    python -m sat_udpdiff.ablation.timing --base configs/tiny.yaml configs/multitask.yaml

Prints JSON. Several of them side by side see what several trainings do to each other.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import torch

from sat_udpdiff.config import Config
from sat_udpdiff.config_io import parse_cli
from sat_udpdiff.diffusion.loss import diffusion_loss
from sat_udpdiff.diffusion.schedule import make_schedule
from sat_udpdiff.encoders.latents import latent_size
from sat_udpdiff.generation import Encoders, SampleRequest, generate
from sat_udpdiff.model.transformer import UDPDiffTransformer, build_network

_FEW, _MORE = 2, 5
"""Steps of a sampling that is timed; the difference is that of steps alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """Seconds, in one process."""

    train_step: float
    """Forward and backward of a micro-batch; the optimizer takes little besides."""
    sample_step: float
    """Of one sample."""
    sample_fixed: float
    """Text and codec of one sample."""
    num_steps: int
    """Of a sample, as the configuration says."""


def measure(config: Config) -> Timing:
    """Time the network of a configuration with random weights and latents.

    Raises:
        ValueError: Weights of the encoders are missing.
    """
    encoders = Encoders.load(config, device="cpu")
    network = build_network(config.model, dtype=torch.float32, device="cpu")
    train_step = _seconds(lambda: _train_step(network, config))
    network.eval().requires_grad_(False)
    few, more = (
        _seconds(lambda steps=steps: _sample(network, config, encoders=encoders, steps=steps))
        for steps in (_FEW, _MORE)
    )
    sample_step = max(0.0, (more - few) / (_MORE - _FEW))
    return Timing(
        train_step=train_step,
        sample_step=sample_step,
        sample_fixed=max(0.0, few - _FEW * sample_step),
        num_steps=config.sample.num_steps,
    )


def _seconds(work: Callable[[], object]) -> float:
    """The shorter of two runs, after one that warms up."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def _train_step(network: UDPDiffTransformer, config: Config) -> None:
    data, model, count = config.data, config.model, config.train.micro_batch_size
    size = latent_size(
        config.codec, num_frames=data.num_frames, height=data.height, width=data.width
    )
    channels = model.latent_channels * (1 + model.dense_groups)
    latents = torch.randn(count, size.frames, channels, size.height, size.width)
    text = torch.randn(count, model.text_length, model.text_dim)
    task = torch.zeros(count, dtype=torch.long) if model.task_signal == "embedding" else None
    terms = diffusion_loss(
        lambda x_t, t: network(x_t, timesteps=t, text=text, task=task),
        latents,
        noise=torch.randn_like(latents),
        t=torch.full((count,), config.diffusion.num_train_timesteps // 2),
        schedule=make_schedule(config.diffusion),
        video_channels=model.latent_channels,
        dense_weight=config.diffusion.dense_loss_weight,
    )
    terms.total.mean().backward()


def _sample(network: UDPDiffTransformer, config: Config, *, encoders: Encoders, steps: int) -> None:
    config = replace(config, sample=replace(config.sample, num_steps=steps))
    request = SampleRequest(
        prompt="a disc",
        task=config.data.tasks[0] if config.model.dense_groups else None,
        seeds=(0,),
        num_frames=config.data.num_frames,
        height=config.data.height,
        width=config.data.width,
    )
    generate(network, request, encoders=encoders, config=config)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the timing of a configuration; returns the exit status."""
    _, config = parse_cli(argv, description=__doc__ or "")
    try:
        print(json.dumps(asdict(measure(config))))
    except ValueError as error:
        print(f"timing: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
