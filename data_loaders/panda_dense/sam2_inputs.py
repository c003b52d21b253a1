"""What the image and the video model of SAM 2 share: weights, pictures, points.

Pictures and coordinates as transformers' processors for SAM 2 prepare them, which are not used
themselves: they need torchvision.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from data_loaders.panda_dense.models import (
    Dtype,
    ModelFacts,
    find_weights,
    library_version,
    load_or_explain,
    weights_revision,
)
from sat_udpdiff.encoders.source import DTYPES

LICENSE = "Apache-2.0"
"""Of the code and the checkpoints of SAM 2 and 2.1."""

GET_SAM2 = "fetch them: hf download facebook/sam2.1-hiera-large"
# ImageNet's, of pictures in 0..255.
_MEAN = 255 * torch.tensor([0.485, 0.456, 0.406])
_STD = 255 * torch.tensor([0.229, 0.224, 0.225])


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedSam2:
    """A model on its device, and what is to be known of it."""

    model: Any
    """`Sam2Model` or `Sam2VideoModel`, frozen."""
    size: int
    """Height and width of the pictures it sees, pixels."""
    dtype: torch.dtype
    """Of weights and activations."""
    facts: ModelFacts
    """For the manifest."""


def load_sam2(
    kind: Literal["image", "video"],
    weights: str,
    *,
    key: str,
    dtype: Dtype | None,
    device: torch.device,
) -> LoadedSam2:
    """Load a checkpoint. Those of the hub hold both models: the same folder serves both.

    Args:
        kind: Which of the two models.
        weights: Folder or hub id.
        key: Setting that named the weights, for messages.
        dtype: Of weights and activations; None = bf16 on a GPU, fp32 on a CPU.
        device: Where it runs.

    Raises:
        ValueError: No weights there, or they do not fit; names the key.
    """
    import transformers

    source = find_weights(weights, key=key, get=GET_SAM2)
    chosen = DTYPES[dtype] if dtype else default_dtype(device)
    owner = transformers.Sam2Model if kind == "image" else transformers.Sam2VideoModel
    model: Any = load_or_explain(
        source,
        lambda: owner.from_pretrained(source.name, subfolder=source.subfolder, dtype=chosen),
        key=key,
        get=GET_SAM2,
    )
    model.to(device=device).eval().requires_grad_(False)
    commit = getattr(model.config, "_commit_hash", None)
    return LoadedSam2(
        model=model,
        size=int(model.config.prompt_encoder_config.image_size),
        dtype=chosen,
        facts=ModelFacts(
            backend="model",
            model=weights,
            revision=weights_revision(source, commit=commit),
            version=library_version("transformers"),
            license=LICENSE,
        ),
    )


def default_dtype(device: torch.device) -> torch.dtype:
    """Bf16 on a GPU, as Meta's code runs; fp32 on a CPU, where bf16 is slow."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def prepare_picture(frame: UInt8[np.ndarray, "h w 3"], *, size: int) -> Float32[Tensor, "3 s s"]:
    """One picture as the model sees it: a square, whatever its shape was, and normalised.

    The same bits as transformers' processors give on a CPU with AVX2: bilinear with antialiasing on
    bytes, rounded to bytes, then (x - 255 mean) / (255 std). Done on the host on every machine, so
    that a GPU's rounding (other by one of 255 levels here and there) does not come in.

    Args:
        frame: 0..255.
        size: Height and width of the result, pixels.
    """
    planes = torch.tensor(np.ascontiguousarray(frame)).permute(2, 0, 1)[None].contiguous()
    if frame.shape[:2] != (size, size):
        planes = interpolate(
            planes, size=(size, size), mode="bilinear", align_corners=False, antialias=True
        )
    return (planes[0].float() - _MEAN[:, None, None]) / _STD[:, None, None]


def grid_points(per_side: int, *, height: int, width: int) -> Float32[np.ndarray, "n 2"]:
    """A grid of points over a picture, row by row: ((j + 1/2) / n * width, (i + 1/2) / n * height).

    That of SAM 2's automatic masks (`build_point_grid` of facebookresearch/sam2).

    Args:
        per_side: Points per row, and rows, >= 1.
        height: Of the picture, pixels.
        width: Of the picture, pixels.

    Returns:
        (x, y), pixels from the upper left corner of the picture.
    """
    steps = (np.arange(per_side, dtype=np.float64) + 0.5) / per_side
    y, x = np.meshgrid(steps * height, steps * width, indexing="ij")
    return np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float32)


def scale_points(
    points: Float32[np.ndarray, "n 2"], *, height: int, width: int, size: int
) -> Float32[Tensor, "n 2"]:
    """Points of a picture of height x width in the square that the model sees."""
    return torch.from_numpy(points) * torch.tensor([size / width, size / height])
