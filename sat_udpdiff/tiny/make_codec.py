"""Train the tiny video codec: diffusers' AutoencoderKLCogVideoX, 4x in space and 4x in time.

    python -m sat_udpdiff.tiny.make_codec --work runs/codec --steps 3200

The codec sees RGB clips of the synthetic world and their segmentation and depth colormaps, as the
codec of the real model does. `--start` takes the weights of an earlier round, whose `--seed` it
should not repeat. Early steps use small crops, since a step costs what it has pixels and
the codec is nearly local; the last ones whole clips, since its GroupNorm sees all of a clip.
Every step draws from (seed, step) alone: a stopped run goes on from its work folder.
"""

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX
from jaxtyping import Float
from torch import Tensor

from data_loaders.synthetic import HELD_OUT_START
from sat_udpdiff.tiny.clips import TinyWorld, View, paint, to_network
from sat_udpdiff.tiny.measure_codec import CodecQuality, measure_codec
from sat_udpdiff.tiny.small_run import SmallRun, cosine_rate

WEIGHTS = Path(__file__).parent / "weights" / "codec"
ARCHITECTURE = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("CogVideoXDownBlock3D",) * 3,
    "up_block_types": ("CogVideoXUpBlock3D",) * 3,
    "block_out_channels": (16, 32, 64),
    "latent_channels": 16,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "temporal_compression_ratio": 4,
    "sample_height": 32,
    "sample_width": 48,
}
# Depth is smooth and met its target first; edges of saturated colours need the most steps.
VIEW_ODDS: dict[View, float] = {"rgb": 0.45, "segmentation": 0.4, "depth": 0.15}
FULL_WORLD_SHARE = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class CodecTraining:
    """Settings of the run."""

    steps: int = 3200
    batch_size: int = 4
    stages: tuple[tuple[float, int, int, int], ...] = (
        (0.10, 9, 24, 32),
        (1.00, 9, 32, 48),
    )
    """Crops: up to which share of the steps, frames, rows, columns.

    Frames 8k + 1: diffusers decodes an odd number of latent frames only."""
    lr: float = 2e-3
    final_lr: float = 5e-5
    warmup_steps: int = 100
    kl_weight: float = 2e-4
    ema_decay: float = 0.995
    seed: int = 0


def draw_batch(
    step: int, *, training: CodecTraining, world: TinyWorld
) -> Float[Tensor, "b 3 t h w"]:
    """The batch of a step: one random view of each of `batch_size` new clips, cropped.

    Returns:
        Values in [-1, 1], float32, diffusers' order of dimensions.
    """
    rng = np.random.default_rng(np.random.SeedSequence(training.seed, spawn_key=(step,)))
    share = step / training.steps
    _, frames, height, width = next(stage for stage in training.stages if share < stage[0])
    size = np.array([frames, height, width])
    clips = []
    for slot in range(training.batch_size):
        full = rng.random() < FULL_WORLD_SHARE
        sample = world.clip(step * training.batch_size + slot, world="full" if full else "simple")
        view: View = rng.choice(list(VIEW_ODDS), p=list(VIEW_ODDS.values()))
        video = to_network(paint(sample, view=view, generator=rng))
        corner = rng.integers([0, 0, 0], np.array(video.shape)[[0, 2, 3]] - size + 1)
        start, top, left = (int(c) for c in corner)
        crop = video[start : start + frames, :, top : top + height, left : left + width]
        clips.append(crop)
    return torch.stack(clips).transpose(1, 2)


def codec_loss(
    codec: AutoencoderKLCogVideoX,
    video: Float[Tensor, "b 3 t h w"],
    *,
    noise: Float[Tensor, "b c t2 h2 w2"],
    kl_weight: float,
) -> tuple[Tensor, Tensor]:
    """Mean |error| + 2 mean error^2 + kl_weight * mean KL(posterior, N(0, I)).

    Returns:
        The loss and the mean squared error, scalars.
    """
    posterior: Any = codec.encode(video, return_dict=False)[0]
    decoded: Any = codec.decode(posterior.mean + posterior.std * noise, return_dict=False)[0]
    error = decoded - video
    squared = error.square().mean()
    kl = 0.5 * (posterior.mean.square() + posterior.var - 1.0 - posterior.logvar).mean()
    return error.abs().mean() + 2.0 * squared + kl_weight * kl, squared.detach()


