"""Train the tiny base network: a 16-channel CogVideoX of the synthetic world's RGB alone.

    python -m sat_udpdiff.tiny.make_base --work runs/base --compile

It stands for the CogVideoX weights that the paper starts from; `make demo` expands it by the
duplicate rule and fine-tunes it on both tasks. Latents of all clips are encoded once with the
shipped codec, into the work folder; the network trains on them. Every step draws from (seed, step)
alone: a stopped run goes on from its work folder. `--start` takes the weights of an earlier round,
whose `--seed` it should not repeat.
"""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sat_udpdiff.config import Config
from sat_udpdiff.config_io import load_config
from sat_udpdiff.diffusion.loss import diffusion_loss
from sat_udpdiff.diffusion.schedule import draw_timesteps, make_schedule
from sat_udpdiff.encoders.source import TINY_WEIGHTS
from sat_udpdiff.encoders.text import TextEncoder
from sat_udpdiff.encoders.vae import VideoCodec
from sat_udpdiff.model.transformer import build_network, initialise
from sat_udpdiff.tiny.clips import TinyWorld, to_network
from sat_udpdiff.tiny.small_run import SmallRun, cosine_rate

WEIGHTS = TINY_WEIGHTS / "base" / "network.safetensors"
CONFIGS = Path(__file__).parents[2] / "configs"
_ENCODED_TOGETHER = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseTraining:
    """Settings of the run."""

    steps: int = 3600
    clips: int = 4000
    batch_size: int = 8
    lr: float = 3e-3
    final_lr: float = 5e-5
    warmup_steps: int = 100
    weight_decay: float = 1e-2
    gradient_clipping: float = 1.0
    ema_decay: float = 0.999
    long_caption_probability: float = 0.5
    """Lower than in fine-tuning (0.8), so that short prompts are as well known."""
    caption_dropout: float = 0.1
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class EncodedWorld:
    """The clips as the network sees them."""

    latents: Tensor
    """(clips, t, c, h, w), float16, before the scale factor."""
    captions: list[tuple[str, str]]
    """Short and long."""


def encode_world(config: Config, *, world: TinyWorld, clips: int, work: Path) -> EncodedWorld:
    """Latents (posterior means) of the first `clips` clips, from the work folder where there.

    The posterior of the tiny codec is narrow; its mean is taken, so that one encoding serves.
    """
    captions = [(s.caption_short, s.caption_long) for s in map(world.clip, range(clips))]
    path = work / f"latents_{clips}.safetensors"
    if not path.exists():
        codec = VideoCodec.load(config.codec, device="cpu")
        latents = []
        for first in range(0, clips, _ENCODED_TOGETHER):
            indices = range(first, min(first + _ENCODED_TOGETHER, clips))
            video = torch.stack([to_network(world.clip(index).rgb) for index in indices])
            latents.append(codec.encode(video).mean / config.codec.scale_factor)
            if first % 400 == 0:
                print(f"encoded {first} of {clips} clips", flush=True)
        work.mkdir(parents=True, exist_ok=True)
        staged = path.with_suffix(".part")
        save_file({"latents": torch.cat(latents).half()}, staged)
        staged.replace(path)
    return EncodedWorld(latents=load_file(path)["latents"], captions=captions)


