"""Names and layouts of the network's weights: SAT (ours, official checkpoints) and diffusers.

Both maps are pure reshuffles: mapping there and back returns every tensor bit for bit.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from sat_udpdiff.weights.names import listed
from sat_udpdiff.weights.stored import State, StoredTensor, chunk, join, read_all, store_all

_A = TypeVar("_A")
_R = TypeVar("_R")

SAT_PREFIX = "model.diffusion_model."
"""Official SAT checkpoints carry it on every key of the network."""

DIFFUSERS_TASK_TABLE = "time_embedding.task_table.weight"
"""Our name for the task table among diffusers' keys; diffusers' own class has no such weight."""

SAT_POSITIONS = "mixins.pos_embed.pos_embedding"
SAT_SINES = "mixins.pos_embed.freqs_sin"
SAT_COSINES = "mixins.pos_embed.freqs_cos"
SAT_UNUSED_POSITIONS = "transformer.position_embeddings.weight"
"""Of official SAT checkpoints: computed tables of positions, and a table that nothing reads."""

_SAT_TASK_TABLE = "mixins.task_embedding.table.weight"

_IGNORED_SAT = {SAT_POSITIONS, SAT_SINES, SAT_COSINES, SAT_UNUSED_POSITIONS}

_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "mixins.patch_embed.proj": "patch_embed.proj",
    "mixins.patch_embed.text_proj": "patch_embed.text_proj",
    "transformer.final_layernorm": "norm_final",
    "mixins.final_layer.norm_final": "norm_out.norm",
    "mixins.final_layer.adaLN_modulation.1": "norm_out.linear",
    "mixins.final_layer.linear": "proj_out",
}

_LAYER = {
    "mixins.adaln_layer.query_layernorm_list.{i}": "transformer_blocks.{i}.attn1.norm_q",
    "mixins.adaln_layer.key_layernorm_list.{i}": "transformer_blocks.{i}.attn1.norm_k",
    "transformer.layers.{i}.input_layernorm": "transformer_blocks.{i}.norm1.norm",
    "transformer.layers.{i}.post_attention_layernorm": "transformer_blocks.{i}.norm2.norm",
    "transformer.layers.{i}.attention.dense": "transformer_blocks.{i}.attn1.to_out.0",
    "transformer.layers.{i}.mlp.dense_h_to_4h": "transformer_blocks.{i}.ff.net.0.proj",
    "transformer.layers.{i}.mlp.dense_4h_to_h": "transformer_blocks.{i}.ff.net.2",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fused:
    """One SAT tensor that diffusers holds as several: equal chunks on dim 0, dealt out."""

    sat: str
    diffusers: tuple[str, ...]
    chunks: tuple[tuple[int, ...], ...]
    """Which of SAT's chunks each diffusers tensor holds, in its order."""

    def split(self, tensor: StoredTensor) -> list[StoredTensor]:
        parts = chunk(tensor, sum(len(held) for held in self.chunks))
        return [join([parts[k] for k in held]) for held in self.chunks]

    def join(self, tensors: list[StoredTensor]) -> StoredTensor:
        parts: dict[int, StoredTensor] = {}
        for held, tensor in zip(self.chunks, tensors, strict=True):
            parts.update(zip(held, chunk(tensor, len(held)), strict=True))
        return join([parts[k] for k in sorted(parts)])


_FUSED = (
    # Stacked, not interleaved by head.
    _Fused(
        sat="transformer.layers.{i}.attention.query_key_value",
        diffusers=tuple(f"transformer_blocks.{{i}}.attn1.to_{name}" for name in "qkv"),
        chunks=((0,), (1,), (2,)),
    ),
    # SAT: shift, scale, gate of attention and of the MLP, all of the video, then of the text.
    # diffusers: one tensor for attention and one for the MLP, in each the video, then the text.
    _Fused(
        sat="mixins.adaln_layer.adaLN_modulations.{i}.1",
        diffusers=("transformer_blocks.{i}.norm1.linear", "transformer_blocks.{i}.norm2.linear"),
        chunks=((0, 1, 2, 6, 7, 8), (3, 4, 5, 9, 10, 11)),
    ),
)


def strip_sat_prefix(state: Mapping[str, _A]) -> dict[str, _A]:
    """Keep the network's weights of a SAT checkpoint, without `model.diffusion_model.`.

    Checkpoints that SAT users trained hold the text encoder and the codec as well; these are
    dropped. A state without the prefix comes back as it is.
    """
    if not any(key.startswith(SAT_PREFIX) for key in state):
        return dict(state)
    return {
        key.removeprefix(SAT_PREFIX): value
        for key, value in state.items()
        if key.startswith(SAT_PREFIX)
    }


def is_ignored(key: str) -> bool:
    """Whether a SAT key is one that the network computes itself (positions) or never used."""
    return key in _IGNORED_SAT


