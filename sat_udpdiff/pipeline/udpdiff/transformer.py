"""diffusers' CogVideoX transformer with a task table: the network of UDPDiff under its names."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
from torch import Tensor, nn

from sat_udpdiff.config import TASKS
from sat_udpdiff.model.positions import TokenGrid, rotary_table

_FINAL_NORM_EPS = 1e-6
"""The released weights were trained with it; diffusers' class has 1e-5."""


class TimeAndTaskEmbedding(TimestepEmbedding):
    """The time embedding with a learned row per task added, t_d = e_d(d) + e_t(t), eq. (1)."""

    def __init__(self, in_channels: int, time_embed_dim: int, act_fn: str = "silu") -> None:
        super().__init__(in_channels, time_embed_dim, act_fn)
        self.task_table = nn.Embedding(len(TASKS), time_embed_dim)
        nn.init.zeros_(self.task_table.weight)

    def forward(self, sample: Tensor, condition: Tensor | None = None) -> Tensor:
        """Embed waves of timesteps (b, in_channels) and task ids (b,) int64; (b, time_embed_dim).

        `condition` is the name under which diffusers' transformer hands its `timestep_cond` on.
        """
        if condition is None:
            raise ValueError("task: expected ids of shape (b,), got none (task_signal=embedding)")
        return super().forward(sample) + self.task_table(condition)


class UDPDiffTransformer3DModel(CogVideoXTransformer3DModel):
    """CogVideoX for a video and its dense map: both latents on the channels, told the task.

    Weights have diffusers' names, and the table `time_embedding.task_table.weight`.

    The arguments are those of CogVideoXTransformer3DModel, and two more.

    Args:
        in_channels: Channels of the video's latent and of the dense map's.
        task_signal: How the network is told the task. embedding: by ids, through a table; prompt:
            by words in the prompt; none: it knows one task only.
        tasks: What the network was trained on; ids are 0 segmentation, 1 depth, whatever is here.
    """

    @register_to_config
    def __init__(  # noqa: PLR0913 - diffusers reads from the signature what a config file may hold
        self,
        num_attention_heads: int = 48,
        attention_head_dim: int = 64,
        in_channels: int = 32,
        out_channels: int | None = 32,
        flip_sin_to_cos: bool = True,
        freq_shift: int = 0,
        time_embed_dim: int = 512,
        ofs_embed_dim: int | None = None,
        text_embed_dim: int = 4096,
        num_layers: int = 42,
        dropout: float = 0.0,
        attention_bias: bool = True,
        sample_width: int = 90,
        sample_height: int = 60,
        sample_frames: int = 49,
        patch_size: int = 2,
        patch_size_t: int | None = None,
        temporal_compression_ratio: int = 4,
        max_text_seq_length: int = 226,
        activation_fn: str = "gelu-approximate",
        timestep_activation_fn: str = "silu",
        norm_elementwise_affine: bool = True,
        norm_eps: float = 1e-5,
        spatial_interpolation_scale: float = 1.875,
        temporal_interpolation_scale: float = 1.0,
        use_rotary_positional_embeddings: bool = True,
        use_learned_positional_embeddings: bool = False,
        patch_bias: bool = True,
        task_signal: str = "embedding",
        tasks: Sequence[str] = TASKS,
    ) -> None:
        super().__init__(
            num_attention_heads=num_attention_heads,
            attention_head_dim=attention_head_dim,
            in_channels=in_channels,
            out_channels=out_channels,
            flip_sin_to_cos=flip_sin_to_cos,
            freq_shift=freq_shift,
            time_embed_dim=time_embed_dim,
            ofs_embed_dim=ofs_embed_dim,
            text_embed_dim=text_embed_dim,
            num_layers=num_layers,
            dropout=dropout,
            attention_bias=attention_bias,
            sample_width=sample_width,
            sample_height=sample_height,
            sample_frames=sample_frames,
            patch_size=patch_size,
            patch_size_t=patch_size_t,
            temporal_compression_ratio=temporal_compression_ratio,
            max_text_seq_length=max_text_seq_length,
            activation_fn=activation_fn,
            timestep_activation_fn=timestep_activation_fn,
            norm_elementwise_affine=norm_elementwise_affine,
            norm_eps=norm_eps,
            spatial_interpolation_scale=spatial_interpolation_scale,
            temporal_interpolation_scale=temporal_interpolation_scale,
            use_rotary_positional_embeddings=use_rotary_positional_embeddings,
            use_learned_positional_embeddings=use_learned_positional_embeddings,
            patch_bias=patch_bias,
        )
        self.norm_out.norm.eps = _FINAL_NORM_EPS
        if task_signal == "embedding":
            width = num_attention_heads * attention_head_dim
            self.time_embedding = TimeAndTaskEmbedding(
                width, time_embed_dim, timestep_activation_fn
            )

    def rotary_positions(self, hidden_states: Tensor) -> tuple[Tensor, Tensor] | None:
        """Cosines and sines (n, head) of every video token of latents (b, t, c, h, w).

        Whole-numbered positions, as the network was trained, whatever the size: diffusers' own
        pipeline centres other sizes than the native one on its grid. None with sin-cos positions.
        """
        if not self.config["use_rotary_positional_embeddings"]:
            return None
        frames, _, height, width = hidden_states.shape[1:]
        patch, patch_t = self.config["patch_size"], self.config["patch_size_t"] or 1
        double = hidden_states.dtype == torch.float64
        table = rotary_table(
            TokenGrid(
                text=0, frames=frames // patch_t, rows=height // patch, columns=width // patch
            ),
            head_dim=self.config["attention_head_dim"],
            device=hidden_states.device,
            dtype=torch.complex128 if double else torch.complex64,
        )
        return table.real.repeat_interleave(2, dim=1), table.imag.repeat_interleave(2, dim=1)

    def forward(  # noqa: PLR0913 - the arguments of the class that it extends
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        timestep: Any,
        timestep_cond: Tensor | None = None,
        ofs: Any = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
        task: Tensor | None = None,
    ) -> tuple[Tensor] | Transformer2DModelOutput:
        """Predict v.

        Args:
            hidden_states: Noised latents (b, t, c, h, w), the video's channels first.
            encoder_hidden_states: Text embeddings (b, n, d).
            timestep: (b,), 0 .. 999.
            timestep_cond: Leave it out; diffusers' class takes conditions here that ours has not.
            ofs: Leave it out; it belongs to image-to-video.
            image_rotary_emb: Of `rotary_positions`, which is asked if it is left out.
            attention_kwargs: For the attention processors; `scale` is the weight of LoRA.
            return_dict: False returns a tuple.
            task: (b,) int64, 0 segmentation, 1 depth; needed with task_signal=embedding, and
                ignored without.

        Returns:
            v, like `hidden_states`, in an output object or in a tuple.

        Raises:
            ValueError: A task is missing, or `timestep_cond` is given.
        """
        if timestep_cond is not None:
            raise ValueError("timestep_cond: this network has no such condition; pass task=ids")
        if image_rotary_emb is None:
            image_rotary_emb = self.rotary_positions(hidden_states)
        has_table = self.config["task_signal"] == "embedding"
        return super().forward(
            hidden_states,
            encoder_hidden_states,
            timestep,
            timestep_cond=task if has_table else None,
            ofs=ofs,
            image_rotary_emb=image_rotary_emb,
            attention_kwargs=attention_kwargs,
            return_dict=return_dict,
        )
