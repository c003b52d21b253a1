"""Dense channels: the 16-channel CogVideoX reads and writes its video and dense maps at once.

Channels are concatenated, video first: 16 -> 16 * (1 + groups) in and out. Everything between the
patch projection and the last linear is untouched.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sat_udpdiff.config import InitConfig, ModelConfig
from sat_udpdiff.model.patches import output_projection, patch_projection
from sat_udpdiff.model.task_embedding import TASK_TABLE_KEY
from sat_udpdiff.sat_compat import BaseMixin, BaseModel

INPUT_KEY = "mixins.patch_embed.proj.weight"
OUTPUT_KEY = "mixins.final_layer.linear.weight"
OUTPUT_BIAS_KEY = "mixins.final_layer.linear.bias"


class DenseChannels(BaseMixin):
    """Widens the patch projection and the last linear of the network that it is added to.

    It has no parameters of its own, so the names stay those of CogVideoX. The new weights are
    unset; `expand_state_dict` makes them from a base checkpoint.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    def reinit(self, parent_model: BaseModel | None = None) -> None:
        """SAT calls this when the mixin is added with `reinit=True`."""
        assert parent_model is not None
        groups = 1 + self.config.dense_groups
        patch_embed = parent_model.get_mixin("patch_embed")
        final_layer = parent_model.get_mixin("final_layer")
        patch_embed.proj = patch_projection(self.config, groups=groups)
        final_layer.linear = output_projection(self.config, groups=groups)


def total_channels(config: ModelConfig) -> int:
    """Channels of the network's input and output: the video's and those of every dense group."""
    return config.latent_channels * (1 + config.dense_groups)


def expand_state_dict(
    state: Mapping[str, Tensor],
    *,
    config: ModelConfig,
    init: InitConfig,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Turn the weights of a 16-channel CogVideoX into those of the network of `config`.

    `duplicate` repeats the original weights for every group, the paper's choice: with z_c = 0
    both halves predict what CogVideoX predicts. The input sum then grows; `init.dense_scale`
    is put on all its weights. `random` keeps the original channels and draws the new ones as a
    network from scratch does (xavier-uniform, biases zero). A zero task table is added where the
    network has one.

    Weights that are already expanded come back as they are, so this may be applied to any
    checkpoint.

    Args:
        state: SAT names without the `model.diffusion_model.` prefix; not changed.
        config: The network to be loaded.
        init: `dense_channels` and `dense_scale` are read.
        generator: For `random`; on the CPU.

    Raises:
        ValueError: A key is missing or has neither the base nor the expanded number of channels
            (named with expected and got), or `random` came without a generator.
    """
    expanded = dict(state)
    if _is_expanded(state, config=config):
        return expanded
    groups = config.dense_groups
    if init.dense_channels == "duplicate":
        expanded[INPUT_KEY] = torch.cat([state[INPUT_KEY]] * (1 + groups), dim=1) * init.dense_scale
        for key in (OUTPUT_KEY, OUTPUT_BIAS_KEY):
            expanded[key] = torch.cat([state[key]] * (1 + groups))
    else:
        if generator is None:
            raise ValueError("init.dense_channels=random: expected a generator, got None")
        expanded[INPUT_KEY] = _append_random(state[INPUT_KEY], groups, dim=1, generator=generator)
        expanded[OUTPUT_KEY] = _append_random(state[OUTPUT_KEY], groups, dim=0, generator=generator)
        bias = state[OUTPUT_BIAS_KEY]
        expanded[OUTPUT_BIAS_KEY] = torch.cat([bias, bias.new_zeros(groups * len(bias))])
    if config.task_signal == "embedding" and TASK_TABLE_KEY not in expanded:
        expanded[TASK_TABLE_KEY] = state[OUTPUT_KEY].new_zeros(2, config.time_embed_dim)
    return expanded


def _is_expanded(state: Mapping[str, Tensor], *, config: ModelConfig) -> bool:
    """Whether input and output already have the channels of `config`; False if they need more."""
    values = config.patch_size_t * config.patch_size**2  # of a token, per channel
    is_matrix = config.patch_size_t > 1
    sizes = {
        INPUT_KEY: (1, values if is_matrix else 1),
        OUTPUT_KEY: (0, values),
        OUTPUT_BIAS_KEY: (0, values),
    }
    base, full = config.latent_channels, total_channels(config)
    found = {}
    for key, (dim, factor) in sizes.items():
        if key not in state:
            raise ValueError(f"{key}: expected {base} or {full} channels, got no such key")
        if key == INPUT_KEY and state[key].ndim != (2 if is_matrix else 4):
            raise ValueError(
                f"{key}: expected {'a matrix' if is_matrix else 'a 2-D convolution'} "
                f"(model.patch_size_t={config.patch_size_t}), got {tuple(state[key].shape)}"
            )
        got = state[key].shape[dim]
        if got not in (base * factor, full * factor):
            raise ValueError(
                f"{key}: expected {base} channels to expand or {full} channels already expanded "
                f"(size {base * factor} or {full * factor} on dim {dim}), got size {got}"
            )
        found[key] = got // factor
    if len(set(found.values())) > 1:
        raise ValueError(f"expected equal channels in and out, got {found}")
    return found[INPUT_KEY] == full


def _append_random(weight: Tensor, groups: int, *, dim: int, generator: torch.Generator) -> Tensor:
    """Append `groups` blocks of xavier-uniform weights, with the bound of the whole new layer."""
    fresh = [size * groups if axis == dim else size for axis, size in enumerate(weight.shape)]
    rows = weight.shape[0] * (1 + groups if dim == 0 else 1)
    columns = weight[0].numel() * (1 + groups if dim == 1 else 1)
    bound = (6.0 / (rows + columns)) ** 0.5
    drawn = torch.empty(fresh).uniform_(-bound, bound, generator=generator)
    return torch.cat([weight, drawn.to(weight)], dim=dim)
