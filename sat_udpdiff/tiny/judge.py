"""The judge of the tiny world: where no published network can be had, and none would fit.

Of a generated clip it says what DepthCrafter, EntitySeg and SAM 2, DINO, CLIP and I3D say of real
ones: its depth, its entities, features of its frames and of the whole. It was trained on the simple
world alone; its numbers compare runs of that world and nothing else.
"""

import hashlib
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int32, UInt8
from safetensors.torch import load_file
from torch import Tensor

from sat_udpdiff.tiny.clips import to_network
from sat_udpdiff.tiny.judge_network import KINDS, NUM_THINGS, JudgeNetwork, Verdict

WEIGHTS = Path(__file__).parent / "weights" / "judge"
WEIGHTS_FILE = "judge.safetensors"
FEATURES = 8
"""Numbers of a clip's features: few, so that a few dozen clips span them."""
_MIN_PIXELS = 10
"""Of a kind over the whole clip: fewer are stray pixels at edges."""
_SIZE = (32, 48)
_WALL_ID = KINDS.index("wall") + 1
_SURE = 0.75
"""Share of a feature's pixels that is a thing, or is none."""
WORLD = "world."
"""Head of the names of `World` in the file of weights."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ClipVerdict:
    """What the judge says of one clip."""

    depth: Float32[np.ndarray, "t h w"]
    """Disparity, 0..1, 1 = near; on the scale of the world's clips, which are min-maxed."""
    entity_ids: Int32[np.ndarray, "t h w"]
    """1 + the index of the pixel's kind in `KINDS`: the same in all clips."""
    subject_features: Float64[np.ndarray, "t c"]
    """Of each frame's things, of length 1; zeros where a frame has none."""
    background_features: Float64[np.ndarray, "t c"]
    """Of the rest, of length 1; zeros where a frame has none."""
    clip_features: Float64[np.ndarray, " d"]
    """`FEATURES` numbers, uncorrelated and of variance 1 over clips of the world."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class World:
    """What features are like over clips of the world, so that they tell clips and frames apart."""

    subject: Float[Tensor, " c"]
    """Mean of the features of things."""
    background: Float[Tensor, " c"]
    """Mean of the features of the rest."""
    clip: Float[Tensor, " n"]
    """Mean of the features of clips."""
    axes: Float[Tensor, "d n"]
    """Rows that make the centred features of clips uncorrelated and of variance 1."""


class Judge:
    """The network with its weights; `load` gives the shipped one.

    Args:
        network: In evaluation mode.
        world: Means and axes of its features.
        key: Tells these weights from others.
    """

    def __init__(self, network: JudgeNetwork, *, world: World, key: str):
        self._network, self._world, self.key = network, world, key

    @classmethod
    def load(cls, folder: Path = WEIGHTS) -> "Judge":
        """The judge of a folder that make_judge wrote.

        Raises:
            ValueError: The file is missing.
        """
        path = folder / WEIGHTS_FILE
        if not path.is_file():
            raise ValueError(f"{path}: no such file; `python -m sat_udpdiff.tiny.make_judge`")
        state = load_file(path)
        world = World(**{f.name: state.pop(f"{WORLD}{f.name}") for f in fields(World)})
        network = JudgeNetwork()
        network.load_state_dict({name: value.float() for name, value in state.items()})
        key = hashlib.sha256(path.read_bytes()).hexdigest()
        return cls(network.eval().requires_grad_(False), world=world, key=key)

    @torch.no_grad()
    def __call__(self, rgb: UInt8[np.ndarray, "t h w 3"]) -> ClipVerdict:
        """Judge a clip of 32 x 48 pixels.

        Raises:
            ValueError: Another size: things of another size in pixels are other things to it.
        """
        if rgb.shape[1:3] != _SIZE:
            height, width = rgb.shape[1:3]
            raise ValueError(f"the tiny world's judge: expected 32 x 48 px, got {height} x {width}")
        verdict = self._network(to_network(rgb)[None])
        kinds = verdict.kinds[0].softmax(0)
        entity_ids = _entities(kinds)
        subject, background = pooled_features(verdict)
        world = self._world
        return ClipVerdict(
            depth=_disparity(verdict.depth[0], wall=entity_ids == _WALL_ID),
            entity_ids=entity_ids,
            subject_features=_directions(subject, centre=world.subject),
            background_features=_directions(background, centre=world.background),
            clip_features=(world.axes @ (verdict.clip_features[0] - world.clip)).double().numpy(),
        )

    def depth(self, rgb: UInt8[np.ndarray, "t h w 3"]) -> Float32[np.ndarray, "t h w"]:
        """The depth of the verdict."""
        return self(rgb).depth

    def entities(self, rgb: UInt8[np.ndarray, "t h w 3"]) -> Int32[np.ndarray, "t h w"]:
        """The entities of the verdict."""
        return self(rgb).entity_ids

    def clip_features(self, rgb: UInt8[np.ndarray, "t h w 3"]) -> Float64[np.ndarray, " d"]:
        """The features of the whole clip."""
        return self(rgb).clip_features


def component_axes(
    features: Float[Tensor, "n d"], *, count: int
) -> tuple[Float[Tensor, " d"], Float[Tensor, "count d"]]:
    """Mean, and the `count` principal axes, each divided by the spread along it."""
    centre = features.mean(0)
    _, spread, axes = torch.linalg.svd(features - centre, full_matrices=False)
    scale = spread[:count] / (len(features) - 1) ** 0.5
    return centre, axes[:count] / scale[:, None]


def _disparity(
    depth: Float[Tensor, "t h w"], *, wall: Bool[np.ndarray, "t h w"]
) -> Float32[np.ndarray, "t h w"]:
    """The wall is the farthest there is: exactly 0, as in truth."""
    return np.where(wall, 0.0, depth.clamp(0.0, 1.0).numpy()).astype(np.float32)


def _entities(kinds: Float[Tensor, "kinds t h w"]) -> Int32[np.ndarray, "t h w"]:
    """The likeliest kind of each pixel, among those with some pixels in the clip."""
    areas = torch.bincount(kinds.argmax(0).flatten(), minlength=len(KINDS))
    seen = areas >= _MIN_PIXELS
    likely = kinds.masked_fill(~seen[:, None, None, None], -1.0).argmax(0)
    return (likely + 1).int().numpy()


def pooled_features(
    verdict: Verdict,
) -> tuple[Float[Tensor, "t c"], Float[Tensor, "t c"]]:
    """Mean features of each frame of one clip, over its things and over the rest.

    NaN where a frame has none of the two.
    """
    features = verdict.frame_features[0]  # (t, c, h / 2, w / 2)
    things = verdict.kinds[0].softmax(0)[:NUM_THINGS].sum(0)
    share = torch.nn.functional.avg_pool2d(things[:, None], 2)
    # Pixels that may be anything count for neither.
    masks = (share > _SURE, share < 1 - _SURE)
    subject, background = ((features * m).sum((2, 3)) / m.sum((2, 3)) for m in masks)
    return subject, background


def _directions(
    features: Float[Tensor, "t c"], *, centre: Float[Tensor, " c"]
) -> Float64[np.ndarray, "t c"]:
    """Centred, and of length 1; zeros where there are no features."""
    directions = torch.nn.functional.normalize((features - centre).double(), dim=1)
    return directions.nan_to_num(0.0).numpy()
