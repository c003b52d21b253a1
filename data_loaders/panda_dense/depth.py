"""Stage `depth`: disparity of every frame, scaled over the clip; nearest = 65535."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt8, UInt16

from data_loaders.decode import encode_labels
from data_loaders.panda_dense.depth_anything import (
    GET_DEPTH_ANYTHING,
    DepthAnything,
    DepthAnythingSettings,
    check_depth_anything,
)
from data_loaders.panda_dense.depth_clip import DepthClip
from data_loaders.panda_dense.depthcrafter import (
    GET_BASE,
    GET_UNET,
    DepthCrafter,
    DepthCrafterSettings,
    check_depthcrafter,
)
from data_loaders.panda_dense.exact import exact_facts, read_exact
from data_loaders.panda_dense.models import ModelFacts, Pieces, require_weights
from data_loaders.panda_dense.stage import Clip, Dropped, Kept, Outcome, Stage
from data_loaders.schema import DataError


@runtime_checkable
class DepthModel(Protocol):
    """What estimates the depth of clips."""

    facts: ModelFacts
    pieces: Pieces

    def estimate(self, rgb: UInt8[np.ndarray, "t h w 3"], *, key: str) -> DepthClip:
        """Disparity of a clip, min-max over it; the key decides what noise there is."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthSettings:
    """Depth of the clips."""

    backend: Literal["model", "synthetic", "none"] = "model"
    """'synthetic': the exact depth of a synthetic source; 'none': the shards have no depth. There
    is no classical backend: optical flow and picture height say nothing certain about distance."""
    method: Literal["depthcrafter", "depth_anything"] = "depthcrafter"
    """'depth_anything' looks at every frame by itself: the paper's ablation (table 8)."""
    levels: Literal[256, 65536] = 65536
    """That are told apart. 256 are what the colormap has, and take a third of the space."""
    depthcrafter: DepthCrafterSettings = field(default_factory=DepthCrafterSettings)
    depth_anything: DepthAnythingSettings = field(default_factory=DepthAnythingSettings)


class DepthStage(Stage):
    """See the module.

    Args:
        settings: Of the stage.
        device: Where the model runs.
    """

    name, reads = "depth", ("cut",)

    def __init__(self, settings: DepthSettings, *, device: torch.device) -> None:
        self._settings, self._device = settings, device
        self._model: DepthModel | None = None

    def settings(self) -> dict[str, Any]:
        """Of the backend that is used."""
        chosen = {"backend": self._settings.backend, "levels": self._settings.levels}
        if self._settings.backend == "model":
            method = self._settings.method
            chosen |= {"method": method, method: asdict(getattr(self._settings, method))}
        return chosen

    def check(self) -> None:
        """The numbers and the weights of the model."""
        if self._settings.backend == "model":
            check_depth_model(self._settings)

    def load(self) -> None:
        """The model."""
        if self._settings.backend == "model":
            self._model = load_depth_model(self._settings, device=self._device)

    def unload(self) -> None:
        """Let go of the model."""
        self._model = None
        super().unload()

    @property
    def pieces(self) -> Sequence[Pieces]:
        """What goes through the model at once."""
        return [] if self._model is None else [self._model.pieces]

    @property
    def facts(self) -> ModelFacts:
        """What makes the depth."""
        if self._settings.backend == "none":
            return ModelFacts(backend="none")
        if self._settings.backend == "synthetic":
            return exact_facts()
        assert self._model is not None
        return self._model.facts

    def work(self, clips: Sequence[Clip]) -> list[Outcome]:
        """Depth of each clip."""
        return [self._estimate(clip) for clip in clips]

    def _estimate(self, clip: Clip) -> Outcome:
        if self._settings.backend == "none":
            return Kept(columns={"has_depth": False})
        fps = clip.columns["cut"]["fps"]
        if self._settings.backend == "synthetic":
            depth = read_exact(clip, "depth")
            columns: dict[str, Any] = {"has_depth": True}
        else:
            assert self._model is not None
            rgb = clip.rgb()
            try:
                found = self._model.estimate(rgb, key=clip.key)
            except DataError as error:
                return Dropped(reason="depth is not finite", detail=str(error))
            columns = {"has_depth": True, "low": found.raw_min, "high": found.raw_max}
            if found.is_flat:
                return Dropped(reason="one depth everywhere", columns=columns)
            depth = found.depth
        depth = quantize(depth, levels=self._settings.levels)
        return Kept(
            columns=columns | {"polarity": "near_is_one"},
            files={"depth.mkv": encode_labels(depth, fps=fps)},
        )


def check_depth_model(settings: DepthSettings) -> None:
    """Check the settings of the model, whatever the backend.

    Raises:
        DataError: A number is out of range; names the setting.
        ValueError: There are no such weights; says where they are to be had.
    """
    if settings.method == "depthcrafter":
        chosen = settings.depthcrafter
        check_depthcrafter(chosen, section="depth.depthcrafter")
        require_weights(chosen.unet, key="depth.depthcrafter.unet", get=GET_UNET)
        for part in ("vae", "image_encoder"):
            key = "depth.depthcrafter.base"
            require_weights(chosen.base, key=key, get=GET_BASE, subfolder=part)
    else:
        check_depth_anything(settings.depth_anything, section="depth.depth_anything")
        weights = settings.depth_anything.weights
        require_weights(weights, key="depth.depth_anything.weights", get=GET_DEPTH_ANYTHING)


def load_depth_model(settings: DepthSettings, *, device: torch.device) -> DepthModel:
    """The model that the settings name, whatever the backend.

    Raises:
        ValueError: Its weights cannot be loaded.
    """
    if settings.method == "depthcrafter":
        return DepthCrafter.load(settings.depthcrafter, device=device)
    return DepthAnything.load(settings.depth_anything, device=device)


def quantize(depth: UInt16[np.ndarray, "t h w"], *, levels: int) -> UInt16[np.ndarray, "t h w"]:
    """Depth of fewer levels, over the same range.

    Args:
        depth: 0..65535.
        levels: 2..65536.

    Returns:
        The nearest of `levels` equally spaced values from 0 to 65535.
    """
    if levels == 65536:
        return depth
    step = 65535 / (levels - 1)
    return np.rint(np.rint(depth / step) * step).astype(np.uint16)
