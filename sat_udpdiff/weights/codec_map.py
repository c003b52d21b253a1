"""Names of the video codec's weights: SAT's `3d-vae.pt` and diffusers' AutoencoderKLCogVideoX.

Tensors are the same on both sides; only names differ. SAT counts the levels of the decoder from
the other end.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

from sat_udpdiff.weights.names import differences
from sat_udpdiff.weights.stored import State, StoredTensor

_T = TypeVar("_T")

_SAT_PREFIX = "first_stage_model."
"""Of the codec's keys in checkpoints that SAT users trained."""
_NOT_THE_CODEC = ("loss",)

# (SAT, diffusers), applied in this order both ways; {} is a number.
_RULES = (
    ("mid.block_1.", "mid_block.resnets.0."),
    ("mid.block_2.", "mid_block.resnets.1."),
    (".block.{}.", ".resnets.{}."),
    (".downsample.", ".downsamplers.0."),
    (".upsample.", ".upsamplers.0."),
    (".nin_shortcut.", ".conv_shortcut."),
    ("encoder.down.{}.", "encoder.down_blocks.{}."),
    ("decoder.up.{}.", "decoder.up_blocks.{}."),
)


_DECODER_LEVEL = re.compile(r"(decoder\.up_blocks\.)(\d+)(\..*)")


def holds_codec(names: Iterable[str]) -> bool:
    """Whether a SAT checkpoint holds the codec beside the network."""
    return f"{_SAT_PREFIX}encoder.conv_in.conv.weight" in set(names)


def codec_to_diffusers(state: State) -> dict[str, StoredTensor]:
    """Rename the codec of a SAT checkpoint; what belongs to its training loss is left out."""
    codec = {
        key.removeprefix(_SAT_PREFIX): value
        for key, value in state.items()
        if not key.removeprefix(_SAT_PREFIX).startswith(_NOT_THE_CODEC)
    }
    if any(key.startswith(_SAT_PREFIX) for key in state):
        codec = {k: v for k, v in codec.items() if _SAT_PREFIX + k in state}
    return _turn_levels({_renamed(key): value for key, value in codec.items()})


def codec_to_sat(state: State) -> dict[str, StoredTensor]:
    """Rename the codec of diffusers for SAT."""
    turned = _turn_levels(dict(state))
    return {_renamed(key, back=True): value for key, value in turned.items()}


def _renamed(key: str, *, back: bool = False) -> str:
    for sat, diffusers in _RULES:
        old, new = (diffusers, sat) if back else (sat, diffusers)
        pattern = re.escape(old).replace(r"\{\}", r"(\d+)")
        key = re.sub(pattern, new.replace("{}", r"\1"), key)
    return key


def _turn_levels(state: Mapping[str, _T]) -> dict[str, _T]:
    """Number the decoder's levels (diffusers' names) from the other end."""
    matches = {key: _DECODER_LEVEL.fullmatch(key) for key in state}
    last = max((int(match[2]) for match in matches.values() if match), default=0)
    return {
        f"{match[1]}{last - int(match[2])}{match[3]}" if match else key: state[key]
        for key, match in matches.items()
    }


def check_codec(state: State, *, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Compare names and shapes (of diffusers) with those of the class that shall hold them.

    Raises:
        ValueError: Names every missing, unexpected and mis-shaped key.
    """
    found = {name: stored.shape for name, stored in state.items()}
    if problems := differences(found, expected=expected):
        raise ValueError(f"not the weights of the video codec: {'; '.join(problems)}")
