"""Features of frames as VBench makes them: pictures prepared in floats, networks on the prepared.

VBench turns frames to floats before it resizes them and neither rounds nor clamps what comes out:
bicubic values overshoot 0..255. It resizes without antialiasing. Both matter for equal numbers.
"""

from collections.abc import Callable
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch.nn.functional import interpolate

from sat_udpdiff.evaluation.feature_networks import load_clip, load_dino
from sat_udpdiff.evaluation.feature_weights import FeatureWeights

SIDE = 224
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))

Pixels = Float32[torch.Tensor, "t 3 rows columns"]


@runtime_checkable
class FrameFeatures(Protocol):
    """Turns frames into one vector each."""

    @property
    def digest(self) -> str:
        """SHA-256 of the weights, in hex."""
        ...

    def __call__(self, frames: UInt8[np.ndarray, "t h w 3"]) -> Float32[np.ndarray, "t d"]:
        """Features of each frame, by itself."""
        ...


def dino_pixels(frames: UInt8[np.ndarray, "t h w 3"]) -> Pixels:
    """Frames for DINO: short side to 224, bilinear, no crop; ImageNet's mean and deviation."""
    return _normalised(_resized(frames, mode="bilinear"), *_IMAGENET)


def clip_pixels(frames: UInt8[np.ndarray, "t h w 3"]) -> Pixels:
    """Frames for CLIP: short side to 224, bicubic, centre 224 x 224; CLIP's mean and deviation."""
    pixels = _resized(frames, mode="bicubic")
    # Python's round, to the even neighbour, as in torchvision.
    top, left = (round((length - SIDE) / 2) for length in pixels.shape[-2:])
    return _normalised(pixels[..., top : top + SIDE, left : left + SIDE], *_CLIP)


def _resized(frames: np.ndarray, *, mode: Literal["bilinear", "bicubic"]) -> torch.Tensor:
    # Channels stay last in memory, as VBench has them: other layouts take other kernels.
    pixels = torch.tensor(frames, dtype=torch.float32).permute(0, 3, 1, 2)
    height, width = pixels.shape[-2:]
    short = min(height, width)
    size = [int(SIDE * height / short), int(SIDE * width / short)]
    if size == [height, width]:
        return pixels
    return interpolate(pixels, size=size, mode=mode, align_corners=False, antialias=False)


def _normalised(pixels: torch.Tensor, mean: tuple, deviation: tuple) -> torch.Tensor:
    to_channels = torch.tensor((mean, deviation), dtype=torch.float32)[:, None, :, None, None]
    return (pixels / 255.0 - to_channels[0]) / to_channels[1]


class NetworkFeatures:
    """A network's embedding of each frame, in fp32; a few frames at a time.

    The network is loaded when the first video comes: with cached features none may come.

    Args:
        weights: Of `find_feature_weights`.
        prepare: Frames to pixels, on the host.
        load: Weights to a function of pixels and the module it runs.
        device: Where the network runs.
        chunk_frames: Frames that are prepared and embedded at once; memory grows with them, not
            with the video.
    """

    def __init__(
        self,
        weights: FeatureWeights,
        *,
        prepare: Callable[[np.ndarray], torch.Tensor],
        load: Callable[[FeatureWeights], torch.nn.Module],
        device: torch.device | str = "cpu",
        chunk_frames: int = 8,
    ) -> None:
        if chunk_frames < 1:
            raise ValueError(f"chunk_frames: expected 1 or more, got {chunk_frames}")
        self._weights, self._prepare, self._load = weights, prepare, load
        self._device, self._chunk = torch.device(device), chunk_frames
        self._network: torch.nn.Module | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of the weights, in hex."""
        return self._weights.sha256

    @torch.inference_mode()
    def __call__(self, frames: UInt8[np.ndarray, "t h w 3"]) -> Float32[np.ndarray, "t d"]:
        """Features of each frame.

        Raises:
            ValueError: The weights cannot be loaded or are of another network.
        """
        if self._network is None:
            self._network = self._load(self._weights).to(self._device)
        chunks = []
        for start in range(0, len(frames), self._chunk):
            pixels = self._prepare(frames[start : start + self._chunk])
            chunks.append(self._network(pixels.to(self._device)).float().cpu())
        return torch.cat(chunks).numpy()


def dino_features(
    weights: FeatureWeights, *, device: torch.device | str = "cpu", chunk_frames: int = 8
) -> NetworkFeatures:
    """CLS token of DINO ViT-B/16, (t, 768): what subject consistency compares."""
    return NetworkFeatures(
        weights, prepare=dino_pixels, load=load_dino, device=device, chunk_frames=chunk_frames
    )


def clip_features(
    weights: FeatureWeights, *, device: torch.device | str = "cpu", chunk_frames: int = 8
) -> NetworkFeatures:
    """Image embedding of CLIP ViT-B/32, (t, 512): what background consistency compares.

    In fp32 everywhere. (VBench's CLIP runs in half precision on a GPU and in fp32 on a CPU.)
    """
    return NetworkFeatures(
        weights, prepare=clip_pixels, load=load_clip, device=device, chunk_frames=chunk_frames
    )