class BaseTrainer:
    """The run, and what a step needs besides."""

    def __init__(
        self,
        config: Config,
        *,
        training: BaseTraining,
        world: EncodedWorld,
        work: Path,
        weights: Path | None = None,
    ):
        self.config, self.training, self.world = config, training, world
        self.text = TextEncoder.load(
            config.text,
            text_length=config.model.text_length,
            text_dim=config.model.text_dim,
            device="cpu",
        )
        self.schedule = make_schedule(config.diffusion)
        network = build_network(config.model, dtype=torch.float32, device="cpu")
        initialise(network, training.seed)
        if weights is not None:
            network.load_state_dict(load_file(weights))
        self.run = SmallRun(
            network, weight_decay=training.weight_decay, ema_decay=training.ema_decay, work=work
        )
        self.predict: Callable[..., Tensor] = network

    def compile(self) -> None:
        """Let torch.compile fuse the network; the first step then takes two minutes."""
        # Each layer becomes a function of its own: more of them than torch expects.
        torch._dynamo.config.recompile_limit = 64
        self.predict = torch.compile(self.run.network)

    def step(self) -> float:
        """One step; returns its loss."""
        training, step, count = self.training, self.run.step, self.training.batch_size
        x0, text = self.examples(step)
        draws = torch.Generator().manual_seed(training.seed * 1_000_003 + step)
        uniforms = torch.rand(count, generator=draws, dtype=torch.float64)
        terms = diffusion_loss(
            lambda x_t, t: self.predict(x_t, timesteps=t, text=text),
            x0,
            noise=torch.randn(x0.shape, generator=draws),
            t=draw_timesteps(uniforms, positions=torch.arange(count), global_batch=count),
            schedule=self.schedule,
        )
        rate = cosine_rate(
            step,
            steps=training.steps,
            warmup_steps=training.warmup_steps,
            peak=training.lr,
            final=training.final_lr,
        )
        loss = terms.total.mean()
        self.run.update(loss, rate=rate, gradient_clipping=training.gradient_clipping)
        return float(loss.detach())

    def examples(self, step: int) -> tuple[Tensor, Tensor]:
        """Scaled latents (b, t, c, h, w) and text (b, n, d), some of it dropped, of a step."""
        training, count = self.training, self.training.batch_size
        rng = np.random.default_rng(np.random.SeedSequence(training.seed, spawn_key=(1, step)))
        picked = rng.integers(len(self.world.captions), size=count)
        is_long = rng.random(count) < training.long_caption_probability
        is_kept = torch.from_numpy(rng.random(count) >= training.caption_dropout)
        text = self.text.encode(
            [
                self.world.captions[clip][long]
                for clip, long in zip(picked, is_long * 1, strict=True)
            ]
        )
        latents = self.world.latents[torch.from_numpy(picked)].float()
        return latents * self.config.codec.scale_factor, text * is_kept[:, None, None]

    def export(self, path: Path) -> None:
        """Write the mean weights, bfloat16, under the names of the official SAT checkpoints."""
        path.parent.mkdir(parents=True, exist_ok=True)
        weights = {name: value.bfloat16() for name, value in self.run.mean.items()}
        save_file(weights, path, metadata={"family": self.config.model.family})


def main() -> None:
    """Encode, train, export."""
    defaults = BaseTraining()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of the unfinished run")
    parser.add_argument("--output", type=Path, default=WEIGHTS)
    parser.add_argument("--clips", type=int, default=defaults.clips)
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--lr", type=float, default=defaults.lr)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--start", type=Path, help="weights file to go on from")
    parser.add_argument(
        "--compile",
        action="store_true",
        help="torch.compile: 1.7 times faster after two minutes; wants a C++ compiler",
    )
    parser.add_argument("--save-every", type=int, default=100)
    args = parser.parse_args()
    config = load_config([str(CONFIGS / "tiny.yaml"), str(CONFIGS / "baseline.yaml")], [])
    training = BaseTraining(steps=args.steps, clips=args.clips, lr=args.lr, seed=args.seed)
    world = encode_world(config, world=TinyWorld(), clips=args.clips, work=args.work)
    trainer = BaseTrainer(
        config, training=training, world=world, work=args.work, weights=args.start
    )
    if args.compile:
        trainer.compile()
    run = trainer.run
    started, first, mean_loss = time.monotonic(), run.step, math.nan
    while run.step < args.steps:
        loss = trainer.step()
        mean_loss = loss if math.isnan(mean_loss) else 0.98 * mean_loss + 0.02 * loss
        if run.step % 20 == 0:
            pace = (time.monotonic() - started) / (run.step - first)
            print(f"step {run.step} loss {mean_loss:.4f}, {pace:.2f} s per step", flush=True)
        if run.step % args.save_every == 0:
            run.save()
            trainer.export(args.output)
    trainer.export(args.output)


if __name__ == "__main__":
    main()
