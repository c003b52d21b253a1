"""One decode in pieces that any process can make, in any order: the tiles of the codec.

diffusers' tiled decode makes them one after another. A tile goes through the codec as a small clip
of its own: its chunks of frames follow on each other, since convolutions over time keep what they
saw last, but it knows nothing of other tiles until their edges are blended.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from sat_udpdiff.config import VideoCodecConfig

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX


class PiecewiseDecode:
    """Latents to video, a tile at a time; of a codec without tiling the only piece is the whole.

    Args:
        vae: Its tiling is as the caller set it.
        z: As the codec's decoder wants them, an odd number of latent frames.
        num_frames: Of the video; what the decoder makes after them is dropped.
        config: Of the codec.
    """

    def __init__(
        self,
        vae: "AutoencoderKLCogVideoX",
        z: Float[Tensor, "b c t h w"],
        *,
        num_frames: int,
        config: VideoCodecConfig,
    ) -> None:
        self._vae, self._num_frames, self._config = vae, num_frames, config
        self._rows = _cut(vae, z)
        self._pieces = [piece for row in self._rows for piece in row]

    def __len__(self) -> int:
        return len(self._pieces)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of every piece when it is decoded."""
        return [self._decoded_shape(piece) for piece in self._pieces]

    @torch.no_grad()
    def decode(self, piece: int) -> Float[Tensor, "b 3 t h w"]:
        """Decode one, in the codec's dtype and on its device."""
        # No larger than a tile, it is not cut again.
        return self._vae.decode(self._pieces[piece]).sample

    def join(self, decoded: Sequence[Float[Tensor, "b 3 _t _h _w"]]) -> Float[Tensor, "b t 3 h w"]:
        """The video, float32, clamped to [-1, 1], to the last bit what one decode of all gives.

        Args:
            decoded: All pieces in order; those of tiles are changed.
        """
        # There and not on the CPU, which may round otherwise.
        remaining = iter(piece.to(self._vae.device) for piece in decoded)
        rows = [[next(remaining) for _ in row] for row in self._rows]
        whole = rows[0][0] if len(self._pieces) == 1 else _blend(self._vae, rows)
        return as_video(whole, num_frames=self._num_frames)

    def _decoded_shape(self, piece: Tensor) -> tuple[int, ...]:
        batch, _, frames, height, width = piece.shape
        frames = (frames - 1) * self._config.temporal_compression + 1
        spatial = self._config.spatial_compression
        return (batch, 3, frames, spatial * height, spatial * width)


def as_video(
    decoded: Float[Tensor, "b 3 _t h w"], *, num_frames: int
) -> Float[Tensor, "b t 3 h w"]:
    """What a decoder made as video: float32, clamped to [-1, 1], of `num_frames` frames."""
    return rearrange(decoded[:, :, :num_frames].float().clamp(-1, 1), "b c t h w -> b t c h w")


def _cut(vae: "AutoencoderKLCogVideoX", z: Tensor) -> list[list[Tensor]]:
    """Rows of tiles as diffusers cuts them, those at the lower and right edge smaller; views."""
    tile_height, tile_width = vae.tile_latent_min_height, vae.tile_latent_min_width
    height, width = z.shape[-2:]
    if not vae.use_tiling or (height <= tile_height and width <= tile_width):
        return [[z]]
    step_height = int(tile_height * (1 - vae.tile_overlap_factor_height))
    step_width = int(tile_width * (1 - vae.tile_overlap_factor_width))
    return [
        [z[..., i : i + tile_height, j : j + tile_width] for j in range(0, width, step_width)]
        for i in range(0, height, step_height)
    ]


def _blend(vae: "AutoencoderKLCogVideoX", rows: list[list[Tensor]]) -> Tensor:
    """Join decoded tiles; each fades into the one above it, then into the one to its left."""
    blend_height = int(vae.tile_sample_min_height * vae.tile_overlap_factor_height)
    blend_width = int(vae.tile_sample_min_width * vae.tile_overlap_factor_width)
    kept_height = vae.tile_sample_min_height - blend_height
    kept_width = vae.tile_sample_min_width - blend_width
    joined = []
    for i, row in enumerate(rows):
        for j, tile in enumerate(row):
            if i > 0:
                vae.blend_v(rows[i - 1][j], tile, blend_height)  # changes `tile`
            if j > 0:
                vae.blend_h(row[j - 1], tile, blend_width)
        joined.append(torch.cat([tile[..., :kept_height, :kept_width] for tile in row], dim=4))
    return torch.cat(joined, dim=3)
