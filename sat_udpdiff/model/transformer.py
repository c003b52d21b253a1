"""The network: CogVideoX's diffusion transformer on SAT's BaseModel, with the paper's mixins."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own custom)
from jaxtyping import Float, Int64, Num
from torch import Tensor, nn

from sat_udpdiff.config import ModelConfig
from sat_udpdiff.model.dense_channels import DenseChannels, total_channels
from sat_udpdiff.model.mixins import (
    AdaLNLayers,
    FinalLayer,
    PatchEmbed,
    RotaryPositions,
    SinCosPositions,
)
from sat_udpdiff.model.patches import (
    OutputProjection,
    PatchProjection,
    SpaceTimeProjection,
    join_patches,
    token_grid,
)
from sat_udpdiff.model.positions import timestep_waves
from sat_udpdiff.model.task_embedding import TaskEmbedding
from sat_udpdiff.sat_compat import (
    BaseModel,
    BaseTransformer,
    ColumnParallelLinear,
    RowParallelLinear,
    ensure_model_parallel,
)

SEQUENCE_MIXIN = "sequence"
"""Name of the mixin that shares the tokens out over processes, where there is one."""

_BLOCK_NORM_EPS = 1e-5
_INIT_STD = 0.02


class UDPDiffTransformer(BaseModel):
    """Predicts v for the joint latent of a video and its dense map.

    With `dense_groups=0` and `task_signal="none"` it is the 16-channel CogVideoX. Use
    `build_network`: the parameters made here lie on the meta device.
    """

    def __init__(self, config: ModelConfig) -> None:
        check_numbers(config)
        ensure_model_parallel()
        super().__init__(None, transformer=_sat_transformer(config))
        self.config = config
        self.time_embed = nn.Sequential(
            nn.Linear(config.hidden_size, config.time_embed_dim),
            nn.SiLU(),
            nn.Linear(config.time_embed_dim, config.time_embed_dim),
        )
        positions = RotaryPositions if config.positions == "rotary" else SinCosPositions
        # Positions come before the layers: their attention is wrapped by the q/k norm.
        self.add_mixin("pos_embed", positions(config))
        self.add_mixin("patch_embed", PatchEmbed(config))
        self.add_mixin("adaln_layer", AdaLNLayers(config))
        self.add_mixin("final_layer", FinalLayer(config))
        if config.dense_groups:
            self.add_mixin("dense_channels", DenseChannels(config), reinit=True)
        if config.task_signal == "embedding":
            self.add_mixin("task_embedding", TaskEmbedding(config))

    def forward(
        self,
        latents: Float[Tensor, "b t c h w"],
        *,
        timesteps: Num[Tensor, " b"],
        text: Float[Tensor, "b n d"],
        task: Int64[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b t c h w"]:
        """Predict v.

        Args:
            latents: Noised latents, video channels first, then dense channels; t, h and w multiples
                of the patch. Inputs are cast to the dtype of the weights.
            timesteps: 0 .. 999.
            text: Text embeddings; padding is attended to, as CogVideoX was trained.
            task: 0 segmentation, 1 depth; read only with `task_signal="embedding"`.

        Returns:
            v in the dtype of the weights.

        Raises:
            ValueError: A shape does not fit, or the task is missing.
        """
        check_inputs(latents, config=self.config, timesteps=timesteps, text=text, task=task)
        dtype = next(self.time_embed.parameters()).dtype
        latents, text = latents.to(dtype), text.to(dtype)
        grid = token_grid(
            self.config,
            text=text.shape[1],
            latent_frames=latents.shape[1],
            latent_height=latents.shape[3],
            latent_width=latents.shape[4],
        )
        if SEQUENCE_MIXIN in self.mixins:
            sequence: Any = self.get_mixin(SEQUENCE_MIXIN)
            grid = sequence.share(grid)
        emb = self.time_embed(timestep_waves(timesteps, size=self.config.hidden_size).to(dtype))
        if self.config.task_signal == "embedding":
            table: Any = self.get_mixin("task_embedding")
            emb = table.add_task(emb, task=task)
        # SAT wants token ids, positions and a mask; the mixins read none of them.
        unused = latents.new_ones(1, 1)
        features = super().forward(
            unused, unused, unused, latents=latents, text=text, emb=emb, grid=grid
        )[0]
        return join_patches(features, grid=grid, config=self.config)


def build_network(
    config: ModelConfig, *, dtype: torch.dtype, device: torch.device | str
) -> UDPDiffTransformer:
    """Build the network; its weights are NaN until they are loaded or `initialise` sets them.

    On the meta device nothing is allocated, and the 5B network is built in seconds.

    Raises:
        ValueError: The numbers of `config` do not fit together.
    """
    with torch.device("meta"):
        network = UDPDiffTransformer(config)
    network.to(dtype)
    if torch.device(device).type == "meta":
        return network
    network.to_empty(device=device)
    with torch.no_grad():
        for parameter in network.parameters():
            # A weight that nobody set must show itself at the first forward pass.
            parameter.fill_(torch.nan)
    return network


@torch.no_grad()
def initialise(network: UDPDiffTransformer, seed: int) -> None:
    """Set every weight; equal seeds give equal weights on every device.

    SAT's linears: normal, std 0.02, divided by sqrt(2 * layers) where they write to the residual
    stream. Patch projection and last linear: xavier-uniform. Norms 1 and 0, task table 0. The rest
    (time, text and modulation linears): torch's default. Modulations do not start at zero: the
    released code has such a rule and never calls it.
    """
    generator = torch.Generator().manual_seed(seed)
    output_std = _INIT_STD / math.sqrt(2 * network.config.num_layers)
    for module in network.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.zeros_(module.weight)
        elif isinstance(module, ColumnParallelLinear | RowParallelLinear):
            std = _INIT_STD if isinstance(module, ColumnParallelLinear) else output_std
            module.weight.copy_(torch.randn(module.weight.shape, generator=generator) * std)
            nn.init.zeros_(module.bias)
        elif isinstance(module, PatchProjection | SpaceTimeProjection | OutputProjection):
            rows, columns = module.weight.flatten(1).shape
            _set_uniform(module.weight, math.sqrt(6 / (rows + columns)), generator=generator)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            for parameter in (module.weight, module.bias):
                _set_uniform(parameter, 1 / math.sqrt(module.in_features), generator=generator)


def _set_uniform(parameter: Tensor, bound: float, *, generator: torch.Generator) -> None:
    parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))


def check_numbers(config: ModelConfig) -> None:
    """Raise ValueError where the numbers of a network do not fit together."""
    head = config.hidden_size / config.num_heads
    if config.positions == "rotary" and head % 16:
        raise ValueError(
            "model.hidden_size / model.num_heads: expected a multiple of 16 for rotary positions, "
            f"got {config.hidden_size} / {config.num_heads} = {head:g}"
        )
    if config.hidden_size % config.num_heads:
        raise ValueError(
            "model.hidden_size: expected a multiple of model.num_heads="
            f"{config.num_heads}, got {config.hidden_size}"
        )
    if config.positions == "sincos" and config.hidden_size % 16:
        raise ValueError(
            "model.hidden_size: expected a multiple of 16 for sincos positions, "
            f"got {config.hidden_size}"
        )
    if config.patch_size_t not in (1, 2):
        raise ValueError(f"model.patch_size_t: expected 1 or 2, got {config.patch_size_t}")


def check_inputs(
    latents: Tensor,
    *,
    config: ModelConfig,
    timesteps: Tensor,
    text: Tensor,
    task: Tensor | None,
) -> None:
    """Raise ValueError, naming expected and got, where an input does not fit the network."""
    batch = latents.shape[0]
    channels, patch = total_channels(config), config.patch_size
    if latents.ndim != 5 or latents.shape[2] != channels:
        raise ValueError(f"latents: expected (b, t, {channels}, h, w), got {tuple(latents.shape)}")
    if latents.shape[3] % patch or latents.shape[4] % patch:
        raise ValueError(
            f"latents: expected height and width divisible by {patch}, "
            f"got {latents.shape[3]}x{latents.shape[4]}"
        )
    if latents.shape[1] % config.patch_size_t:
        raise ValueError(
            f"latents: expected a number of frames divisible by {config.patch_size_t} (copies of "
            f"the first in front make it so), got {latents.shape[1]}"
        )
    if text.ndim != 3 or text.shape[0] != batch or text.shape[2] != config.text_dim:
        raise ValueError(f"text: expected ({batch}, n, {config.text_dim}), got {tuple(text.shape)}")
    if timesteps.shape != (batch,):
        raise ValueError(f"timesteps: expected ({batch},), got {tuple(timesteps.shape)}")
    if config.task_signal == "embedding" and (task is None or task.shape != (batch,)):
        got = None if task is None else tuple(task.shape)
        raise ValueError(
            f"task: expected ids of shape ({batch},) (model.task_signal=embedding), got {got}"
        )


def _sat_transformer(config: ModelConfig) -> BaseTransformer:
    """SAT's layers without its word and position tables, which the mixins replace."""
    norm: Any = nn.LayerNorm  # SAT's own ignores eps in half precision on the CPU
    transformer = BaseTransformer(
        num_layers=config.num_layers,
        vocab_size=1,
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_heads,
        max_sequence_length=1,
        layernorm_epsilon=_BLOCK_NORM_EPS,
        layernorm=norm,
        activation_func=partial(F.gelu, approximate="tanh"),
        row_parallel_linear_final_bias=False,  # the bias goes into the matrix product
        skip_init=True,
        device=torch.device("meta"),
    )
    del transformer.word_embeddings, transformer.position_embeddings
    return transformer
