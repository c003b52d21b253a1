"""The frozen video codec: pixels to latents and back, through diffusers' AutoencoderKLCogVideoX.

Two facts of the released weights are kept here. They were trained on latents of whole clips, and
GroupNorm statistics are taken over whatever goes through in one pass: encoding in chunks, the
default of diffusers, gives other latents. Decoding, on the contrary, was always done in chunks of
3, 2, 2, ... latent frames, and diffusers' default is the same.
"""

from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from sat_udpdiff.config import VideoCodecConfig
from sat_udpdiff.encoders.latents import LatentDistribution, LatentSize, latent_size
from sat_udpdiff.encoders.source import DTYPES, WeightSource, find_source, loading_error
from sat_udpdiff.encoders.tiles import PiecewiseDecode, as_video

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX

_KEY = "codec.weights"
_GET = (
    "set codec.weights=tiny, or fetch the real ones: "
    "hf download THUDM/CogVideoX-5b --include 'vae/*' --local-dir FOLDER"
)


class VideoCodec:
    """Frozen encoder and decoder of video clips.

    Video is (b, t, 3, h, w) with values in [-1, 1]; latents are (b, t', c, h', w'), multiplied by
    `scale_factor`, float32. Computation is in `config.dtype`.

    Args:
        vae: the autoencoder; it is frozen, moved and switched to evaluation here.
        config: scale, compression, chunking and memory switches.
        device: where it runs.

    Raises:
        ValueError: the autoencoder's compression is not the configured one.
    """

    def __init__(
        self,
        vae: "AutoencoderKLCogVideoX",
        *,
        config: VideoCodecConfig,
        device: torch.device | str = "cpu",
    ):
        _check_compression(vae, config)
        self.config = config
        self.device = torch.device(device)
        self.dtype = DTYPES[config.dtype]
        self.latent_channels = int(vae.config["latent_channels"])
        # torch's own `to`: that of diffusers warns about an empty list of float32 modules.
        torch.nn.Module.to(vae, device=self.device, dtype=self.dtype)
        self.vae: Any = vae.eval().requires_grad_(False)
        if config.tiling:
            enable_tiling(vae)
        if config.slicing:
            self.vae.enable_slicing()

    @classmethod
    def load(cls, config: VideoCodecConfig, *, device: torch.device | str = "cpu") -> "VideoCodec":
        """Load the weights that `config.weights` names (folder, hub id or 'tiny').

        Raises:
            ValueError: nothing there, or weights that do not fit; the message names the place and
                says where weights are to be had.
        """
        source = find_codec(config)
        from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX

        try:
            loaded: Any = AutoencoderKLCogVideoX.from_pretrained(
                source.name,
                subfolder=source.subfolder or None,
                local_files_only=source.is_local,
                low_cpu_mem_usage=False,
                output_loading_info=True,
            )
        except Exception as cause:
            raise loading_error(source, key=_KEY, get=_GET, cause=cause) from cause
        vae, info = loaded
        # diffusers only logs these: a codec with missing tensors would run on random ones.
        wrong = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
        if wrong:
            raise ValueError(
                f"{_KEY}: {len(wrong)} tensors of {source.name} do not fit its config.json, "
                f"first {wrong[0]!r}; {_GET}"
            )
        return cls(vae, config=config, device=device)

    def latent_size(self, *, num_frames: int, height: int, width: int) -> LatentSize:
        """Latent extent of a clip; ValueError when the clip does not fit."""
        return latent_size(self.config, num_frames=num_frames, height=height, width=width)

    @torch.no_grad()
    def encode(self, rgb: Float[Tensor, "b t c h w"]) -> LatentDistribution:
        """Encode clips.

        Args:
            rgb: values in [-1, 1]; t = 4k + 1, h and w multiples of the compression.

        Returns:
            Distribution of the scaled latents, float32, (b, (t - 1) / 4 + 1, c, h / s, w / s).

        Raises:
            ValueError: the clip's size does not fit; the message has the numbers.
        """
        return self.encode_unscaled(rgb).scaled(self.config.scale_factor)

    @torch.no_grad()
    def encode_unscaled(self, rgb: Float[Tensor, "b t c h w"]) -> LatentDistribution:
        """`encode` before scaling and in the codec's own dtype: what a cache keeps, unrounded."""
        if rgb.ndim != 5 or rgb.shape[2] != 3:
            raise ValueError(f"rgb: expected (b, t, 3, h, w), got {tuple(rgb.shape)}")
        num_frames, _, height, width = rgb.shape[1:]
        self.latent_size(num_frames=num_frames, height=height, width=width)
        x = rearrange(rgb, "b t c h w -> b c t h w").to(device=self.device, dtype=self.dtype)
        # The order in memory chooses the kernels and so the last bits; callers have several.
        x = x.contiguous()
        if self.config.encode_chunks == "whole":
            self.vae.num_sample_frames_batch_size = num_frames
        posterior = self.vae.encode(x).latent_dist
        return LatentDistribution(
            mean=rearrange(posterior.mean, "b c t h w -> b t c h w"),
            logvar=rearrange(posterior.logvar, "b c t h w -> b t c h w"),
        )

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "b t c h w"]) -> Float[Tensor, "b t2 3 h2 w2"]:
        """Decode scaled latents to video, float32, clamped to [-1, 1].

        Raises:
            ValueError: wrong number of channels.
        """
        latents = self._checked(latents)
        return decode_latents(self.vae, latents, scale_factor=self.config.scale_factor)

    def pieces(self, latents: Float[Tensor, "b t c h w"]) -> PiecewiseDecode:
        """`decode` in pieces, for several processes; errors likewise."""
        latents = self._checked(latents)
        z, num_frames = _unscaled(self.vae, latents, scale_factor=self.config.scale_factor)
        return PiecewiseDecode(self.vae, z, num_frames=num_frames, config=self.config)

    def _checked(self, latents: Tensor) -> Tensor:
        """Latents on the codec's device; ValueError for those of another codec."""
        if latents.ndim != 5 or latents.shape[2] != self.latent_channels:
            raise ValueError(
                f"latents: expected (b, t, {self.latent_channels}, h, w), got "
                f"{tuple(latents.shape)}"
            )
        return latents.to(self.device)


