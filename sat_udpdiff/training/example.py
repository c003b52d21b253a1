"""From a batch of clips to what the loss takes: latents, noise, timesteps and text."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from data_loaders.loader import Batch
from sat_udpdiff.config import Config
from sat_udpdiff.diffusion.schedule import draw_timesteps
from sat_udpdiff.encoders.vae import VideoCodec
from sat_udpdiff.generation import Encoders
from sat_udpdiff.training.rng import Stream, normal, uniform


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DiffusionExample:
    """One micro-batch on the device of the network."""

    x0: Float[Tensor, "b t c h w"]
    """Scaled latents, float32: 16 channels of video, then those of the dense map, if any."""
    noise: Float[Tensor, "b t c h w"]
    t: Int64[Tensor, "b"]
    text: Float[Tensor, "b n d"]
    task: Int64[Tensor, "b"] | None
    """Rows of the task table; None for a network that has none."""


@torch.no_grad()
def make_example(
    batch: Batch,
    *,
    encoders: Encoders,
    config: Config,
    samples_seen: int,
    global_batch: int,
) -> DiffusionExample:
    """Encode a micro-batch and draw its randomness, every sample from its own generators.

    Args:
        batch: On the CPU.
        encoders: Frozen; the codec's posterior is sampled. On the device of the network.
        config: Seed, schedule length, task signal.
        samples_seen: Sample number at which this optimizer step begins.
        global_batch: Samples of this optimizer step over all ranks and micro-batches.
    """
    numbers = batch.numbers.tolist()
    device = encoders.codec.device
    x0 = _encode(batch, codec=encoders.codec, seed=config.seed)
    noise = normal(numbers, seed=config.seed, stream=Stream.NOISE, shape=x0.shape[1:])
    t = draw_timesteps(
        uniform(numbers, seed=config.seed, stream=Stream.TIMESTEP),
        positions=batch.numbers - samples_seen,
        global_batch=global_batch,
        num_timesteps=config.diffusion.num_train_timesteps,
        stratified=config.diffusion.stratified_timesteps,
    )
    text = encoders.text.encode(batch.captions)
    dropped = batch.drop_caption.to(text.device)[:, None, None]
    text = torch.where(dropped, encoders.text.unconditional(len(numbers)).to(text.dtype), text)
    has_task = config.model.task_signal == "embedding" and config.model.dense_groups > 0
    return DiffusionExample(
        x0=x0,
        noise=noise.to(device, non_blocking=True),
        t=t.to(device, non_blocking=True),
        text=text.to(device),
        task=batch.task.to(device, non_blocking=True) if has_task else None,
    )


def _encode(batch: Batch, *, codec: VideoCodec, seed: int) -> Float[Tensor, "b t c h w"]:
    """Latents of RGB and dense map, joined over channels.

    Both go through the codec together, as small clips would not fill the processor one by one;
    `codec.slicing` takes large ones apart again.
    """
    views = [(batch.rgb, Stream.VIDEO_LATENT)]
    if batch.dense is not None:
        views.append((batch.dense, Stream.DENSE_LATENT))
    posterior = codec.encode(torch.cat([video for video, _ in views]))
    numbers, shape = batch.numbers.tolist(), posterior.mean.shape[1:]
    noise = [normal(numbers, seed=seed, stream=stream, shape=shape) for _, stream in views]
    latents = posterior.sample(torch.cat(noise).to(codec.device))
    return torch.cat(latents.chunk(len(views)), dim=2)
