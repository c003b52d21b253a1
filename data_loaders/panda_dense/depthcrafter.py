"""Depth of a clip by DepthCrafter (arXiv:2409.02095), on the parts of diffusers.

A video diffusion model that draws disparity: noise is denoised beside the latents of the video,
under the CLIP embedding of each frame, in windows that overlap, and decoded. Larger = nearer. The
numbers follow the authors' own program; the terms of their weights are in `licences`.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from data_loaders.panda_dense.depth_clip import DepthClip, scale_clip
from data_loaders.panda_dense.depthcrafter_unet import predict_frames
from data_loaders.panda_dense.licences import license_of
from data_loaders.panda_dense.load_parts import (
    find_origin,
    load_network,
    revision_of,
    torch_dtype,
)
from data_loaders.panda_dense.models import (
    Dtype,
    ModelFacts,
    Pieces,
    library_version,
    load_or_explain,
)
from data_loaders.panda_dense.pixels import CLIP_MEAN, CLIP_STD, resize_cubic, to_unit
from data_loaders.panda_dense.seeds import clip_generator
from data_loaders.schema import DataError

_PUBLISHED_UNET = "tencent/DepthCrafter"
_PUBLISHED_BASE = "stabilityai/stable-video-diffusion-img2vid-xt"
GET_UNET = f"fetch it: hf download {_PUBLISHED_UNET}"
GET_BASE = f"fetch it: hf download {_PUBLISHED_BASE}"
_CLIP_SIZE = 224
_NOISE = 0.02
"""Standard deviation of the noise on the video before it is encoded, as in training."""
_TIME_IDS = (7.0, 127.0, _NOISE)
"""Frames per second, motion bucket and noise: what the authors always pass. Stable Video Diffusion
was trained on frames per second less one; 7 is that number already."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthCrafterSettings:
    """Weights and numbers of DepthCrafter; defaults are the authors' but for `decode_chunk`."""

    unet: str = _PUBLISHED_UNET
    """Folder or hub id of the video U-Net, the part that they trained."""
    base: str = _PUBLISHED_BASE
    """Folder or hub id with vae/, image_encoder/ and scheduler/: Stable Video Diffusion."""
    dtype: Dtype | None = None
    """Of all networks; None = fp16 on a GPU, as the authors run it, and fp32 on a CPU."""
    steps: int = 5
    """Of the sampler; the authors found more to add little."""
    guidance: float = 1.0
    """Classifier-free; above 1 each step runs the network twice. It was trained to need none."""
    window: int = 110
    """Frames denoised together; the longest it was trained on. Clips of 49 take one window."""
    overlap: int = 25
    """Frames that a window shares with the one before, where the two are blended."""
    max_side: int = 1024
    """Longer side worked at, pixels; what it was trained at. Sides become multiples of 64."""
    decode_chunk: int = 7
    """Frames encoded or decoded at once. The decoder looks along time within a chunk, so this
    changes depth slightly, not only memory. 7 divides 49; the authors' 8 would decode the 49th
    frame alone, which then differs in contrast from the one before."""
    seed: int = 42
    """Of the noise, with the key of the clip."""
    offload: bool = False
    """Keep on the GPU only the network at work; all of them take 4.4 GB in fp16."""


def check_depthcrafter(settings: DepthCrafterSettings, *, section: str) -> None:
    """Check the numbers.

    Raises:
        DataError: `SECTION.FIELD: expected ..., got ...`.
    """
    least = {"steps": 1, "window": 1, "overlap": 0, "max_side": 64, "decode_chunk": 1, "seed": 0}
    for name, minimum in least.items():
        value = getattr(settings, name)
        if value < minimum:
            raise DataError(f"{section}.{name}: expected at least {minimum}, got {value}")
    if settings.overlap >= settings.window:
        raise DataError(
            f"{section}.overlap: expected less than window = {settings.window}, "
            f"got {settings.overlap}"
        )
    if not settings.guidance >= 1:
        raise DataError(f"{section}.guidance: expected at least 1, got {settings.guidance}")


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthCrafterParts:
    """The networks, as transformers and diffusers make them."""

    unet: Any
    """`UNetSpatioTemporalConditionModel`."""
    vae: Any
    """`AutoencoderKLTemporalDecoder`."""
    image_encoder: Any
    """`CLIPVisionModelWithProjection`."""
    scheduler: Any
    """`EulerDiscreteScheduler`."""


