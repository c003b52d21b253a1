"""First-frame entities without weights; see `classical_segmentation` for what they are worth."""

import numpy as np
from jaxtyping import UInt8

from data_loaders.classical_segmentation import BACKEND, ClassicalSettings, segment_clip
from data_loaders.panda_dense.entity_masks import FirstFrame
from data_loaders.panda_dense.models import ModelFacts, library_version


class ClassicalSegmenter:
    """Regions of one colour, as `segment_clip` finds them in the first frame of a clip.

    Args:
        settings: Numbers; None = the defaults.
    """

    def __init__(self, settings: ClassicalSettings | None = None):
        self.facts = ModelFacts(backend=BACKEND, version=library_version("scikit-image"))
        self._settings = settings

    def segment(self, frames: UInt8[np.ndarray, "b h w 3"]) -> list[FirstFrame]:
        """Entities of each frame, ids from 1 by falling area; no scores, so each is 1.

        Args:
            frames: RGB, 0..255.
        """
        found = [segment_clip(frame[None], settings=self._settings)[0] for frame in frames]
        return [FirstFrame(ids=ids, scores=(1.0,) * int(ids.max())) for ids in found]

    def shrink(self) -> bool:
        """False: it fills no device."""
        return False
