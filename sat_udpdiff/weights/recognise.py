"""Which network a checkpoint holds, read off the shapes of its tensors.

CogVideoX came as 2B and 5B, as 1.5, and as image-to-video variants of each; their files look alike
and fit one another just far enough to fail late. Here they are told apart before anything is read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from sat_udpdiff.config import ModelConfig
from sat_udpdiff.model.task_embedding import TASK_TABLE_KEY
from sat_udpdiff.weights.key_map import (
    DIFFUSERS_TASK_TABLE,
    SAT_POSITIONS,
    SAT_SINES,
    count_layers,
    is_diffusers,
)
from sat_udpdiff.weights.names import shortened
from sat_udpdiff.weights.stored import FLOATS, State, dtype_name

_DIFFUSERS_NAMES = {
    "mixins.patch_embed.proj.weight": "patch_embed.proj.weight",
    "mixins.patch_embed.text_proj.weight": "patch_embed.text_proj.weight",
    "mixins.final_layer.linear.weight": "proj_out.weight",
    "time_embed.0.weight": "time_embedding.linear_1.weight",
    "mixins.adaln_layer.query_layernorm_list.0.weight": "transformer_blocks.0.attn1.norm_q.weight",
}
_IMAGE_KEYS = ("ofs_embed.0.weight", "ofs_embedding.linear_1.weight")
_LEARNED_POSITIONS = "patch_embed.pos_embedding"
_MOST_SHOWN = 3
# Of CogVideoX 1.5, whose patches are vectors of 2 x 2 x 2 numbers per channel.
_PATCH_1_5 = (2, 2)
_RELEASED = {
    # layers, width, frames per patch
    (6, 192, 1): ("tiny", "the tiny CogVideoX"),
    (30, 1920, 1): ("2b", "CogVideoX 2B"),
    (42, 3072, 1): ("5b", "CogVideoX 5B"),
    (42, 3072, 2): ("1.5-5b", "CogVideoX 1.5 5B"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkFacts:
    """Numbers of a network; the names are those of `ModelConfig` where it has them."""

    num_layers: int
    hidden_size: int
    num_heads: int
    time_embed_dim: int
    text_dim: int
    patch_size: int
    patch_size_t: int
    in_channels: int
    out_channels: int
    has_task_table: bool
    positions: Literal["rotary", "sincos"] | None
    """None where the file does not tell."""
    reads_an_image: bool
    """An image-to-video variant."""

    @property
    def family(self) -> str | None:
        """Value of model.family; None for a network that nobody released."""
        return self._released[0]

    @property
    def name(self) -> str:
        """What users call it."""
        kind = " image-to-video" if self.reads_an_image else ""
        return f"{self._released[1]}{kind}"

    @property
    def _released(self) -> tuple[str | None, str]:
        numbers = (self.num_layers, self.hidden_size, self.patch_size_t)
        return _RELEASED.get(numbers, (None, f"a CogVideoX of {numbers[0]} layers of {numbers[1]}"))


def recognise(state: State) -> NetworkFacts:
    """Read the facts off the shapes.

    Args:
        state: The network's weights under SAT's names (no prefix) or those of diffusers.

    Raises:
        ValueError: It is no CogVideoX; says what is there instead, or what misses.
    """
    names = _DIFFUSERS_NAMES if is_diffusers(state) else {name: name for name in _DIFFUSERS_NAMES}
    missing = [name for name in names.values() if name not in state]
    if missing:
        found = shortened(sorted(state)[:_MOST_SHOWN]) if state else "none"
        raise ValueError(
            f"no weights of CogVideoX: there is no {missing[0]}; the first keys are {found}"
        )
    projection, text, output, time, head = (state[name].shape for name in names.values())
    patch, patch_t = (projection[2], 1) if len(projection) == 4 else _PATCH_1_5
    area = patch**2 * patch_t
    in_channels = projection[1] // (1 if len(projection) == 4 else area)
    out_channels = output[0] // area
    return NetworkFacts(
        num_layers=count_layers(state),
        hidden_size=projection[0],
        num_heads=projection[0] // head[0],
        time_embed_dim=time[0],
        text_dim=text[1],
        patch_size=patch,
        patch_size_t=patch_t,
        in_channels=in_channels,
        out_channels=out_channels,
        has_task_table=TASK_TABLE_KEY in state or DIFFUSERS_TASK_TABLE in state,
        positions=_positions(state),
        reads_an_image=in_channels == 2 * out_channels
        or any(key in state for key in (*_IMAGE_KEYS, _LEARNED_POSITIONS)),
    )


def _positions(state: State) -> Literal["rotary", "sincos"] | None:
    if SAT_POSITIONS in state:
        return "sincos"
    return "rotary" if SAT_SINES in state else None


def check_family(facts: NetworkFacts, *, model: ModelConfig) -> None:
    """Refuse the weights of another network in one line.

    Channels and task table are not looked at: they may be made on the way in.

    Raises:
        ValueError: Says what the weights are, what the configuration describes, and the way out.
    """
    if facts.reads_an_image:
        raise ValueError(
            f"these are weights of {facts.name} ({facts.in_channels} channels in, "
            f"{facts.out_channels} out), which reads an image besides; a text-to-video CogVideoX "
            "is needed, such as THUDM/CogVideoX-5b"
        )
    numbers = (
        "num_layers", "hidden_size", "num_heads", "time_embed_dim", "text_dim", "patch_size",
        "patch_size_t",
    )  # fmt: skip
    wrong = [name for name in numbers if getattr(facts, name) != getattr(model, name)]
    if facts.positions is not None and facts.positions != model.positions:
        wrong.append("positions")
    if wrong:
        details = ", ".join(
            f"model.{name} expected {getattr(model, name)}, got {getattr(facts, name)}"
            for name in wrong
        )
        way_out = f"; use configs/{facts.family}.yaml" if facts.family else ""
        raise ValueError(
            f"these are weights of {facts.name}, not of model.family={model.family}: "
            f"{details}{way_out}"
        )


def check_tensors(state: State) -> None:
    """Refuse tensors that are no weights, such as quantised ones, before anything is read.

    Raises:
        ValueError: Names every such tensor, with its dtype.
    """
    wrong: dict[str, list[str]] = {}
    for name, stored in state.items():
        if stored.dtype not in FLOATS or math.prod(stored.shape) == 0:
            wrong.setdefault(f"{dtype_name(stored.dtype)}", []).append(name)
    if wrong:
        found = "; ".join(f"{kind}: {shortened(names)}" for kind, names in wrong.items())
        expected = ", ".join(map(dtype_name, FLOATS))
        raise ValueError(f"expected tensors of {expected} with numbers in them, got {found}")
