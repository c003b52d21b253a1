"""One clip as stored, on its way to DALI; free of torch, for the processes that read it."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import UInt8, UInt16

from data_loaders.examples import LabelKind
from data_loaders.geometry import CropBox
from data_loaders.probe import StreamHeader

Device = Literal["cpu", "gpu"]

# DALI since 2.1 (NVIDIA/DALI pull request 6352): its own libavcodec has these decoders alone.
_CPU_CODECS = frozenset({"vp8", "vp9", "mjpeg"})
# Not av1: whether NVDEC has it differs by GPU (A100: no), and PyAV decodes it anywhere.
_GPU_CODECS = _CPU_CODECS | {"h264", "hevc", "mpeg4"}
# NVDEC's smallest height and width differ by codec; no codec's is larger (HEVC: 144).
_GPU_SMALLEST = 144
# Of H.264, the least of them.
_GPU_LARGEST = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class RawClip:
    """One clip as stored: the input of `DaliFitter`."""

    key: str
    rgb: bytes | UInt8[np.ndarray, "t h w 3"]
    """A video file that `can_decode` accepts, or the taken frames, 0..255."""
    indices: tuple[int, ...]
    """Frames of the file to take, in presentation order from 0, repeats allowed, in any order.
    Not looked at where `rgb` is frames."""
    labels: UInt16[np.ndarray, "t h w"] | None
    """Ids or depth of the taken frames, of the RGB's size."""
    label_kind: LabelKind | None
    """What `labels` are; None where they are None."""
    box: CropBox
    """Area of the frames that is kept, of RGB and labels alike; see `geometry.crop_box`."""


def can_decode(header: StreamHeader, *, device: Device) -> bool:
    """Whether DALI 2.4 decodes such a file as `decode.decode_rgb` does.

    Codec apart, the colours decide: DALI takes every YUV for BT.601, and is up to 24 levels off
    on BT.709. On a GPU it reads 8-bit 4:2:0 of an even size alone, within NVDEC's limits.

    Args:
        header: Of `probe.stream_header`.
        device: Where DALI is to run.
    """
    if not header.is_bt601:
        return False
    if device == "cpu":
        return header.codec in _CPU_CODECS
    return (
        header.codec in _GPU_CODECS
        and header.pixel_format in ("yuv420p", "yuvj420p")
        and min(header.height, header.width) >= _GPU_SMALLEST
        and max(header.height, header.width) <= _GPU_LARGEST
        and header.height % 2 == header.width % 2 == 0
    )
