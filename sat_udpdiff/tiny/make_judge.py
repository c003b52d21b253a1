"""Train the judge of the tiny world: kinds, depth, shapes and motions of its pixels.

    python -m sat_udpdiff.tiny.make_judge --work runs/judge --steps 1600

It sees clips of the simple world as they were rendered, and as the codec gives them back, with
noise on the latents as networks leave it, and blurred; the labels are those of the rendered clip.
Every step draws from (seed, step) alone: a stopped run goes on from its work folder.
"""

import argparse
import time
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from data_loaders.schema import Sample
from data_loaders.synthetic import HELD_OUT_START, make_scene
from sat_udpdiff.config_io import load_config
from sat_udpdiff.encoders.vae import VideoCodec
from sat_udpdiff.tiny.clips import TinyWorld, through_codec, to_network
from sat_udpdiff.tiny.judge import (
    FEATURES,
    WEIGHTS,
    WEIGHTS_FILE,
    WORLD,
    World,
    component_axes,
    pooled_features,
)
from sat_udpdiff.tiny.judge_network import (
    KINDS,
    MOTIONS,
    NUM_THINGS,
    SHAPES,
    JudgeNetwork,
    Verdict,
)
from sat_udpdiff.tiny.small_run import SmallRun, cosine_rate

CONFIGS = Path(__file__).parents[2] / "configs"


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeTraining:
    """Settings of the run."""

    steps: int = 1600
    batch_size: int = 4
    codec_share: float = 0.6
    """Of batches that went through the codec."""
    latent_noise: float = 0.35
    """Largest standard deviation of the noise on scaled latents, whose own is about 1."""
    blur_share: float = 0.15
    lr: float = 2e-3
    final_lr: float = 5e-5
    warmup_steps: int = 50
    ema_decay: float = 0.99
    depth_weight: float = 4.0
    word_weight: float = 0.2
    """Of shapes and of motions against kinds."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Labels:
    """What is true of clips."""

    kinds: Int64[Tensor, "b t h w"]
    depth: Float[Tensor, "b t h w"]
    shapes: Int64[Tensor, "b t h w"]
    """0 where there is no thing."""
    motions: Int64[Tensor, "b t h w"]


def kinds_of(sample: Sample, *, index: int, world: TinyWorld) -> tuple[np.ndarray, ...]:
    """Kind, shape and motion of every pixel of clip `index`, int64 (t, h, w) each."""
    scene = make_scene(index, seed=world.seed, config=world.config())
    names = [thing.colour for thing in scene.things]
    assert sample.entity_ids is not None
    kind = [KINDS.index(name) for name in (*names, "wall", "ground")]
    shape = [SHAPES.index(thing.shape) for thing in scene.things]
    motion = [list(MOTIONS).index(thing.motion) for thing in scene.things]
    # Ids begin at 1; what is no thing has the first shape and motion, which nothing is made of.
    tables = [kind, [*shape, 0, 0], [*motion, 0, 0]]
    return tuple(np.array([0, *t], dtype=np.int64)[sample.entity_ids] for t in tables)


def draw_batch(
    step: int, *, training: JudgeTraining, world: TinyWorld, codec: VideoCodec
) -> tuple[Float[Tensor, "b t 3 h w"], Labels]:
    """New clips of a step with their labels; pixels in [-1, 1], float32."""
    rng = np.random.default_rng(np.random.SeedSequence(training.seed, spawn_key=(step,)))
    clips, labels = [], []
    for slot in range(training.batch_size):
        index = step * training.batch_size + slot
        sample = world.clip(index)
        rgb = sample.rgb
        if rng.random() < training.blur_share:
            sigma = rng.uniform(0.4, 0.9)
            rgb = np.stack([cv2.GaussianBlur(frame, (0, 0), sigma) for frame in rgb])
        clips.append(to_network(rgb))
        assert sample.depth is not None
        depth = sample.depth.astype(np.float32) / 65535.0
        labels.append((depth, *kinds_of(sample, index=index, world=world)))
    video = torch.stack(clips)
    if rng.random() < training.codec_share:
        noise = torch.Generator().manual_seed(int(rng.integers(2**62)))
        video = through_codec(
            video, codec=codec, sigma=rng.uniform(0, training.latent_noise), generator=noise
        )
    depth, kinds, shapes, motions = (
        torch.from_numpy(np.stack(parts)) for parts in zip(*labels, strict=True)
    )
    return video, Labels(depth=depth, kinds=kinds, shapes=shapes, motions=motions)


def judge_loss(verdict: Verdict, labels: Labels, *, training: JudgeTraining) -> Tensor:
    """Cross-entropies of kinds, shapes and motions, and the absolute error of depth; a scalar.

    A class weighs by the root of its share of pixels: things are small.
    """
    share = torch.bincount(labels.kinds.flatten(), minlength=len(KINDS)) / labels.kinds.numel()
    weight = share.clamp(min=1e-3).rsqrt()
    loss = functional.cross_entropy(verdict.kinds, labels.kinds, weight=weight)
    loss = loss + training.depth_weight * (verdict.depth - labels.depth).abs().mean()
    on_things = labels.kinds < NUM_THINGS
    if on_things.any():
        for logits, truth in (
            (verdict.shapes, labels.shapes),
            (verdict.motions, labels.motions),
        ):
            loss = loss + training.word_weight * _cross_entropy_on(on_things, logits, truth)
    return loss


def _cross_entropy_on(
    mask: Bool[Tensor, "b t h w"],
    logits: Float[Tensor, "b n t h w"],
    truth: Int64[Tensor, "b t h w"],
) -> Tensor:
    return functional.cross_entropy(logits.movedim(1, -1)[mask], truth[mask])


def start(*, training: JudgeTraining, work: Path) -> SmallRun:
    """A new run, or the one that the work folder holds."""
    torch.manual_seed(training.seed)
    return SmallRun(JudgeNetwork(), weight_decay=0.01, ema_decay=training.ema_decay, work=work)


def train_step(
    run: SmallRun, *, training: JudgeTraining, world: TinyWorld, codec: VideoCodec
) -> float:
    """One step; returns its loss."""
    video, labels = draw_batch(run.step, training=training, world=world, codec=codec)
    loss = judge_loss(run.network(video), labels, training=training)
    rate = cosine_rate(
        run.step,
        steps=training.steps,
        warmup_steps=training.warmup_steps,
        peak=training.lr,
        final=training.final_lr,
    )
    run.update(loss, rate=rate, gradient_clipping=1.0)
    return float(loss.detach())


@torch.no_grad()
def shipped(
    run: SmallRun, *, world: TinyWorld, codec: VideoCodec, indices: Iterable[int]
) -> dict[str, Any]:
    """Mean weights at half precision, and the axes of clip features, from rendered clips.

    Half of the clips are seen through the codec, which all generated ones come out of.
    """
    state = {name: value.half() for name, value in run.mean.items()}
    network = JudgeNetwork().eval()
    network.load_state_dict({name: value.float() for name, value in state.items()})
    clips, subjects, backgrounds = [], [], []
    for number, index in enumerate(indices):
        video = to_network(world.clip(index).rgb)[None]
        if number % 2:
            video = through_codec(video, codec=codec)
        verdict = network(video)
        subject, background = pooled_features(verdict)
        clips.append(verdict.clip_features[0])
        subjects.append(subject)
        backgrounds.append(background)
    centre, axes = component_axes(torch.stack(clips).double(), count=FEATURES)
    of_world = World(
        subject=torch.cat(subjects).nanmean(0),
        background=torch.cat(backgrounds).nanmean(0),
        clip=centre.float(),
        axes=axes.float(),
    )
    return state | {f"{WORLD}{f.name}": getattr(of_world, f.name) for f in fields(World)}


def main() -> None:
    """Train and export; `measure_judge` measures what came out."""
    defaults = JudgeTraining()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of the unfinished run")
    parser.add_argument("--output", type=Path, default=WEIGHTS)
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--clips", type=int, default=512, help="that the axes are found from")
    args = parser.parse_args()
    world, training = TinyWorld(), JudgeTraining(steps=args.steps)
    codec = VideoCodec.load(load_config([str(CONFIGS / "tiny.yaml")], []).codec, device="cpu")
    run = start(training=training, work=args.work)
    started, mean_loss = time.monotonic(), 0.0
    while run.step < args.steps:
        loss = train_step(run, training=training, world=world, codec=codec)
        mean_loss = 0.98 * mean_loss + 0.02 * loss if mean_loss else loss
        if run.step % 50 == 0:
            seconds = time.monotonic() - started
            print(f"step {run.step} loss {mean_loss:.4f}, {seconds:.0f} s", flush=True)
        if run.step % 200 == 0:
            run.save()
    # Clips that the run has not seen, and none that are held out.
    unseen = range(HELD_OUT_START // 2, HELD_OUT_START // 2 + args.clips)
    state = shipped(run, world=world, codec=codec, indices=unseen)
    args.output.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: value.contiguous() for name, value in state.items()}, args.output / WEIGHTS_FILE
    )
    print("now: python -m sat_udpdiff.tiny.measure_judge")


if __name__ == "__main__":
    main()
