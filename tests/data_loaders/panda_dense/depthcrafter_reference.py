"""What DepthCrafter's own program says of tiny random parts, and the numbers kept of it.

It is under a licence of its own, so it is not part of this project. With a checkout of
github.com/Tencent/DepthCrafter in the folder that UDPDIFF_DEPTHCRAFTER names,

    PYTHONPATH=. python tests/data_loaders/panda_dense/depthcrafter_reference.py COMMIT

runs it on every case and writes `depthcrafter_reference.json` beside this file.
"""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tests.data_loaders.panda_dense.tiny_depth import make_tiny_depthcrafter

NUMBERS = Path(__file__).with_suffix(".json")
FOLDER = os.environ.get("UDPDIFF_DEPTHCRAFTER", "")
SEED = 7


@dataclass(frozen=True, kw_only=True)
class Case:
    """A clip and the numbers of a run."""

    frames: int
    height: int = 64
    width: int = 64
    steps: int = 3
    guidance: float = 1.0
    window: int = 110
    overlap: int = 25


CASES = {
    "one window": Case(frames=5, width=128, steps=5),
    "one window, guided": Case(frames=5, guidance=1.5),
    "two windows": Case(frames=9, window=6, overlap=2),
    "two windows, guided": Case(frames=9, window=6, overlap=3, guidance=1.5),
    "four windows, the last short": Case(frames=12, window=5, overlap=2),
    # Larger than CLIP's 224, so that its blur is at work.
    "large": Case(frames=2, height=320, width=256, steps=2),
}


def make_clip(case: Case) -> np.ndarray:
    """Waves that move, uint8 (t, h, w, 3); integers alone, so the same on every platform."""
    t, y, x = np.meshgrid(
        np.arange(case.frames), np.arange(case.height), np.arange(case.width), indexing="ij"
    )
    waves = (x * x // 8 + 9 * t, 5 * y + 3 * x - 11 * t, (x - 2 * t) * y // 4)
    return np.stack([np.abs(wave % 256 * 2 - 255) for wave in waves], axis=-1).astype(np.uint8)


def reference_disparity(case: Case) -> np.ndarray:
    """Disparity (t, h, w) of their pipeline, before it is scaled: the mean of the colours."""
    sys.path.insert(0, FOLDER)
    try:
        from depthcrafter.depth_crafter_ppl import DepthCrafterPipeline  # pyright: ignore
        from depthcrafter.unet import (  # pyright: ignore
            DiffusersUNetSpatioTemporalConditionModelDepthCrafter,
        )
    finally:
        sys.path.remove(FOLDER)
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    parts = make_tiny_depthcrafter()
    own = DiffusersUNetSpatioTemporalConditionModelDepthCrafter.from_config(parts["unet"].config)
    own.load_state_dict(parts["unet"].state_dict())
    parts["unet"] = own.eval()
    pipeline = DepthCrafterPipeline(feature_extractor=CLIPImageProcessorPil(), **parts)
    pipeline.set_progress_bar_config(disable=True)
    with torch.inference_mode():
        frames = pipeline(
            make_clip(case).astype("float32") / 255,
            height=case.height,
            width=case.width,
            num_inference_steps=case.steps,
            guidance_scale=case.guidance,
            window_size=case.window,
            overlap=case.overlap,
            output_type="np",
            generator=torch.Generator().manual_seed(SEED),
        ).frames[0]
    return frames.sum(-1) / frames.shape[-1]


def numbers_of(disparity: np.ndarray) -> dict[str, object]:
    """Moments, and 48 values spread over the clip."""
    places = np.linspace(0, disparity.size - 1, 48).astype(int)
    return {
        "shape": list(disparity.shape),
        "mean": round(float(disparity.mean()), 7),
        "std": round(float(disparity.std()), 7),
        "values": [round(float(value), 7) for value in disparity.ravel()[places]],
    }


def main() -> None:
    """Write the numbers of every case."""
    record = {
        "made_by": "tests/data_loaders/panda_dense/depthcrafter_reference.py",
        "reference": f"github.com/Tencent/DepthCrafter at {sys.argv[1]}",
        "cases": {name: numbers_of(reference_disparity(case)) for name, case in CASES.items()},
    }
    NUMBERS.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
