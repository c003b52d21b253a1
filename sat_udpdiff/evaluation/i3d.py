"""I3D features of videos as FVD tools make them, from the weights file that each tool uses.

| protocol | file | pixels | to 224 x 224 |
|---|---|---|---|
| styleganv | `i3d_torchscript.pt` | [0, 1], resized, then [-1, 1] | short side 224, centre crop |
| cdfvd | `i3d_pretrained_400.pt` | 0 to 255, resized, then [-1, 1] | stretched |

Both resize bilinearly without a filter against aliasing. The file of styleganv is asked not to
rescale or resize (`rescale=False, resize=False`), as its authors ask it in fvd-comparison;
StyleGAN-V's own training lets it stretch the pictures itself.
"""

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float32, Float64, UInt8
from torch import Tensor
from torch.nn import functional

from sat_udpdiff.encoders.identity import file_sha256
from sat_udpdiff.evaluation.fvd import FvdProtocol
from sat_udpdiff.evaluation.i3d_network import NUM_CLASSES, InceptionI3d
from sat_udpdiff.evaluation.measure import UnusableError

MIN_FRAMES = 10
"""The tools begin here."""
SIZE = 224
"""Pixels of a side."""
FILES: dict[FvdProtocol, tuple[str, str]] = {
    "styleganv": (
        "i3d_torchscript.pt",
        "https://www.dropbox.com/s/ge9e5ujwgetktms/i3d_torchscript.pt?dl=1",
    ),
    "cdfvd": (
        "i3d_pretrained_400.pt",
        "https://github.com/songweige/TATS/raw/main/tats/fvd/i3d_pretrained_400.pt",
    ),
}
"""Name of the weights, and where users get them."""


class I3dFeatures:
    """Logits of I3D, 400 per video.

    Args:
        network: Gives (1, 400) of a video (1, 3, t, 224, 224), float32, values in [-1, 1].
        protocol: What is done to the pixels.
        source: What the network is, for the key: name and SHA-256 of its file.
        device: Where the network is.
    """

    dim = NUM_CLASSES

    def __init__(
        self,
        network: Callable[[Tensor], Tensor],
        *,
        protocol: FvdProtocol,
        source: str,
        device: torch.device | str = "cpu",
    ):
        self.protocol: FvdProtocol = protocol
        self._network, self._source, self._device = network, source, torch.device(device)

    @classmethod
    def load(
        cls,
        weights: str | Path,
        *,
        protocol: FvdProtocol,
        device: torch.device | str = "cpu",
    ) -> "I3dFeatures":
        """The network of a weights file; see FILES.

        Raises:
            ValueError: It is not there or no such file; says where it is to be had.
        """
        path = find_i3d(weights, protocol=protocol)
        load = _load_torchscript if protocol == "styleganv" else _load_state
        return cls(
            load(path, torch.device(device)),
            protocol=protocol,
            source=f"{path.name} sha256={file_sha256(path)}",
            device=device,
        )

    @property
    def key(self) -> str:
        """Protocol, file and its SHA-256."""
        return f"i3d {self.protocol} {self._source}"

    @torch.no_grad()
    def __call__(self, rgb: UInt8[np.ndarray, "t h w 3"]) -> Float64[np.ndarray, " d"]:
        """Logits of one video, computed in float32.

        Raises:
            UnusableError: Less than ten frames.
            ValueError: The network gives something else than 400 numbers.
        """
        if len(rgb) < MIN_FRAMES:
            raise UnusableError(f"I3D needs {MIN_FRAMES} or more frames, got {len(rgb)}")
        features = self._network(preprocess(rgb, protocol=self.protocol)[None].to(self._device))
        if features.shape != (1, self.dim):
            raise ValueError(
                f"{self._source}: expected features (1, {self.dim}), got {tuple(features.shape)}"
            )
        return features[0].double().cpu().numpy()


def preprocess(
    rgb: UInt8[np.ndarray, "t h w 3"], *, protocol: FvdProtocol
) -> Float32[Tensor, "3 t 224 224"]:
    """What I3D sees of a video: values in [-1, 1].

    Equal to the tools' own to the last bit: the order of operations is theirs, and so are the axes
    that torch resizes, which choose its kernel. Only a part is held in floats at full size.
    """
    if protocol == "cdfvd":
        parts = [_stretch(rgb[first : first + 8]) for first in range(0, len(rgb), 8)]
        return rearrange(torch.cat(parts), "t c h w -> c t h w").contiguous()
    return torch.cat([_centre(rgb[..., colour]) for colour in range(3)])


def _stretch(rgb: UInt8[np.ndarray, "t h w 3"]) -> Float32[Tensor, "t 3 224 224"]:
    frames = rearrange(torch.tensor(rgb), "t h w c -> t c h w").float().contiguous()
    return 2.0 * functional.interpolate(frames, (SIZE, SIZE), mode="bilinear") / 255.0 - 1


def _centre(levels: UInt8[np.ndarray, "t h w"]) -> Float32[Tensor, "1 t 224 224"]:
    height, width = levels.shape[1:]
    scale = SIZE / min(height, width)
    # Of square pictures the height is the one that rounding may make 225.
    if height < width:
        size = (SIZE, math.ceil(width * scale))
    else:
        size = (math.ceil(height * scale), SIZE)
    frames = torch.from_numpy(np.ascontiguousarray(levels)).float() / 255.0
    frames = functional.interpolate(frames[None], size, mode="bilinear")
    top, left = (size[0] - SIZE) // 2, (size[1] - SIZE) // 2
    return (frames[:, :, top : top + SIZE, left : left + SIZE] - 0.5) * 2


def find_i3d(weights: str | Path, *, protocol: FvdProtocol) -> Path:
    """The weights file, or the one of the usual name in a folder; nothing is read.

    Raises:
        ValueError: There is none; says where it is to be had.
    """
    name, address = FILES[protocol]
    path = Path(weights).expanduser()
    path = path / name if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"FVD ({protocol}): no file {path}; get {name} from {address}")
    return path


def _load_torchscript(path: Path, device: torch.device) -> Callable[[Tensor], Tensor]:
    """StyleGAN-V's network; TorchScript runs its own operations, never Python of the file."""
    try:
        with warnings.catch_warnings():
            # The file exists in this format only.
            warnings.simplefilter("ignore", DeprecationWarning)
            network = torch.jit.load(str(path), map_location=device).eval()
    except RuntimeError as error:
        raise _no_weights(path, "styleganv", error) from error
    return lambda video: network(video, rescale=False, resize=False, return_features=True)


def _load_state(path: Path, device: torch.device) -> InceptionI3d:
    network = InceptionI3d()
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(state)
    except Exception as error:  # torch raises many kinds at files of another sort
        raise _no_weights(path, "cdfvd", error) from error
    return network.to(device).eval().requires_grad_(False)


def _no_weights(path: Path, protocol: FvdProtocol, error: Exception) -> ValueError:
    name, address = FILES[protocol]
    cause = str(error).strip().splitlines() or [type(error).__name__]
    return ValueError(
        f"FVD ({protocol}): {path} is not the expected {name} ({cause[0]}); get it from {address}"
    )
