"""Depth of a clip by Depth Anything V2 (arXiv:2406.09414), frame by frame: the ablation.

Each frame is estimated alone, so depth may flicker; only the scale is shared by the clip. The model
gives disparity up to scale and shift: larger = nearer. Pictures are prepared as in the authors' own
program, which enlarges small ones further than the processor of transformers does.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from data_loaders.panda_dense.depth_clip import DepthClip, scale_clip
from data_loaders.panda_dense.licences import license_of
from data_loaders.panda_dense.load_parts import (
    find_origin,
    load_network,
    revision_of,
    torch_dtype,
)
from data_loaders.panda_dense.models import Dtype, ModelFacts, Pieces, library_version
from data_loaders.panda_dense.pixels import IMAGENET_MEAN, IMAGENET_STD, to_unit
from data_loaders.schema import DataError

GET_DEPTH_ANYTHING = "fetch it: hf download depth-anything/Depth-Anything-V2-Small-hf"
_PATCH = 14


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthAnythingSettings:
    """Weights and numbers of Depth Anything V2."""

    weights: str = "depth-anything/Depth-Anything-V2-Small-hf"
    """Folder or hub id. Small is the default for its licence (Apache-2.0); Base and Large are
    better and for non-commercial use only."""
    dtype: Dtype | None = None
    """Of the network; None = fp16 on a GPU and fp32 on a CPU."""
    side: int = 518
    """Shorter side worked at, pixels, at least: what it was trained at; a multiple of 14."""
    frames_per_batch: int = 16
    """Frames estimated at once; changes memory and speed, and depth by rounding only."""


def check_depth_anything(settings: DepthAnythingSettings, *, section: str) -> None:
    """Check the numbers.

    Raises:
        DataError: `SECTION.FIELD: expected ..., got ...`.
    """
    if settings.side < _PATCH or settings.side % _PATCH:
        raise DataError(
            f"{section}.side: expected a multiple of {_PATCH} above 0, got {settings.side}"
        )
    if settings.frames_per_batch < 1:
        raise DataError(
            f"{section}.frames_per_batch: expected at least 1, got {settings.frames_per_batch}"
        )


class DepthAnything:
    """Clips to disparity, frame by frame.

    Args:
        model: `DepthAnythingForDepthEstimation`, in the dtype of the computation.
        settings: Numbers.
        device: Where it runs.
        facts: For the manifest.
    """

    def __init__(
        self,
        model: Any,
        *,
        settings: DepthAnythingSettings,
        device: torch.device,
        facts: ModelFacts,
    ):
        self.model = model.to(device)
        self.settings = settings
        self.device = device
        self.facts = facts
        self.pieces = Pieces(settings.frames_per_batch)

    @classmethod
    def load(
        cls,
        settings: DepthAnythingSettings,
        *,
        device: torch.device,
        section: str = "depth.depth_anything",
    ) -> "DepthAnything":
        """Open the weights that the settings name.

        Raises:
            ValueError: They are not there, do not fit, or give metres instead of disparity.
        """
        from transformers import DepthAnythingForDepthEstimation

        key = f"{section}.weights"
        origin = find_origin(settings.weights, key=key, get=GET_DEPTH_ANYTHING)
        dtype = torch_dtype(settings.dtype, device=device)
        model = load_network(DepthAnythingForDepthEstimation, origin=origin, dtype=dtype)
        kind = model.config.depth_estimation_type
        if kind != "relative":
            # Metres grow with distance: near would become far.
            raise ValueError(
                f"{key}: expected weights for relative depth, got {kind!r} ones in "
                f"{settings.weights}; {GET_DEPTH_ANYTHING}"
            )
        facts = ModelFacts(
            backend="model",
            model=settings.weights,
            revision=revision_of(origin),
            version=library_version("transformers"),
            license=license_of(
                settings.weights, otherwise="depth-anything/Depth-Anything-V2-Large-hf"
            ),
        )
        return cls(model, settings=settings, device=device, facts=facts)

    @torch.inference_mode()
    def estimate(self, rgb: UInt8[np.ndarray, "t h w 3"], *, key: str) -> DepthClip:
        """Disparity of a clip.

        Args:
            rgb: Frames, 0..255, of any size.
            key: Of the clip, for messages.

        Returns:
            Depth of the clip's own size, min-max over the clip; raw values have the model's unit.

        Raises:
            DataError: A value is not finite.
            torch.OutOfMemoryError: The device is full.
        """
        size = rgb.shape[1], rgb.shape[2]
        frames = [
            self._disparity(rgb[start : start + self.pieces.size], size=size)
            for start in range(0, len(rgb), self.pieces.size)
        ]
        return scale_clip(torch.cat(frames).numpy(), key=key)

    def _disparity(
        self, rgb: UInt8[np.ndarray, "t h w 3"], *, size: tuple[int, int]
    ) -> Float[Tensor, "t h w"]:
        pixels = depth_anything_pixels(rgb, side=self.settings.side)
        pixels = pixels.to(self.device, self.model.dtype)
        predicted = self.model(pixel_values=pixels).predicted_depth.float()
        # As the authors bring it back to the picture's size.
        full = functional.interpolate(
            predicted[:, None], size=size, mode="bilinear", align_corners=True
        )
        return full[:, 0].cpu()


def depth_anything_pixels(
    rgb: UInt8[np.ndarray, "t h w 3"], *, side: int
) -> Float[Tensor, "t 3 h2 w2"]:
    """Frames as the network takes them: resized (cubic, no antialiasing), then normalised.

    Args:
        rgb: Frames, 0..255.
        side: Both sides become at least this.

    Returns:
        float32, sides of `depth_anything_size`, ImageNet's mean 0 and deviation 1.
    """
    size = depth_anything_size(rgb.shape[1], rgb.shape[2], side=side)
    # Not clamped: the authors' cubic overshoots at edges too.
    pixels = functional.interpolate(to_unit(rgb), size=size, mode="bicubic", align_corners=False)
    mean, std = (pixels.new_tensor(of).view(3, 1, 1) for of in (IMAGENET_MEAN, IMAGENET_STD))
    return (pixels - mean) / std


def depth_anything_size(height: int, width: int, *, side: int) -> tuple[int, int]:
    """Height and width with the shorter at least `side`, as multiples of 14; 480x720: 518x784."""
    scale = max(side / height, side / width)

    def fit(length: int) -> int:
        patches = round(scale * length / _PATCH)
        # Rounding errors of `scale` must not take the shorter side below.
        return max(patches * _PATCH, side)

    return fit(height), fit(width)
