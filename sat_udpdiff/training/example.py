"""From a batch of clips to the loss: latents, noise, timesteps and text."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from data_loaders.batches import AnyBatch, ClipBatch, LatentBatch
from sat_udpdiff.config import Config
from sat_udpdiff.diffusion.loss import LossTerms, diffusion_loss
from sat_udpdiff.diffusion.schedule import NoiseSchedule, draw_timesteps
from sat_udpdiff.encoders.latents import LatentDistribution
from sat_udpdiff.encoders.text import TextEncoder
from sat_udpdiff.encoders.vae import VideoCodec
from sat_udpdiff.generation import Encoders
from sat_udpdiff.model.patches import repeat_first_frame
from sat_udpdiff.training.rng import Stream, normal, uniform


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DiffusionExample:
    """One micro-batch on the device of the network."""

    x0: Float[Tensor, "b t c h w"]
    """Scaled latents, float32: 16 channels of video, then those of the dense map, if any; copies of
    the first frame in front where the frames would not fill the last patch."""
    noise: Float[Tensor, "b t c h w"]
    t: Int64[Tensor, "b"]
    text: Float[Tensor, "b n d"]
    task: Int64[Tensor, "b"] | None
    """Rows of the task table; None for a network that has none."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class EncodedClips:
    """What a network sees of a batch, but for noise and timesteps; fields as in the example."""

    x0: Float[Tensor, "b t c h w"]
    text: Float[Tensor, "b n d"]
    task: Int64[Tensor, "b"] | None


@torch.no_grad()
def encode_clips(batch: AnyBatch, *, encoders: Encoders | None, config: Config) -> EncodedClips:
    """Latents and text of a batch, on the device of the network.

    Args:
        batch: Clips, or their latents, on the device of the network.
        encoders: Frozen; None for latents, which need none. The posterior is sampled either way.
        config: Seed, task signal, patch over time.
    """
    if isinstance(batch, LatentBatch):
        video, dense, text = batch.video, batch.dense, batch.text
    else:
        assert encoders is not None
        video, dense = _encode(batch, codec=encoders.codec)
        text = _encode_text(batch, encoder=encoders.text)
    x0 = _sample(video, dense, numbers=batch.numbers.tolist(), seed=config.seed)
    has_task = config.model.task_signal == "embedding" and config.model.dense_groups > 0
    return EncodedClips(
        x0=repeat_first_frame(x0, patch_size_t=config.model.patch_size_t),
        text=text.to(x0.device),
        task=batch.task.to(x0.device, non_blocking=True) if has_task else None,
    )


@torch.no_grad()
def make_example(
    batch: AnyBatch,
    *,
    encoders: Encoders | None,
    config: Config,
    samples_seen: int,
    global_batch: int,
) -> DiffusionExample:
    """Encode a micro-batch and draw its randomness, every sample from its own generators.

    Args:
        batch: As for `encode_clips`.
        encoders: Likewise.
        config: Seed, schedule length, task signal, patch over time.
        samples_seen: Sample number at which this optimizer step begins.
        global_batch: Samples of this optimizer step over all ranks and micro-batches.
    """
    numbers = batch.numbers.tolist()
    encoded = encode_clips(batch, encoders=encoders, config=config)
    x0 = encoded.x0
    noise = normal(numbers, seed=config.seed, stream=Stream.NOISE, shape=x0.shape[1:])
    t = draw_timesteps(
        uniform(numbers, seed=config.seed, stream=Stream.TIMESTEP),
        positions=batch.numbers - samples_seen,
        global_batch=global_batch,
        num_timesteps=config.diffusion.num_train_timesteps,
        stratified=config.diffusion.stratified_timesteps,
    )
    return DiffusionExample(
        x0=x0,
        noise=noise.to(x0.device, non_blocking=True),
        t=t.to(x0.device, non_blocking=True),
        text=encoded.text,
        task=encoded.task,
    )


def example_loss(
    network: Callable[..., Tensor],
    example: DiffusionExample,
    *,
    schedule: NoiseSchedule,
    config: Config,
) -> LossTerms:
    """Loss of each sample of a micro-batch: the one that is trained on and the one that is logged.

    Args:
        network: The engine, or the network itself.
        example: On its device.
        schedule: Likewise.
        config: Channels of the video, weight of the dense half.
    """

    def predict(x_t: Tensor, t: Tensor) -> Tensor:
        return network(x_t, timesteps=t, text=example.text, task=example.task)

    return diffusion_loss(
        predict,
        example.x0,
        noise=example.noise,
        t=example.t,
        schedule=schedule,
        video_channels=config.model.latent_channels,
        dense_weight=config.diffusion.dense_loss_weight,
    )


def _encode(
    batch: ClipBatch, *, codec: VideoCodec
) -> tuple[LatentDistribution, LatentDistribution | None]:
    """Posteriors of RGB and dense map.

    Both go through the codec together, as small clips would not fill the processor one by one;
    `codec.slicing` takes large ones apart again.
    """
    if batch.dense is None:
        return codec.encode(batch.rgb), None
    both = codec.encode(torch.cat([batch.rgb, batch.dense]))
    means, logvars = both.mean.chunk(2), both.logvar.chunk(2)
    video, dense = (
        LatentDistribution(mean=mean, logvar=logvar)
        for mean, logvar in zip(means, logvars, strict=True)
    )
    return video, dense


def _encode_text(batch: ClipBatch, *, encoder: TextEncoder) -> Float[Tensor, "b n d"]:
    text = encoder.encode(batch.captions)
    dropped = batch.drop_caption.to(text.device)[:, None, None]
    return torch.where(dropped, encoder.unconditional(len(batch.captions)).to(text.dtype), text)


def _sample(
    video: LatentDistribution, dense: LatentDistribution | None, *, numbers: list[int], seed: int
) -> Float[Tensor, "b t c h w"]:
    """Draw latents of RGB and dense map, joined over channels."""
    views = [(video, Stream.VIDEO_LATENT)]
    if dense is not None:
        views.append((dense, Stream.DENSE_LATENT))
    latents = []
    for posterior, stream in views:
        noise = normal(numbers, seed=seed, stream=stream, shape=posterior.mean.shape[1:])
        latents.append(posterior.sample(noise.to(posterior.mean.device, non_blocking=True)))
    return torch.cat(latents, dim=2)