def is_diffusers(names: Iterable[str]) -> bool:
    """Whether the names of a network's weights are those of diffusers."""
    return any(name.startswith("transformer_blocks.") for name in names)


def to_diffusers(state: State) -> dict[str, StoredTensor]:
    """Rename and split SAT weights for diffusers' CogVideoXTransformer3DModel.

    Position tables are dropped. The task table is kept as `DIFFUSERS_TASK_TABLE`.

    Args:
        state: SAT names without prefix.

    Raises:
        ValueError: Names every missing and every unexpected key.
    """
    num_layers = count_layers(state)
    taker = _Taker(state, ignored=_IGNORED_SAT)
    out: dict[str, StoredTensor] = {}
    for sat, diffusers in _plain_pairs(num_layers):
        taker.move(sat, diffusers, out)
    for sat, parts, fused in _fused_names(num_layers):
        tensor = taker.take(sat)
        if tensor is not None:
            out.update(zip(parts, _named(fused.split, tensor, name=sat), strict=True))
    taker.move_optional(_SAT_TASK_TABLE, DIFFUSERS_TASK_TABLE, out)
    taker.check("SAT")
    return out


def to_sat(state: State) -> dict[str, StoredTensor]:
    """Rename and fuse the weights of diffusers' CogVideoXTransformer3DModel into SAT's.

    Args:
        state: Names of diffusers, with or without `DIFFUSERS_TASK_TABLE`.

    Raises:
        ValueError: Names every missing and every unexpected key.
    """
    num_layers = count_layers(state)
    taker = _Taker(state)
    out: dict[str, StoredTensor] = {}
    for sat, diffusers in _plain_pairs(num_layers):
        taker.move(diffusers, sat, out)
    for sat, parts, fused in _fused_names(num_layers):
        tensors = [tensor for part in parts if (tensor := taker.take(part)) is not None]
        if len(tensors) == len(parts):
            out[sat] = _named(fused.join, tensors, name=parts[0])
    taker.move_optional(DIFFUSERS_TASK_TABLE, _SAT_TASK_TABLE, out)
    taker.check("diffusers")
    return out


def sat_to_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`to_diffusers` for tensors in memory."""
    return read_all(to_diffusers(store_all(state)))


def diffusers_to_sat(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`to_sat` for tensors in memory."""
    return read_all(to_sat(store_all(state)))


def count_layers(names: Iterable[str]) -> int:
    """Layers that the names of a network speak of, SAT's or diffusers'.

    A layer of which less than half is there is a stray key and no layer.
    """
    found = (re.search(r"\b(?:layers|transformer_blocks)\.(\d+)\.", name) for name in names)
    keys = Counter(int(match[1]) for match in found if match)
    most = max(keys.values(), default=0)
    return max((layer + 1 for layer, count in keys.items() if 2 * count > most), default=0)


class _Taker:
    """Takes keys out of a state dict and remembers which were missing or left."""

    def __init__(self, state: State, *, ignored: Collection[str] = ()) -> None:
        self.left = {key: value for key, value in state.items() if key not in ignored}
        self.missing: list[str] = []

    def take(self, key: str) -> StoredTensor | None:
        if key not in self.left:
            self.missing.append(key)
            return None
        return self.left.pop(key)

    def move(self, key: str, name: str, out: dict[str, StoredTensor]) -> None:
        tensor = self.take(key)
        if tensor is not None:
            out[name] = tensor

    def move_optional(self, key: str, name: str, out: dict[str, StoredTensor]) -> None:
        if key in self.left:
            self.move(key, name, out)

    def check(self, names: str) -> None:
        faults = [*listed("missing", self.missing), *listed("unexpected", self.left)]
        if faults:
            raise ValueError(f"weights with {names} names: {'; '.join(faults)}")


def _named(reshuffle: Callable[[_A], _R], tensors: _A, *, name: str) -> _R:
    try:
        return reshuffle(tensors)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _plain_pairs(num_layers: int) -> Iterable[tuple[str, str]]:
    """(SAT, diffusers) names of weights and biases that are only renamed."""
    pairs = list(_ENDS.items())
    for i in range(num_layers):
        pairs += [(sat.format(i=i), diffusers.format(i=i)) for sat, diffusers in _LAYER.items()]
    for sat, diffusers in pairs:
        for suffix in ("weight", "bias"):
            yield f"{sat}.{suffix}", f"{diffusers}.{suffix}"


def _fused_names(num_layers: int) -> Iterable[tuple[str, list[str], _Fused]]:
    """(SAT name, diffusers names, how they are fused) of every fused weight and bias."""
    for i in range(num_layers):
        for fused in _FUSED:
            for suffix in ("weight", "bias"):
                names = [f"{part.format(i=i)}.{suffix}" for part in fused.diffusers]
                yield f"{fused.sat.format(i=i)}.{suffix}", names, fused
