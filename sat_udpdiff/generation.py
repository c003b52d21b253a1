"""Sampling: from a prompt to a video and its dense map.

A sample is a function of (weights, prompt, task, seed, configuration): every random number comes
from its own seed, and text is encoded, guided and decoded sample by sample.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Literal, Protocol, cast, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float32, Int32, Int64, UInt8
from torch import Tensor

from data_loaders.captions import name_task
from sat_udpdiff.colormaps import depth, location_aware, pixelplanes
from sat_udpdiff.colormaps.pixel_values import to_uint8
from sat_udpdiff.config import TASKS, ColormapConfig, Config, Task
from sat_udpdiff.config_values import hint
from sat_udpdiff.diffusion.guidance import guidance_scale, guide
from sat_udpdiff.diffusion.noise import per_sample_noise, start_noise
from sat_udpdiff.diffusion.samplers import ddim, dpmpp_2m_sde
from sat_udpdiff.diffusion.schedule import SamplingSteps, make_schedule, sampling_steps
from sat_udpdiff.encoders.latents import LatentSize, latent_size
from sat_udpdiff.encoders.text import TextEncoder
from sat_udpdiff.encoders.vae import VideoCodec
from sat_udpdiff.model.patches import extra_frames
from sat_udpdiff.parallel.sampling import Helpers

Stage = Literal["text", "denoise", "vae_video", "vae_dense", "colormap"]
"""Parts of sampling in their order: prompt to tokens, all steps of the network, latents to pixels
of the video and of the dense map, colours to ids or depth."""
StageWatch = Callable[[Stage], AbstractContextManager[object]]
"""Makes what is entered around a stage, which may be in parts: a clock that adds up."""


def unwatched(stage: Stage) -> AbstractContextManager[object]:
    """Nothing around a stage."""
    return nullcontext()


@runtime_checkable
class Network(Protocol):
    """What sampling needs of `UDPDiffTransformer`."""

    def __call__(
        self,
        latents: Float[Tensor, "b t c h w"],
        *,
        timesteps: Int64[Tensor, "b"],
        text: Float[Tensor, "b n d"],
        task: Int64[Tensor, "b"] | None,
    ) -> Float[Tensor, "b t c h w"]:
        """Velocity of every channel."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoders:
    """The frozen networks around the one that is sampled."""

    codec: VideoCodec
    text: TextEncoder

    @classmethod
    def load(cls, config: Config, *, device: torch.device | str) -> "Encoders":
        """Load both; ValueError names what is missing and where it is to be had."""
        text = TextEncoder.load(
            config.text,
            text_length=config.model.text_length,
            text_dim=config.model.text_dim,
            device=device,
        )
        return cls(codec=VideoCodec.load(config.codec, device=device), text=text)


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleRequest:
    """Samples of one prompt and one task."""

    prompt: str
    task: Task | None
    """What the dense map shows; None for a network without one."""
    seeds: tuple[int, ...]
    """One sample each, >= 0."""
    num_frames: int
    """4k + 1."""
    height: int
    """Pixels, as `width` a multiple of the codec's compression times the patch."""
    width: int
    batch_size: int = 1
    """Samples that go through the network together. Of no influence but for rounding: with 1 a
    sample is the same to the last bit whatever else is asked for."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class GeneratedSample:
    """One video, its dense map, and what the map says."""

    prompt: str
    task: Task | None
    seed: int
    rgb: UInt8[np.ndarray, "t h w 3"]
    """The video."""
    dense: UInt8[np.ndarray, "t h w 3"] | None
    """The dense map in colours, as generated; None without one."""
    entity_ids: Int32[np.ndarray, "t h w"] | None
    """task segmentation: entity of each pixel over the whole clip, 0 = unlabelled."""
    depth: Float32[np.ndarray, "t h w"] | None
    """task depth: disparity in (0, 1], 1 = near."""


# inference_mode is out: tables that the network caches now would be unusable in training later.
@torch.no_grad()
def generate(  # noqa: PLR0913 - two of them look on and change nothing
    network: Network,
    request: SampleRequest,
    *,
    encoders: Encoders,
    config: Config,
    on_step: Callable[[int], object] | None = None,
    watch: StageWatch = unwatched,
    helpers: Helpers | None = None,
) -> list[GeneratedSample]:
    """One sample per seed of the request, in their order.

    Args:
        network: predicts v; in evaluation mode, on the encoders' device.
        request: what is wanted.
        encoders: text encoder and video codec of `config`.
        config: model, diffusion, colormap and sample settings.
        on_step: told the number of samples in the batch after each sampling step.
        watch: entered around each stage.
        helpers: processes that share the decoding, all with the same arguments; only the first of
            them gets samples, the others none. None = this process is alone.

    Raises:
        ValueError: the request does not fit the network; nothing was computed.
    """
    check_request(request, config=config)
    helpers = helpers or Helpers()
    samples = []
    for first in range(0, len(request.seeds), request.batch_size):
        seeds = request.seeds[first : first + request.batch_size]
        latents = sample_latents(
            network,
            request,
            seeds=seeds,
            encoders=encoders,
            config=config,
            on_step=on_step,
            watch=watch,
        )
        decoded = _decode(
            latents, codec=encoders.codec, config=config, watch=watch, helpers=helpers
        )
        for seed, (rgb, *dense) in zip(seeds, decoded, strict=helpers.is_first):
            with watch("colormap"):
                sample = _finish(request, seed=seed, rgb=rgb, dense=dense, config=config.colormap)
            samples.append(sample)
    return samples


@torch.no_grad()
def sample_latents(  # noqa: PLR0913 - the arguments of `generate`, and the seeds of one batch
    network: Network,
    request: SampleRequest,
    *,
    seeds: tuple[int, ...],
    encoders: Encoders,
    config: Config,
    on_step: Callable[[int], object] | None = None,
    watch: StageWatch = unwatched,
) -> Float[Tensor, "b t c h w"]:
    """Latents of one batch, video channels first, float32; arguments as for `generate`."""
    device, settings, count = encoders.codec.device, config.sample, len(seeds)
    size = latent_size(
        config.codec, num_frames=request.num_frames, height=request.height, width=request.width
    )
    channels = config.model.latent_channels * (1 + config.model.dense_groups)
    extra = extra_frames(size.frames, patch_size_t=config.model.patch_size_t)
    shape = (extra + size.frames, channels, size.height, size.width)
    steps = sampling_steps(
        settings.num_steps,
        noise_schedule=make_schedule(config.diffusion),
        schedule=settings.schedule,
    )
    with watch("text"):
        prompt = encoders.text.encode([_told(request, config)])
        text = torch.cat([encoders.text.unconditional(1), prompt]).repeat_interleave(count, dim=0)
    denoise = _guided(network, text=text, steps=steps, task=request.task, config=config)

    def callback(step: int, x: Tensor, x0_hat: Tensor) -> None:
        if on_step is not None:
            on_step(count)

    with watch("denoise"):
        noise = start_noise(seeds, shape=shape, device=device)
        if settings.sampler == "ddim":
            latents = ddim(denoise, noise, steps=steps, callback=callback)
        else:
            draws = per_sample_noise(seeds, shape=shape, device=device)
            latents = dpmpp_2m_sde(denoise, noise, steps=steps, noise_fn=draws, callback=callback)
    return latents[:, extra:]  # the network saw copies of the first frame in front of a clip


def _guided(
    network: Network,
    *,
    text: Float[Tensor, "b2 n d"],
    steps: SamplingSteps,
    task: Task | None,
    config: Config,
) -> Callable[[Tensor, int], Tensor]:
    """The clean latents that the network sees in noisy ones at a step, under guidance.

    `text` holds the branch without the prompt, then the one with it, each of the whole batch.
    """
    settings, branches, ids = config.sample, len(text), None
    # The task is told in both branches: guidance must not pull away from it.
    if config.model.task_signal == "embedding" and task is not None:
        ids = torch.full((branches,), TASKS.index(task), device=text.device)

    def denoise(x: Tensor, step: int) -> Tensor:
        timesteps = torch.full((branches,), steps.timesteps[step], device=x.device)
        v = network(torch.cat([x, x]), timesteps=timesteps, text=text, task=ids)
        scale = guidance_scale(
            settings.guidance,
            scale=settings.guidance_scale,
            step=step,
            timestep=steps.timesteps[step],
            num_steps=len(steps),
        )
        uncond, cond = v.chunk(2)
        return steps.x0_from_velocity(x, velocity=guide(uncond, cond, scale), step=step)

    return denoise


def check_request(request: SampleRequest, *, config: Config) -> None:
    """Raise ValueError where a request does not fit the network; needs no weights."""
    if not request.prompt.strip():
        raise ValueError("prompt: expected some text, got an empty prompt")
    if not request.seeds or min(request.seeds) < 0:
        raise ValueError(f"seeds: expected one or more integers >= 0, got {list(request.seeds)}")
    if request.batch_size < 1:
        raise ValueError(f"batch size: expected at least 1, got {request.batch_size}")
    check_task(request.task, config=config)
    check_size(
        num_frames=request.num_frames, height=request.height, width=request.width, config=config
    )


def check_size(*, num_frames: int, height: int, width: int, config: Config) -> LatentSize:
    """Latent extent of a clip; ValueError where it does not fit the codec or the patches."""
    cell = config.codec.spatial_compression * config.model.patch_size
    size = latent_size(config.codec, num_frames=num_frames, height=height, width=width)
    for name, pixels in (("height", height), ("width", width)):
        if pixels % cell:
            raise ValueError(f"{name}: expected a multiple of {cell} pixels, got {pixels}")
    return size


def check_task(task: str | None, *, config: Config) -> Task | None:
    """The task, if the network makes dense maps of it; None for a network that makes none.

    Raises:
        ValueError: Unknown, not trained, missing, or given where there are no dense maps.
    """
    if config.model.dense_groups == 0:
        if task is not None:
            raise ValueError(
                f"task: this network makes no dense map (model.dense_groups=0); leave {task!r} out"
            )
        return None
    if task is None:
        raise ValueError(f"task: expected one of {', '.join(TASKS)}, got none")
    if task not in TASKS:
        raise ValueError(f"task: expected one of {', '.join(TASKS)}{hint(task, TASKS)}, got {task}")
    if task not in config.data.tasks:
        raise ValueError(
            f"task: this network was trained on {', '.join(config.data.tasks)} only "
            f"(data.tasks), got {task}"
        )
    return cast(Task, task)


def decode_dense(
    dense: UInt8[np.ndarray, "t h w 3"], *, task: Task, config: ColormapConfig
) -> tuple[Int32[np.ndarray, "t h w"] | None, Float32[np.ndarray, "t h w"] | None]:
    """What a dense map says: (entity ids, None) or (None, disparity)."""
    if task == "depth":
        return None, depth.decode(dense, inverse=config.depth_inverse)
    if config.segmentation == "location_aware":
        return location_aware.decode(dense, grid=config.location_grid), None
    return pixelplanes.decode(dense), None


def _told(request: SampleRequest, config: Config) -> str:
    """The prompt as the network was trained to read it."""
    if config.model.task_signal == "prompt" and request.task is not None:
        return name_task(request.prompt, task=request.task)
    return request.prompt


def _decode(
    latents: Float[Tensor, "b t c h w"],
    *,
    codec: VideoCodec,
    config: Config,
    watch: StageWatch,
    helpers: Helpers,
) -> list[list[UInt8[np.ndarray, "t2 h2 w2 3"]]]:
    """Pixels of every sample: the video's, then those of the dense map, if there is one."""
    views = [z for latent in latents for z in latent.split(config.model.latent_channels, dim=1)]
    per_sample = len(views) // len(latents)
    decodes = [codec.pieces(view[None]) for view in views]
    numbered = [(view, piece) for view, one in enumerate(decodes) for piece in range(len(one))]

    def stage(view: int) -> AbstractContextManager[object]:
        return watch("vae_dense" if view % per_sample else "vae_video")

    def make(number: int) -> Tensor:
        view, piece = numbered[number]
        with stage(view):
            return decodes[view].decode(piece)

    # One after the other: decoding takes more memory than everything before it.
    shapes = [shape for one in decodes for shape in one.shapes]
    made = iter(helpers.make(make, shapes=shapes, dtype=codec.dtype))
    pixels = []
    for view, one in enumerate(decodes if helpers.is_first else []):
        with stage(view):
            pixels.append(to_uint8(one.join(list(islice(made, len(one))))[0]))
    return [pixels[first : first + per_sample] for first in range(0, len(pixels), per_sample)]


def _finish(
    request: SampleRequest,
    *,
    seed: int,
    rgb: np.ndarray,
    dense: list[np.ndarray],
    config: ColormapConfig,
) -> GeneratedSample:
    ids, disparity = None, None
    if dense and request.task is not None:
        ids, disparity = decode_dense(dense[0], task=request.task, config=config)
    return GeneratedSample(
        prompt=request.prompt,
        task=request.task,
        seed=seed,
        rgb=rgb,
        dense=dense[0] if dense else None,
        entity_ids=ids,
        depth=disparity,
    )
