"""From a batch of clips to what the loss takes: latents, noise, timesteps and text."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from data_loaders.batches import AnyBatch, ClipBatch, LatentBatch
from sat_udpdiff.config import Config
from sat_udpdiff.diffusion.schedule import draw_timesteps
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
        batch: Clips, or their latents, on the device of the network.
        encoders: Frozen; None for latents, which need none. The posterior is sampled either way.
        config: Seed, schedule length, task signal, patch over time.
        samples_seen: Sample number at which this optimizer step begins.
        global_batch: Samples of this optimizer step over all ranks and micro-batches.
    """
    numbers = batch.numbers.tolist()
    if isinstance(batch, LatentBatch):
        video, dense, text = batch.video, batch.dense, batch.text
    else:
        assert encoders is not None
        video, dense = _encode(batch, codec=encoders.codec)
        text = _encode_text(batch, encoder=encoders.text)
    x0 = _sample(video, dense, numbers=numbers, seed=config.seed)
    x0 = repeat_first_frame(x0, patch_size_t=config.model.patch_size_t)
    noise = normal(numbers, seed=config.seed, stream=Stream.NOISE, shape=x0.shape[1:])
    t = draw_timesteps(
        uniform(numbers, seed=config.seed, stream=Stream.TIMESTEP),
        positions=batch.numbers - samples_seen,
        global_batch=global_batch,
        num_timesteps=config.diffusion.num_train_timesteps,
        stratified=config.diffusion.stratified_timesteps,
    )
    has_task = config.model.task_signal == "embedding" and config.model.dense_groups > 0
    return DiffusionExample(
        x0=x0,
        noise=noise.to(x0.device, non_blocking=True),
        t=t.to(x0.device, non_blocking=True),
        text=text.to(x0.device),
        task=batch.task.to(x0.device, non_blocking=True) if has_task else None,
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
