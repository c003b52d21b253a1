"""CogVideoX as SAT mixins, with the parameter names of the official checkpoints.

A mixin's methods named like a SAT hook (`word_embedding_forward`, `layer_forward`, ...) replace
that step of SAT's transformer. All hooks get `grid`, the token grid of the call.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own custom)
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sat_udpdiff.config import ModelConfig
from sat_udpdiff.model.modulation import gated_residual, modulated_norm
from sat_udpdiff.model.patches import output_projection, patch_projection
from sat_udpdiff.model.positions import TokenGrid, rotary_table, rotate, sincos_table
from sat_udpdiff.sat_compat import BaseMixin, non_conflict

_HEAD_NORM_EPS = 1e-6
_FINAL_NORM_EPS = 1e-6  # diffusers has 1e-5 here; the weights were trained with 1e-6


class PatchEmbed(BaseMixin):
    """Text and latents to tokens, text first."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.proj = patch_projection(config, groups=1)
        self.text_proj = nn.Linear(config.text_dim, config.hidden_size)

    def word_embedding_forward(
        self, input_ids: Tensor, *, latents: Tensor, text: Tensor, **kwargs: object
    ) -> Float[Tensor, "b n d"]:
        """SAT's embedding step; `input_ids` is its unused dummy."""
        return torch.cat([self.text_proj(text), self.proj(latents)], dim=1)


class RotaryPositions(BaseMixin):
    """3-D rotary positions: nothing is added to the tokens, queries and keys are turned."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_dim = config.hidden_size // config.num_heads

    def position_embedding_forward(self, position_ids: Tensor, **kwargs: object) -> None:
        """SAT's position step: nothing."""

    def attention_fn(
        self,
        query: Float[Tensor, "b heads n d"],
        key: Float[Tensor, "b heads n d"],
        value: Float[Tensor, "b heads n d"],
        *args: object,
        grid: TokenGrid,
        **kwargs: object,
    ) -> Float[Tensor, "b heads n d"]:
        """Attention of every token to every token, padding included, as CogVideoX was trained."""
        # At least float32: bf16 angles are off by up to 0.1 rad at column 44.
        dtype = torch.complex128 if query.dtype == torch.float64 else torch.complex64
        table = rotary_table(grid, head_dim=self.head_dim, device=query.device, dtype=dtype)
        return F.scaled_dot_product_attention(rotate(query, table), rotate(key, table), value)


class SinCosPositions(BaseMixin):
    """3-D sin-cos positions, added to the tokens once (CogVideoX-2B)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.hidden_size = config.hidden_size
        self.spatial_interpolation = config.spatial_interpolation

    def position_embedding_forward(
        self, position_ids: Tensor, *, grid: TokenGrid, latents: Tensor, **kwargs: object
    ) -> Float[Tensor, "1 n d"]:
        """SAT's position step; `position_ids` is its unused dummy."""
        return sincos_table(
            grid,
            hidden_size=self.hidden_size,
            spatial_interpolation=self.spatial_interpolation,
            device=latents.device,
            dtype=latents.dtype,
        )

    def attention_fn(
        self,
        query: Float[Tensor, "b heads n d"],
        key: Float[Tensor, "b heads n d"],
        value: Float[Tensor, "b heads n d"],
        *args: object,
        **kwargs: object,
    ) -> Float[Tensor, "b heads n d"]:
        """Attention of every token to every token, padding included, as CogVideoX was trained."""
        return F.scaled_dot_product_attention(query, key, value)


