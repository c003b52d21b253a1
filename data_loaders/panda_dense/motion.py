"""How much moves in a clip: optical flow between neighbouring frames, relative to the picture."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import cv2
import numpy as np
import torch
from jaxtyping import Float32, UInt8

from data_loaders.panda_dense.measures import shrink
from data_loaders.panda_dense.models import Pieces
from data_loaders.schema import DataError

Flow = Callable[[UInt8[np.ndarray, "t h w 3"]], Iterator[Float32[np.ndarray, "h w 2"]]]
"""Frames of one size -> motion in pixels (x, y) from each to the next."""

_PEAK_SHARE = 0.05
_RAFT_MULTIPLE = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Motion:
    """Motion of a clip, in diagonals of the picture per frame step."""

    mean: float
    """Mean length of the flow over all pixels and steps; 0 stands still, above 0.03 few clips
    can be followed."""
    peak: float
    """Mean over the steps of the mean of the fastest 5 % of the pixels, as VBench's dynamic degree
    takes it: something small that moves counts."""


def measure_motion(frames: UInt8[np.ndarray, "t h w 3"], *, flow: Flow, rows: int) -> Motion:
    """Motion of a clip.

    Args:
        frames: RGB, 0..255.
        flow: `dis_flow`, or of `load_raft`.
        rows: Frames are shrunk to this height first.

    Returns:
        Zeros for a single frame.
    """
    small = shrink(frames, rows=rows)
    diagonal = float(np.hypot(*small.shape[1:3]))
    means, peaks = [], []
    for motion in flow(small):
        length = np.hypot(motion[..., 0], motion[..., 1]).ravel()
        count = max(1, round(length.size * _PEAK_SHARE))
        means.append(float(length.mean(dtype=np.float64)))
        peaks.append(float(np.partition(length, -count)[-count:].mean(dtype=np.float64)))
    if not means:
        return Motion(mean=0.0, peak=0.0)
    return Motion(mean=float(np.mean(means)) / diagonal, peak=float(np.mean(peaks)) / diagonal)


def dis_flow(frames: UInt8[np.ndarray, "t h w 3"]) -> Iterator[Float32[np.ndarray, "h w 2"]]:
    """Dense inverse search of OpenCV (Kroeger et al. 2016), on the CPU."""
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    gray = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    for one, other in pairwise(gray):
        yield search.calc(one, other, np.zeros((*one.shape, 2), np.float32))


class RaftFlow:
    """RAFT (Teed and Deng 2020) of torchvision."""

    def __init__(self, model: Any, *, device: torch.device) -> None:
        """Take a model.

        Args:
            model: `torchvision.models.optical_flow.RAFT`.
            device: Where it runs.
        """
        self._model = model.eval().to(device)
        self._device = device
        self.pieces = Pieces(16)

    @torch.inference_mode()
    def __call__(
        self, frames: UInt8[np.ndarray, "t h w 3"]
    ) -> Iterator[Float32[np.ndarray, "h w 2"]]:
        """Motion from each frame to the next."""
        height, width = frames.shape[1:3]
        video = torch.from_numpy(frames).permute(0, 3, 1, 2)  # (t, 3, h, w)
        for i in range(0, len(frames) - 1, self.pieces.size):
            some = video[i : i + self.pieces.size + 1].to(self._device).float() / 127.5 - 1
            some = _pad(some)
            flow = self._model(some[:-1], some[1:])[-1]
            yield from flow[:, :, :height, :width].permute(0, 2, 3, 1).float().cpu().numpy()


def _pad(video: torch.Tensor) -> torch.Tensor:
    """Repeat the last row and column up to what RAFT takes: multiples of 8, and 128 at least."""
    right, below = (
        max(128, -(-size // _RAFT_MULTIPLE) * _RAFT_MULTIPLE) - size
        for size in (video.shape[3], video.shape[2])
    )
    return torch.nn.functional.pad(video, (0, right, 0, below), mode="replicate")


def load_raft(weights: str, *, size: Literal["small", "large"], device: torch.device) -> RaftFlow:
    """RAFT with the weights of a file that the user gives.

    Args:
        weights: State dict that torchvision publishes, such as
            raft_large_C_T_SKHT_V2-ff5fadd5.pth.
        size: Which of the two networks it is.
        device: Where it runs.

    Raises:
        DataError: torchvision does not work here, or the file cannot be used.
    """
    try:
        from torchvision.models import optical_flow  # pyright: ignore[reportMissingImports]
    # A torchvision built for another torch raises RuntimeError.
    except (ImportError, RuntimeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise DataError(
            "motion_backend 'raft': expected torchvision of the same build as torch, "
            f"got {reason}; motion_backend 'dis' needs none"
        ) from error
    model = optical_flow.raft_small() if size == "small" else optical_flow.raft_large()
    try:
        model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    # torch.load raises what the file makes it raise.
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise DataError(
            f"raft_weights {weights}: expected the state dict of RAFT {size}, got: {reason}"
        ) from error
    return RaftFlow(model, device=device)