def whole_clip(codec: Any, *, frames: int) -> AutoencoderKLCogVideoX:
    """Make diffusers encode and decode the clip in one pass."""
    codec.num_sample_frames_batch_size = frames
    codec.num_latent_frames_batch_size = frames
    return codec


def start(*, training: CodecTraining, work: Path, weights: Path | None = None) -> SmallRun:
    """A new run from nothing or from `weights`, or the one that the work folder holds."""
    torch.manual_seed(training.seed)
    codec = AutoencoderKLCogVideoX(**ARCHITECTURE)
    if weights is not None:
        codec = AutoencoderKLCogVideoX.from_pretrained(weights, torch_dtype=torch.float32)
    return SmallRun(codec, weight_decay=0.0, ema_decay=training.ema_decay, work=work)


def train_step(run: SmallRun, *, training: CodecTraining, world: TinyWorld) -> float:
    """One step; returns its PSNR in dB."""
    video = draw_batch(run.step, training=training, world=world)
    draws = torch.Generator().manual_seed(training.seed * 1_000_003 + run.step)
    b, _, t, h, w = video.shape
    shape = (b, ARCHITECTURE["latent_channels"], (t - 1) // 4 + 1, h // 4, w // 4)
    codec = whole_clip(run.network, frames=t)
    noise = torch.randn(shape, generator=draws)
    loss, squared = codec_loss(codec, video, noise=noise, kl_weight=training.kl_weight)
    rate = cosine_rate(
        run.step,
        steps=training.steps,
        warmup_steps=training.warmup_steps,
        peak=training.lr,
        final=training.final_lr,
    )
    run.update(loss, rate=rate, gradient_clipping=1.0)
    return 10.0 * math.log10(4.0 / max(float(squared), 1e-12))


def shipped(run: SmallRun, *, world: TinyWorld) -> AutoencoderKLCogVideoX:
    """The codec with the mean weights, at half precision and back, as it is shipped."""
    codec = whole_clip(AutoencoderKLCogVideoX(**ARCHITECTURE), frames=world.frames)
    codec.load_state_dict({name: value.half().float() for name, value in run.mean.items()})
    return codec.eval().requires_grad_(False)


def export(codec: AutoencoderKLCogVideoX, quality: CodecQuality, *, folder: Path) -> None:
    """Write the codec in diffusers' layout, float16, with its measured quality beside it."""
    codec.half().save_pretrained(folder)
    (folder / "quality.json").write_text(json.dumps(asdict(quality), indent=2) + "\n")


def main() -> None:
    """Train, measure, export."""
    defaults = CodecTraining()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of the unfinished run")
    parser.add_argument("--output", type=Path, default=WEIGHTS)
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--lr", type=float, default=defaults.lr)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--start", type=Path, help="folder of a codec to go on from")
    parser.add_argument("--measure-every", type=int, default=500)
    args = parser.parse_args()
    world, training = TinyWorld(), CodecTraining(steps=args.steps, lr=args.lr, seed=args.seed)
    run = start(training=training, work=args.work, weights=args.start)
    held_out = range(HELD_OUT_START, HELD_OUT_START + 8)
    started, mean_psnr = time.monotonic(), 0.0
    while run.step < args.steps:
        psnr = train_step(run, training=training, world=world)
        mean_psnr = 0.98 * mean_psnr + 0.02 * psnr if mean_psnr else psnr
        if run.step % 50 == 0:
            seconds = time.monotonic() - started
            print(f"step {run.step} train psnr {mean_psnr:.2f} dB, {seconds:.0f} s", flush=True)
        if run.step % args.measure_every == 0:
            run.save()
            codec = shipped(run, world=world)
            print(measure_codec(codec, world=world, indices=held_out), flush=True)
    held_out = range(HELD_OUT_START, HELD_OUT_START + 64)
    codec = shipped(run, world=world)
    quality = measure_codec(codec, world=world, indices=held_out)
    print(quality)
    export(codec, quality, folder=args.output)


if __name__ == "__main__":
    main()
