"""What the pipeline returns."""

from dataclasses import dataclass

import numpy as np
from diffusers.utils.outputs import BaseOutput
from PIL import Image
from torch import Tensor

Frames = list[list[Image.Image]] | np.ndarray | Tensor
"""Clips as `output_type` asks for them: pil, a list of images per clip; np, (b, t, h, w, 3) float32
in [0, 1]; pt, (b, t, 3, h, w) float32 in [0, 1]; latent, (b, t', c, h', w') float32."""


@dataclass
class UDPDiffPipelineOutput(BaseOutput):
    """Videos, their dense maps, and what the maps say; b clips, in the order of the prompts."""

    frames: Frames
    """The videos."""
    dense: Frames | None = None
    """The dense maps in colours, as generated; None for a network without them."""
    entity_ids: np.ndarray | None = None
    """task segmentation: entity of each pixel over its whole clip, (b, t, h, w) int32,
    0 = unlabelled. None for another task, and with output_type latent."""
    depth: np.ndarray | None = None
    """task depth: disparity in (0, 1], 1 = near, (b, t, h, w) float32; None likewise."""
    task: str | None = None
    """What the dense maps show."""

    def parts(self) -> tuple[Frames, Frames | None, np.ndarray | None, np.ndarray | None]:
        """(frames, dense, entity_ids, depth): of one length, unlike `to_tuple`, without None."""
        return self.frames, self.dense, self.entity_ids, self.depth