class DepthCrafter:
    """Clips to disparity.

    Args:
        parts: The networks, in the dtype of the computation.
        settings: Numbers.
        device: Where they run.
        facts: For the manifest.
    """

    def __init__(
        self,
        parts: DepthCrafterParts,
        *,
        settings: DepthCrafterSettings,
        device: torch.device,
        facts: ModelFacts,
    ):
        self.parts = parts
        self.settings = settings
        self.device = device
        self.facts = facts
        self.dtype: torch.dtype = parts.unet.dtype
        self.pieces = Pieces(settings.decode_chunk)
        if self.dtype == torch.float16 and parts.vae.config.force_upcast:
            # It overflows in fp16 when it encodes, not when it decodes.
            parts.vae.encoder.float()
            parts.vae.quant_conv.float()
        if not settings.offload:
            for part in (parts.unet, parts.vae, parts.image_encoder):
                part.to(device)

    @classmethod
    def load(
        cls,
        settings: DepthCrafterSettings,
        *,
        device: torch.device,
        section: str = "depth.depthcrafter",
    ) -> "DepthCrafter":
        """Open the weights that the settings name.

        Raises:
            ValueError: They are not there or do not fit; names the setting and how to get them.
        """
        parts, revision = _load_parts(
            settings, dtype=torch_dtype(settings.dtype, device=device), section=section
        )
        facts = ModelFacts(
            backend="model",
            model=f"{settings.unet} on {settings.base}",
            revision=revision,
            version=library_version("diffusers"),
            license="; ".join(
                license_of(given, otherwise=published)
                for given, published in (
                    (settings.unet, _PUBLISHED_UNET),
                    (settings.base, _PUBLISHED_BASE),
                )
            ),
        )
        return cls(parts, settings=settings, device=device, facts=facts)

    @torch.inference_mode()
    def estimate(self, rgb: UInt8[np.ndarray, "t h w 3"], *, key: str) -> DepthClip:
        """Disparity of a clip.

        Args:
            rgb: Frames, 0..255, of any size.
            key: Of the clip; with the seed it decides the noise.

        Returns:
            Depth of the clip's own size, min-max over the clip after it was brought to that size;
            raw values are the mean of the decoded red, green and blue, 0..1.

        Raises:
            DataError: A value is not finite.
            torch.OutOfMemoryError: The device is full.
        """
        size = rgb.shape[1], rgb.shape[2]
        height, width = working_size(*size, max_side=self.settings.max_side)
        video = to_unit(resize_cubic(rgb, height=height, width=width)) * 2 - 1
        disparity = self.disparity(video, generator=clip_generator(self.settings.seed, key))
        if (height, width) != size:
            disparity = functional.interpolate(
                disparity[:, None], size=size, mode="bilinear", align_corners=False
            )[:, 0]
        return scale_clip(disparity.numpy(), key=key)

    @torch.inference_mode()
    def disparity(
        self, video: Float[Tensor, "t 3 h w"], *, generator: torch.Generator
    ) -> Float[Tensor, "t h w"]:
        """Disparity as the model gives it, 0..1, larger = nearer, float32 on the host.

        Args:
            video: Values -1..1; sides that are multiples of 64.
            generator: Of the noise, on the host: first that on the video, then that of the latents.
        """
        settings, parts = self.settings, self.parts
        frames, _, height, width = video.shape
        with self._at_work(parts.image_encoder):
            embeddings = torch.cat([self._embed(part) for part in video.split(self.pieces.size)])
        noise = torch.randn(video.shape, generator=generator)
        with self._at_work(parts.vae):
            latents = self._encode(video + _NOISE * noise)
        noise = torch.randn(
            1,
            min(frames, settings.window),
            latents.shape[1],
            height // _reduction(parts.vae),
            width // _reduction(parts.vae),
            generator=generator,
        )
        with self._at_work(parts.unet):
            drawn = self._denoise_windows(
                noise.to(self.device, self.dtype),
                video_latents=latents[None],
                embeddings=embeddings[None],
            )
        with self._at_work(parts.vae):
            return torch.cat([self._decode(part) for part in drawn[0].split(self.pieces.size)])

    def _embed(self, frames: Float[Tensor, "t 3 h w"]) -> Float[Tensor, "t d"]:
        small = (shrink_to_clip(frames.to(self.device)) + 1) / 2
        mean, std = (small.new_tensor(of).view(3, 1, 1) for of in (CLIP_MEAN, CLIP_STD))
        pixels = ((small - mean) / std).to(self.dtype)
        return self.parts.image_encoder(pixels).image_embeds

    def _encode(self, video: Float[Tensor, "t 3 h w"]) -> Float[Tensor, "t c h2 w2"]:
        """Latents without the VAE's scale, as Stable Video Diffusion's U-Net was given them."""
        vae = self.parts.vae
        dtype = vae.encoder.conv_in.weight.dtype
        encoded = [
            vae.encode(part.to(self.device, dtype)).latent_dist.mode()
            for part in video.split(self.pieces.size)
        ]
        return torch.cat(encoded).to(self.dtype)

    def _decode(self, latents: Float[Tensor, "t c h w"]) -> Float[Tensor, "t h2 w2"]:
        vae = self.parts.vae
        rgb = vae.decode(latents / vae.config.scaling_factor, num_frames=len(latents)).sample
        return (rgb.float() / 2 + 0.5).clamp(0, 1).mean(dim=1).cpu()

    def _denoise_windows(
        self,
        noise: Float[Tensor, "1 window c h w"],
        *,
        video_latents: Float[Tensor, "1 t c h w"],
        embeddings: Float[Tensor, "1 t d"],
    ) -> Float[Tensor, "1 t c h w"]:
        """Latents of the whole clip: window after window, linearly blended where they overlap."""
        frames, overlap = video_latents.shape[1], self.settings.overlap
        done: Tensor | None = None
        for start, end in windows(frames, window=self.settings.window, overlap=overlap):
            # What both windows see starts from what the first one made of it.
            shared = None if done is None or overlap == 0 else done[:, -overlap:]
            latents = self._denoise(
                noise[:, : end - start],
                video_latents=video_latents[:, start:end],
                embeddings=embeddings[:, start:end],
                shared=shared,
            )
            if done is None or shared is None:
                done = latents if done is None else torch.cat([done, latents], dim=1)
            else:
                weight = torch.linspace(0, 1, overlap, device=self.device).view(1, -1, 1, 1, 1)
                blend = latents[:, :overlap] * weight + shared * (1 - weight)
                blend = blend.to(latents.dtype)
                done = torch.cat([done[:, :-overlap], blend, latents[:, overlap:]], dim=1)
            # The next window's shared frames keep the noise that they had here.
            noise = noise.roll(overlap, dims=1)
        assert done is not None  # a clip has a frame
        return done

    def _denoise(
        self,
        noise: Float[Tensor, "1 t c h w"],
        *,
        video_latents: Float[Tensor, "1 t c h w"],
        embeddings: Float[Tensor, "1 t d"],
        shared: Float[Tensor, "1 overlap c h w"] | None,
    ) -> Float[Tensor, "1 t c h w"]:
        """Euler's method over one window.

        Args:
            noise: Standard normal.
            video_latents: Of the video.
            embeddings: CLIP's, of each frame.
            shared: Latents that the window before made of the first frames of this one.
        """
        scheduler, guidance = self.parts.scheduler, self.settings.guidance
        with warnings.catch_warnings():
            # diffusers hands numpy a tensor in a way that numpy 2 warns of.
            warnings.simplefilter("ignore", DeprecationWarning)
            scheduler.set_timesteps(self.settings.steps, device=self.device)
        latents = noise * scheduler.init_noise_sigma
        if shared is not None:
            count = shared.shape[1]
            renoised = shared + noise[:, :count] * scheduler.sigmas[0]
            latents = torch.cat([renoised.to(latents.dtype), latents[:, count:]], dim=1)
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(latents, t)
            predicted = self._predict(scaled, video_latents, t=t, embeddings=embeddings)
            if guidance > 1:
                # Without the video, its embeddings and its latents are zeros.
                free = self._predict(
                    scaled,
                    torch.zeros_like(video_latents),
                    t=t,
                    embeddings=torch.zeros_like(embeddings),
                )
                predicted = free + guidance * (predicted - free)
            latents = scheduler.step(predicted, t, latents).prev_sample
        return latents

    def _predict(
        self,
        scaled: Float[Tensor, "1 t c h w"],
        video_latents: Float[Tensor, "1 t c h w"],
        *,
        t: Tensor,
        embeddings: Float[Tensor, "1 t d"],
    ) -> Float[Tensor, "1 t c h w"]:
        ids = torch.tensor([_TIME_IDS], dtype=embeddings.dtype, device=self.device)
        return predict_frames(
            self.parts.unet,
            torch.cat([scaled, video_latents], dim=2),
            timestep=t,
            embeddings=embeddings,
            added_time_ids=ids,
        )

    @contextmanager
    def _at_work(self, part: Any) -> Iterator[None]:
        part.to(self.device)
        try:
            yield
        finally:
            if self.settings.offload:
                part.to("cpu")


