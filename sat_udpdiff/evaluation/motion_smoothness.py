"""Frames predicted from the frames beside them: by VBench's AMT-S, or by our own optical flow.

AMT's licence (CC BY-NC 4.0) keeps it out of this project: its network is taken from the user's
installation of the vbench package. Optical flow needs nothing, and its scores are no VBench scores.
"""

import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import cv2
import numpy as np
import torch
from jaxtyping import Float64, UInt8
from torch.nn.functional import pad

from data_loaders.panda_dense.optical_flow import DenseFlow, positions
from sat_udpdiff.evaluation.feature_weights import FeatureWeights
from sat_udpdiff.evaluation.measure import UnusableError
from sat_udpdiff.evaluation.vbench import frame_difference

GET_VBENCH = (
    "run `pip install --no-deps vbench==0.1.5` (its declared pins do not go with ours and are not "
    "needed for this), or give the folder `vbench` of an installation elsewhere"
)
_AMT = "vbench.third_party.amt.networks.AMT-S"
_PARAMETERS = {"corr_radius": 3, "corr_lvls": 4, "num_flows": 3}
_DIVISOR = 16
# Four levels of correlation: 128 / 8 / 2 / 2 / 2 = 2, and with 1 AMT divides by zero.
_LEAST_PADDED = 128
_LEAST_FLOW = 16


@runtime_checkable
class MidFrames(Protocol):
    """Predicts the frame between two."""

    @property
    def backend(self) -> str:
        """'amt' or 'flow'."""
        ...

    @property
    def digest(self) -> str:
        """What made it: SHA-256 of weights, or the version of a formula."""
        ...

    def require_size(self, *, height: int, width: int) -> None:
        """Raise UnusableError for frames that it cannot work on."""
        ...

    def __call__(
        self, before: UInt8[np.ndarray, "h w 3"], after: UInt8[np.ndarray, "h w 3"]
    ) -> UInt8[np.ndarray, "h w 3"]:
        """The frame half way from `before` to `after`."""
        ...


def mid_frame_differences(
    frames: UInt8[np.ndarray, "t h w 3"], *, predict: MidFrames
) -> Float64[np.ndarray, " n"]:
    """Mean absolute difference of frames 1, 3, 5, ... from what frames 0, 2, 4, ... foretell.

    The last frame of an even number has no successor and is left out, as in VBench. Two frames
    and their prediction are held at a time.

    Returns:
        Of each of the (t - 1) // 2 predicted frames, 0..255.

    Raises:
        UnusableError: Fewer than 3 frames, or too small for the network.
    """
    if len(frames) < 3:
        raise UnusableError(f"expected 3 or more frames, got {len(frames)}")
    predict.require_size(height=frames.shape[1], width=frames.shape[2])
    return np.array(
        [
            frame_difference(frames[i], predict(frames[i - 1], frames[i + 1]))
            for i in range(1, len(frames) - 1, 2)
        ]
    )


class FlowMidFrames:
    """The mean of both frames, each moved half way along its optical flow (DIS, OpenCV).

    No hidden thing comes into view and flow is taken for linear, so scores are lower than AMT's.
    """

    backend = "flow"
    digest = "dis-medium-1"

    def __init__(self) -> None:
        self._flow = DenseFlow()

    def require_size(self, *, height: int, width: int) -> None:
        """Raise UnusableError below 16 pixels."""
        if min(height, width) < _LEAST_FLOW:
            raise UnusableError(
                f"optical flow needs {_LEAST_FLOW} pixels a side, got {height}x{width}"
            )

    def __call__(
        self, before: UInt8[np.ndarray, "h w 3"], after: UInt8[np.ndarray, "h w 3"]
    ) -> UInt8[np.ndarray, "h w 3"]:
        """The frame half way."""
        gray = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (before, after)]
        halves = []
        for frame, here, there in ((before, 1, 0), (after, 0, 1)):
            # A thing half way at p came from p + m/2 in `frame`; m is known at p of the other one.
            half = positions(np.float32(0.5) * self._flow(gray[here], gray[there]))
            moved = cv2.remap(
                frame,
                half[..., 0],
                half[..., 1],
                cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_REPLICATE,
            )
            halves.append(moved.astype(np.float32))
        return np.rint((halves[0] + halves[1]) / 2).astype(np.uint8)