@torch.no_grad()
def decode_latents(
    vae: "AutoencoderKLCogVideoX", latents: Float[Tensor, "b t c h w"], *, scale_factor: float
) -> Float[Tensor, "b t2 3 h2 w2"]:
    """Decode scaled latents on the autoencoder's device, in its dtype and its default chunks.

    Args:
        vae: its tiling and slicing are as the caller set them.
        latents: as the network makes them, `scale_factor` times z.
        scale_factor: of the latents.

    Returns:
        Video, float32, clamped to [-1, 1], of temporal_compression (t - 1) + 1 frames.
    """
    z, num_frames = _unscaled(vae, latents, scale_factor=scale_factor)
    decoded: Any = vae.decode(z)
    return as_video(decoded.sample, num_frames=num_frames)


def _unscaled(
    vae: "AutoencoderKLCogVideoX", latents: Float[Tensor, "b t c h w"], *, scale_factor: float
) -> tuple[Float[Tensor, "b c t2 h w"], int]:
    """What the decoder is given, and how many frames of what it makes are the video."""
    num_frames = (latents.shape[1] - 1) * int(vae.config["temporal_compression_ratio"]) + 1
    z = rearrange(latents, "b t c h w -> b c t h w") / scale_factor
    # The decoder keeps the first frame apart only where the first chunk is odd: an even number
    # of latent frames would come out as 4 t frames. Repeat the last one and cut its frames.
    if z.shape[2] % 2 == 0:
        z = torch.cat([z, z[:, :, -1:]], dim=2)
    return z.to(vae.dtype), num_frames


def enable_tiling(vae: "AutoencoderKLCogVideoX") -> None:
    """Tiles of the codec's own size (half its native frame), at whole latent strides.

    diffusers lets tiles overlap by 1/6 of their height and 1/5 of their width. Where these are
    no whole latents the result has rows or columns too many, so other sizes are rounded up;
    240 x 360, the tile of the released codec, stays.
    """
    compression = spatial_compression(vae)
    step_height, step_width = 6 * compression, 5 * compression
    vae.enable_tiling(
        tile_sample_min_height=-(-vae.tile_sample_min_height // step_height) * step_height,
        tile_sample_min_width=-(-vae.tile_sample_min_width // step_width) * step_width,
    )


def spatial_compression(vae: "AutoencoderKLCogVideoX") -> int:
    """Pixels per latent row and column."""
    return 2 ** (len(vae.config["block_out_channels"]) - 1)


def find_codec(config: VideoCodecConfig) -> WeightSource:
    """Where the weights are; ValueError names what is missing and where it is to be had."""
    return find_source(config.weights, subfolder=config.subfolder, tiny="codec", key=_KEY, get=_GET)


def _check_compression(vae: "AutoencoderKLCogVideoX", config: VideoCodecConfig) -> None:
    """Raise where the configured compression is not that of the weights."""
    spatial = spatial_compression(vae)
    temporal = int(vae.config["temporal_compression_ratio"])
    for name, configured, actual in (
        ("spatial_compression", config.spatial_compression, spatial),
        ("temporal_compression", config.temporal_compression, temporal),
    ):
        if configured != actual:
            raise ValueError(
                f"codec.{name}: {config.weights} has {actual}, configured {configured}"
            )