def working_size(height: int, width: int, *, max_side: int) -> tuple[int, int]:
    """Height and width to work at: nearest multiples of 64, the longer at most about `max_side`.

    Halves go to the even multiple, as Python rounds: 480x720 becomes 512x704.
    """
    rows, columns = round(height / 64) * 64, round(width / 64) * 64
    if max(rows, columns) > max_side:
        scale = max_side / max(height, width)
        rows, columns = round(height * scale / 64) * 64, round(width * scale / 64) * 64
    return max(64, rows), max(64, columns)


def windows(frames: int, *, window: int, overlap: int) -> list[tuple[int, int]]:
    """First frame and the frame after the last of each window; the last may be shorter."""
    if frames <= window:
        return [(0, frames)]
    starts = range(0, frames - overlap, window - overlap)
    return [(start, min(start + window, frames)) for start in starts]


def shrink_to_clip(frames: Float[Tensor, "t 3 h w"]) -> Float[Tensor, "t 3 224 224"]:
    """Stretch to CLIP's size as Stable Video Diffusion does: a Gaussian blur, then cubic.

    The blur's standard deviation is (factor - 1) / 2 pixels, cut at about two of them; corners of
    the two pictures lie on each other.
    """
    for dim in (3, 2):
        frames = _blur(frames, dim=dim)
    size = (_CLIP_SIZE, _CLIP_SIZE)
    return functional.interpolate(frames, size=size, mode="bicubic", align_corners=True)