class AmtMidFrames:
    """AMT-S (Li et al. 2023) at time 1/2, on frames in full size.

    VBench shrinks frames on GPUs whose memory is small, which changes its score; here, as in VBench
    on a CPU and on large GPUs, they are never shrunk.

    Args:
        weights: Of `find_feature_weights`; the network is loaded when the first video comes.
        package: Folder of the vbench package; None = the one that is installed.
        device: Where the network runs.

    Raises:
        ValueError: The package is not there.
    """

    backend = "amt"

    def __init__(
        self,
        weights: FeatureWeights,
        *,
        package: str | Path | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self._weights, self._device = weights, torch.device(device)
        self._package = find_vbench(package)
        self._network: torch.nn.Module | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of the weights, in hex."""
        return self._weights.sha256

    def require_size(self, *, height: int, width: int) -> None:
        """Raise UnusableError below 113 pixels, where AMT divides by zero."""
        least = _LEAST_PADDED - _DIVISOR + 1
        if min(height, width) < least:
            raise UnusableError(
                f"AMT divides by zero below {least} pixels a side, got {height}x{width}; "
                "optical flow has no such limit"
            )

    @torch.inference_mode()
    def __call__(
        self, before: UInt8[np.ndarray, "h w 3"], after: UInt8[np.ndarray, "h w 3"]
    ) -> UInt8[np.ndarray, "h w 3"]:
        """The frame half way.

        Raises:
            UnusableError: The prediction is not finite.
            ValueError: The weights cannot be loaded or are of another network.
        """
        if self._network is None:
            self._network = load_amt(self._weights, package=self._package).to(self._device)
        height, width = before.shape[:2]
        left, right = _padding(width)
        top, bottom = _padding(height)
        first, last = (
            pad(_to_tensor(frame), (left, right, top, bottom), mode="replicate").to(self._device)
            for frame in (before, after)
        )
        time = torch.full((1, 1, 1, 1), 0.5, device=self._device)
        predicted = self._network(first, last, time, scale_factor=1.0, eval=True)["imgt_pred"].cpu()
        values = (predicted[0, :, top : top + height, left : left + width] * 255.0).numpy()
        if not np.isfinite(values).all():
            raise UnusableError("AMT's prediction is not finite")
        # Truncated, not rounded, as in VBench.
        return np.ascontiguousarray(values.transpose(1, 2, 0)).clip(0, 255).astype(np.uint8)


def _padding(length: int) -> tuple[int, int]:
    """Pixels before and after, to a multiple of 16."""
    missing = -length % _DIVISOR
    return missing // 2, missing - missing // 2


def _to_tensor(frame: np.ndarray) -> torch.Tensor:
    return torch.tensor(frame).permute(2, 0, 1)[None] / 255.0


def find_vbench(package: str | Path | None = None) -> Path:
    """Folder of the vbench package, without importing it.

    Raises:
        ValueError: There is none; says how to get it.
    """
    if package is None:
        spec = importlib.util.find_spec("vbench")
        found = list(spec.submodule_search_locations or []) if spec else []
        if not found:
            raise ValueError(f"the package vbench is not installed; {GET_VBENCH}")
        package = found[0]
    folder = Path(package).expanduser()
    if not (folder / "third_party" / "amt" / "networks" / "AMT-S.py").is_file():
        raise ValueError(f"no third_party/amt/networks/AMT-S.py in {folder}; {GET_VBENCH}")
    return folder


def load_amt(weights: FeatureWeights, *, package: Path) -> torch.nn.Module:
    """AMT-S from the vbench package, with weights.

    Raises:
        ValueError: The weights are not AMT-S's, or the package is of another version.
    """
    try:
        with _vbench_without_init(package):
            network: Any = importlib.import_module(_AMT).Model(**_PARAMETERS)
    except (ImportError, AttributeError, TypeError) as error:
        raise ValueError(f"AMT cannot be imported from {package}: {error}; {GET_VBENCH}") from error
    try:
        saved = torch.load(weights.path, map_location="cpu", weights_only=True)
        network.load_state_dict(saved["state_dict"])
    # torch raises what the file makes it raise.
    except Exception as error:
        raise weights.error(error) from error
    return network.eval().requires_grad_(False)


@contextmanager
def _vbench_without_init(package: Path) -> Iterator[None]:
    """Import below vbench without vbench/__init__.py, which wants decord and torchvision.

    Modules that were imported on the way stay out of `sys.modules`, so that a later real import
    of vbench is none of ours.
    """
    before = {name: module for name, module in sys.modules.items() if _is_vbench(name)}
    stub = types.ModuleType("vbench")
    stub.__path__ = [str(package)]
    for name in before:
        del sys.modules[name]
    sys.modules["vbench"] = stub
    try:
        yield
    finally:
        for name in [name for name in sys.modules if _is_vbench(name)]:
            del sys.modules[name]
        sys.modules.update(before)


def _is_vbench(name: str) -> bool:
    return name == "vbench" or name.startswith("vbench.")
