"""What cd-fvd's I3D says of random weights, and the numbers kept of it.

cd-fvd is no package we depend on. With it installed (without what it wants beside it) in the folder
that UDPDIFF_CDFVD names,

    pip install --no-deps --target FOLDER cd-fvd==0.1.1
    UDPDIFF_CDFVD=FOLDER PYTHONPATH=. python tests/evaluation/i3d_reference.py

runs it on every clip and writes `i3d_reference.json` beside this file.
"""

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

NUMBERS = Path(__file__).with_suffix(".json")
FOLDER = os.environ.get("UDPDIFF_CDFVD", "")
VERSION = "cd-fvd 0.1.1"
CLIPS = {"ten frames, wide": (10, 40, 60), "seventeen frames, high": (17, 90, 50)}
"""(t, h, w)."""


def make_clip(size: tuple[int, int, int]) -> np.ndarray:
    """Waves that move, uint8 (t, h, w, 3); integers alone, so the same on every platform."""
    t, y, x = np.meshgrid(*(np.arange(length) for length in size), indexing="ij")
    waves = (x * x // 8 + 9 * t, 5 * y + 3 * x - 11 * t, (x - 2 * t) * y // 4)
    return np.stack([np.abs(wave % 256 * 2 - 255) for wave in waves], axis=-1).astype(np.uint8)


def random_state(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Weights that keep activations of one size through all layers; every tensor is random."""
    rng, state = np.random.RandomState(0), {}
    for key in sorted(shapes):
        shape = shapes[key]
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(1)
            continue
        values = rng.standard_normal(shape)
        if key.endswith("conv3d.weight"):
            values *= np.sqrt(2.0 / np.prod(shape[1:]))
        elif key.endswith(("running_var", "bn.weight")):
            values = 1.0 + 0.5 * np.tanh(values)
        else:
            values *= 0.2
        state[key] = torch.from_numpy(np.asarray(values, np.float32))
    return state


def shapes_of(network: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a network's state."""
    return {key: tuple(value.shape) for key, value in network.state_dict().items()}


def digest_of(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """SHA-256 of names and shapes."""
    lines = [f"{key} {shapes[key]}" for key in sorted(shapes)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def reference_modules() -> tuple[Any, Any]:
    """cd-fvd's `third_party.i3d.utils` and `fvd`, the latter without its readers of files.

    They need torchvision, as do the features of another network.
    """
    if FOLDER not in sys.path:
        sys.path.append(FOLDER)
    for name, missing in {
        "cdfvd.utils.data_utils": ("get_dataloader", "VID_EXTENSIONS"),
        "cdfvd.third_party.VideoMAEv2.utils": ("load_videomae_model", "preprocess_videomae"),
    }.items():
        module = ModuleType(name)
        for attribute in missing:
            setattr(module, attribute, None)
        sys.modules[name] = module
    import cdfvd.fvd  # pyright: ignore
    import cdfvd.third_party.i3d.utils  # pyright: ignore

    return cdfvd.third_party.i3d.utils, cdfvd.fvd


def main() -> None:
    """Write the numbers of every clip."""
    utils, _ = reference_modules()
    network = utils.pytorch_i3d.InceptionI3d(400, in_channels=3).eval()
    shapes = shapes_of(network)
    network.load_state_dict(random_state(shapes))
    logits = {}
    for name, size in CLIPS.items():
        with torch.no_grad():
            (row,) = network(utils.preprocess_i3d(make_clip(size)[None]))
        logits[name] = [round(float(value), 6) for value in row]
    record = {
        "made_by": "tests/evaluation/i3d_reference.py",
        "reference": VERSION,
        "parameters": sum(value.numel() for value in network.parameters()),
        "names_and_shapes_sha256": digest_of(shapes),
        "logits": logits,
    }
    NUMBERS.write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