def _blur(frames: Float[Tensor, "t c h w"], *, dim: int) -> Float[Tensor, "t c h w"]:
    sigma = max((frames.shape[dim] / _CLIP_SIZE - 1) / 2, 0.001)
    taps = int(max(4 * sigma, 3)) // 2 * 2 + 1
    x = torch.arange(taps, dtype=frames.dtype, device=frames.device) - taps // 2
    weights = torch.exp(-(x**2) / (2 * sigma**2))
    weights = weights / weights.sum()
    along_width = dim == 3
    kernel = weights.view(1, 1, 1, -1) if along_width else weights.view(1, 1, -1, 1)
    reach = taps // 2
    padding = (reach, reach, 0, 0) if along_width else (0, 0, reach, reach)
    planes = rearrange(frames, "t c h w -> (t c) 1 h w")
    planes = functional.conv2d(functional.pad(planes, padding, mode="reflect"), kernel)
    return rearrange(planes, "(t c) 1 h w -> t c h w", c=frames.shape[1])


def _reduction(vae: Any) -> int:
    """Pixels per latent along a side."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def _load_parts(
    settings: DepthCrafterSettings, *, dtype: torch.dtype, section: str
) -> tuple[DepthCrafterParts, str]:
    """The networks, and the revisions of the two sets of weights."""
    from diffusers.models.autoencoders.autoencoder_kl_temporal_decoder import (
        AutoencoderKLTemporalDecoder,
    )
    from diffusers.models.unets.unet_spatio_temporal_condition import (
        UNetSpatioTemporalConditionModel,
    )
    from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
    from transformers import CLIPVisionModelWithProjection

    key = f"{section}.base"
    origins = {
        "unet": find_origin(settings.unet, key=f"{section}.unet", get=GET_UNET),
        "vae": find_origin(settings.base, key=key, get=GET_BASE, subfolder="vae"),
        "image_encoder": find_origin(
            settings.base, key=key, get=GET_BASE, subfolder="image_encoder"
        ),
    }
    classes = {
        "unet": UNetSpatioTemporalConditionModel,
        "vae": AutoencoderKLTemporalDecoder,
        "image_encoder": CLIPVisionModelWithProjection,
    }
    loaded = {
        name: load_network(classes[name], origin=origin, dtype=dtype)
        for name, origin in origins.items()
    }
    base = origins["vae"].source
    scheduler = load_or_explain(
        base,
        lambda: EulerDiscreteScheduler.from_pretrained(
            base.name, subfolder="scheduler", local_files_only=base.is_local
        ),
        key=key,
        get=GET_BASE,
    )
    revisions = [revision_of(origin) for origin in origins.values()]
    return DepthCrafterParts(scheduler=scheduler, **loaded), "+".join(filter(None, revisions))
