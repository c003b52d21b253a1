"""What a clip costs in SAM 2, in floating point operations.

A multiplication and an addition are two. Counted with torch's FlopCounterMode on the meta device,
transformers 5.23 and 1024 x 1024, with the configurations of facebookresearch/sam2
(sam2/configs/sam2.1). Softmax, norms and interpolation are not counted, nor the time between
kernels: one object on one frame is some hundred small kernels, so that a fast GPU waits for the
host.
"""

from typing import Literal

Sam2Size = Literal["tiny", "small", "base-plus", "large"]

_ENCODE: dict[Sam2Size, float] = {
    "tiny": 293e9,
    "small": 360e9,
    "base-plus": 648e9,
    "large": 1825e9,
}
# Of one object. The memory attention grows with the memories it looks at; the rest of a tracked
# frame (self-attention, pointers, mask decoder, memory encoder) is the same in all four sizes.
_PROMPT = 15.3e9
_TRACK = 131.3e9
_PER_MEMORY = 69.8e9
_MOST_MEMORIES = 7


def clip_flop(size: Sam2Size, *, frames: int, objects: int) -> float:
    """Operations to carry the masks of the first frame through a clip.

    frames E + objects (P + sum over t = 1 .. frames - 1 of (T + M min(t, 7))), with E per encoded
    frame, P per prompt, T per tracked frame and M per memory looked at.

    Args:
        size: Of the model.
        frames: Of the clip, >= 1.
        objects: Prompted on the first frame.
    """
    memories = sum(min(t, _MOST_MEMORIES) for t in range(1, frames))
    tracking = _PROMPT + (frames - 1) * _TRACK + memories * _PER_MEMORY
    return frames * _ENCODE[size] + objects * tracking


def sam2_size(weights: str) -> Sam2Size | None:
    """The size that a folder or hub id names, as 'facebook/sam2.1-hiera-large' does; else None."""
    for size in _ENCODE:
        if size in weights.replace("_", "-").lower():
            return size
    return None
