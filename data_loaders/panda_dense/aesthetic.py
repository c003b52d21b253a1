"""How good a picture looks: LAION's predictors on CLIP's embedding of it."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from PIL import Image
from torch import nn

from data_loaders.panda_dense.models import (
    Dtype,
    ModelFacts,
    Pieces,
    find_weights,
    library_version,
    load_or_explain,
    weights_revision,
)
from data_loaders.schema import DataError
from sat_udpdiff.encoders.source import DTYPES

GET_CLIP = (
    "get openai/clip-vit-large-patch14 with `hf download openai/clip-vit-large-patch14` and give "
    "its folder or that id"
)
LICENSE = "MIT (CLIP), Apache-2.0 (LAION's improved predictor) or MIT (linear predictor)"
_SIDE = 224
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_DEVIATION = (0.26862954, 0.26130258, 0.27577711)
# Of sac+logos+ava1-l14-linearMSE.pth; between them there is dropout and no other function.
_LAYERS = ("layers.0", "layers.2", "layers.4", "layers.6", "layers.7")


def clip_input(
    frames: UInt8[np.ndarray, "t h w 3"], *, side: int = _SIDE
) -> Float32[torch.Tensor, "t 3 s s"]:
    """Frames as CLIP was trained on them: short side to `side` (cubic, Pillow), centre, normalised.

    Args:
        frames: RGB, 0..255.
        side: Pixels.
    """
    height, width = frames.shape[1:3]
    short = min(height, width)
    size = (int(side * width / short), int(side * height / short))
    left, top = ((length - side) // 2 for length in size)
    box = (left, top, left + side, top + side)
    pictures = [
        np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC).crop(box))
        for frame in frames
    ]
    mean, deviation = np.asarray(_MEAN, np.float32), np.asarray(_DEVIATION, np.float32)
    values = (np.stack(pictures).astype(np.float32) / 255 - mean) / deviation
    return torch.from_numpy(values).permute(0, 3, 1, 2).contiguous()


def load_head(path: str) -> nn.Sequential:
    """A predictor's layers, in fp32.

    Args:
        path: sac+logos+ava1-l14-linearMSE.pth (five linear layers), or the single layer of
            sa_0_4_vit_l_14_linear.pth; both read as tensors alone, no code is run.

    Raises:
        DataError: It cannot be read, or is neither.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    # torch.load raises what the file makes it raise.
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise DataError(f"aesthetic_head {path}: cannot be read: {reason}") from error
    names = [""] if isinstance(state, dict) and "weight" in state else list(_LAYERS)
    prefixes = [f"{name}." if name else "" for name in names]
    expected = {f"{prefix}{part}" for prefix in prefixes for part in ("weight", "bias")}
    if not isinstance(state, dict) or set(state) != expected:
        found = (
            ", ".join(map(str, state))[:120] if isinstance(state, dict) else type(state).__name__
        )
        raise DataError(
            f"aesthetic_head {path}: expected weight and bias, or layers.0 to layers.7, got {found}"
        )
    layers = []
    for prefix in prefixes:
        weight = state[f"{prefix}weight"].float()
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": weight, "bias": state[f"{prefix}bias"].float()})
        layers.append(layer)
    head = nn.Sequential(*layers).eval()
    if layers[-1].out_features != 1:
        raise DataError(
            f"aesthetic_head {path}: expected one score, got {layers[-1].out_features} outputs"
        )
    return head


class AestheticScorer:
    """CLIP ViT-L/14 with a predictor; scores are about 1 to 10, most pictures get 4 to 6.5."""

    def __init__(self, *, clip: str, head: str, dtype: Dtype, device: torch.device) -> None:
        """Load both.

        Args:
            clip: Folder or hub id of the CLIP that the head was trained on.
            head: File; see `load_head`.
            dtype: Of CLIP; the head runs in fp32.
            device: Where they run.

        Raises:
            ValueError: One is not there or cannot be loaded, or they do not fit together.
        """
        from transformers import CLIPVisionModelWithProjection

        source = find_weights(clip, key="aesthetic_clip", get=GET_CLIP)

        def load() -> Any:
            return CLIPVisionModelWithProjection.from_pretrained(
                source.name, subfolder=source.subfolder, dtype=DTYPES[dtype]
            )

        model = load_or_explain(source, load, key="aesthetic_clip", get=GET_CLIP)
        self._model = model.eval().to(device)
        self._head = load_head(head).to(device)
        self._device, self._dtype = device, DTYPES[dtype]
        self.pieces = Pieces(8)
        wanted = self._head[0].in_features
        if wanted != model.config.projection_dim:
            raise DataError(
                f"aesthetic_head {head}: expected a predictor of CLIP's "
                f"{model.config.projection_dim} numbers, got one of {wanted}"
            )
        self.facts = ModelFacts(
            backend="model",
            model=clip,
            revision=weights_revision(source, commit=getattr(model.config, "_commit_hash", None)),
            version=library_version("transformers"),
            license=LICENSE,
        )

    @torch.inference_mode()
    def score(self, frames: UInt8[np.ndarray, "t h w 3"]) -> float:
        """Mean score of some frames: head(e / |e|) with e CLIP's projected embedding.

        Args:
            frames: RGB, 0..255.
        """
        side = self._model.config.image_size
        scores: list[torch.Tensor] = []
        for i in range(0, len(frames), self.pieces.size):
            pixels = clip_input(frames[i : i + self.pieces.size], side=side)
            embedding = self._model(
                pixel_values=pixels.to(self._device, self._dtype)
            ).image_embeds.float()
            embedding = embedding / embedding.norm(dim=-1, keepdim=True)
            scores.append(self._head(embedding)[:, 0])
        return float(torch.cat(scores).mean())