class AdaLNLayers(BaseMixin):
    """Transformer layers modulated by the time embedding, with normalised queries and keys."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        layers = range(config.num_layers)
        head_dim = config.hidden_size // config.num_heads
        self.checkpointing = config.activation_checkpointing
        self.adaLN_modulations = nn.ModuleList(
            nn.Sequential(nn.SiLU(), nn.Linear(config.time_embed_dim, 12 * config.hidden_size))
            for _ in layers
        )
        self.query_layernorm_list = nn.ModuleList(
            nn.LayerNorm(head_dim, eps=_HEAD_NORM_EPS) for _ in layers
        )
        self.key_layernorm_list = nn.ModuleList(
            nn.LayerNorm(head_dim, eps=_HEAD_NORM_EPS) for _ in layers
        )

    def sat_layer(self, index: int) -> Any:
        """Return SAT's layer, which holds the weights; SAT sets `transformer`, without types."""
        transformer: Any = self.transformer
        return transformer.layers[index]

    def is_recomputed(self, index: int) -> bool:
        """Whether the layer's activations are dropped and computed again in the backward pass."""
        if self.checkpointing == "selective":
            return index % 2 == 0
        return self.checkpointing == "full"

    def layer_forward(
        self,
        hidden_states: Float[Tensor, "b n d"],
        mask: Tensor,
        *,
        layer_id: Tensor,
        emb: Float[Tensor, "b e"],
        grid: TokenGrid,
        **kwargs: object,
    ) -> Float[Tensor, "b n d"]:
        """SAT's layer step; `mask` is passed through unread."""
        index = int(layer_id)  # a CPU tensor that SAT makes: no device sync
        layer = partial(self._layer, mask=mask, index=index, grid=grid)
        if torch.is_grad_enabled() and self.is_recomputed(index):
            # There is no dropout, so no random state to restore.
            return checkpoint(
                layer, hidden_states, emb, use_reentrant=False, preserve_rng_state=False
            )
        return layer(hidden_states, emb)

    def _layer(
        self, hidden: Tensor, emb: Tensor, *, mask: Tensor, index: int, grid: TokenGrid
    ) -> Tensor:
        """One block: modulated attention, then modulated MLP, each added through a gate."""
        layer = self.sat_layer(index)
        # Per group: shift, scale, gate of attention, then of the MLP.
        (v_shift, v_scale, v_gate, v_mlp_shift, v_mlp_scale, v_mlp_gate,
         t_shift, t_scale, t_gate, t_mlp_shift, t_mlp_scale, t_mlp_gate) = (
            self.adaLN_modulations[index](emb).chunk(12, dim=1)
        )  # fmt: skip
        normed = modulated_norm(
            hidden,
            norm=layer.input_layernorm,
            text=(t_shift, t_scale),
            video=(v_shift, v_scale),
            text_length=grid.text_here,
        )
        hidden = gated_residual(
            hidden,
            update=layer.attention(normed, mask, layer_id=index, grid=grid),
            text_gate=t_gate,
            video_gate=v_gate,
            text_length=grid.text_here,
        )
        normed = modulated_norm(
            hidden,
            norm=layer.post_attention_layernorm,
            text=(t_mlp_shift, t_mlp_scale),
            video=(v_mlp_shift, v_mlp_scale),
            text_length=grid.text_here,
        )
        return gated_residual(
            hidden,
            update=layer.mlp(normed, layer_id=index),
            text_gate=t_mlp_gate,
            video_gate=v_mlp_gate,
            text_length=grid.text_here,
        )

    @non_conflict
    def attention_fn(
        self,
        query: Float[Tensor, "b heads n d"],
        key: Float[Tensor, "b heads n d"],
        value: Float[Tensor, "b heads n d"],
        *args: object,
        layer_id: int,
        old_impl: object,
        **kwargs: object,
    ) -> Float[Tensor, "b heads n d"]:
        """Normalise queries and keys of each head, text included, then attend by `old_impl`.

        The norm stores what it is given, so it is given (b, n, heads, d): attention's output takes
        the layout of its queries, and the next linear reads it without another copy.
        """
        query = self.query_layernorm_list[layer_id](query.transpose(1, 2)).transpose(1, 2)
        key = self.key_layernorm_list[layer_id](key.transpose(1, 2)).transpose(1, 2)
        return old_impl(query, key, value, *args, **kwargs)  # type: ignore[operator]


class FinalLayer(BaseMixin):
    """Video tokens to the values of their patches."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(config.hidden_size, eps=_FINAL_NORM_EPS)
        self.linear = output_projection(config, groups=1)
        self.adaLN_modulation = nn.Sequential(
            nn.SiLU(), nn.Linear(config.time_embed_dim, 2 * config.hidden_size)
        )

    def final_forward(
        self,
        logits: Float[Tensor, "b n d"],
        *,
        emb: Float[Tensor, "b e"],
        grid: TokenGrid,
        **kwargs: object,
    ) -> Float[Tensor, "b n_video f"]:
        """SAT's last step, after its own final norm; text tokens end here."""
        shift, scale = self.adaLN_modulation(emb)[:, None].chunk(2, dim=-1)
        video = torch.addcmul(shift, self.norm_final(logits[:, grid.text_here :]), 1 + scale)
        return self.linear(video)
