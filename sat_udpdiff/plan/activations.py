"""Memory of the network's passes, in closed form.

The unit is one tensor of tokens, (b, n, hidden_size) in the training precision: 109 MB for 5B at
49x480x720. The numbers of units were counted on the real network; `tests/plan/test_activations.py`
counts them again, at the sizes of 2B and 5B on the meta device. Ranks that share a sample's tokens
hold a part of each unit; ranks that share weights, a part of those that attention and MLP make.
"""

from __future__ import annotations

from sat_udpdiff.config import ModelConfig, ParallelConfig
from sat_udpdiff.plan.sizes import BYTES, Sizes, recomputed_layers

# What one layer keeps for its backward pass: its input, the first norm's output, queries, keys and
# values as projected (3), queries and keys as attended (2), the output of attention and of its
# projection, the sum after it, the second norm's output, the MLP's inner tokens before and after
# gelu (4 each), and the MLP's output.
_UNITS_PER_LAYER = 20
# Of them those that are cut where ranks share weights: queries, keys, values and what attention
# makes of them (6), and the MLP's inner tokens.
_CUT_UNITS = 14
# fp32 numbers kept beside them: mean and deviation of two norms per token; per token and head
# those of the norms of queries and keys, and attention's log-sum-exp.
_STATISTICS_PER_TOKEN = 4
_STATISTICS_PER_HEAD = 5
# While a layer's backward is at its widest: the gradient of its output, and that of the MLP's
# inner tokens (4), which is cut. Attention's own backward comes when the MLP's share (11 units) is
# free again, so flash attention's fp32 workspace (2 units) does not count.
_GRADIENT_OF_OUTPUT, _GRADIENT_OF_INNER = 1, 4
# After the last layer: its output, two norms of it, the modulated tokens, and in their backward
# three gradients.
_UNITS_AT_HEAD = 7
# fp32 copies of the latents: clean, noise, noised, velocity and error.
_LATENT_COPIES = 5
# Without gradients a layer is widest in the MLP, or where queries and keys are rotated in fp32.
_UNITS_WITHOUT_GRADIENTS = {"rotary": 13, "sincos": 10.5}


def activation_bytes(
    model: ModelConfig,
    *,
    sizes: Sizes,
    precision: str,
    batch: int,
    parallel: ParallelConfig = ParallelConfig(),  # noqa: B008 - frozen
) -> float:
    """The most that forward and backward hold at once beyond weights and their gradients.

    Args:
        model: The network.
        sizes: Of its input.
        precision: Of training: fp32, bf16 or fp16.
        batch: Samples that go through it together.
        parallel: Processes that share their tokens, and the weights.
    """
    width, tensor = BYTES[precision], parallel.tensor_size
    tokens = batch * sizes.tokens / parallel.sequence_size
    unit = float(tokens * model.hidden_size * width)
    heads = model.num_heads / tensor
    statistics = 4 * tokens * (_STATISTICS_PER_TOKEN + _STATISTICS_PER_HEAD * heads)
    layer = (_UNITS_PER_LAYER - _CUT_UNITS + _CUT_UNITS / tensor) * unit + statistics
    recomputed = recomputed_layers(model)
    kept = (model.num_layers - recomputed) * layer + recomputed * unit
    # The largest gradient of a weight, the MLP's, is made while all of this is there.
    cut = (_GRADIENT_OF_INNER * unit + 4 * model.hidden_size**2 * width) / tensor
    in_layer = _GRADIENT_OF_OUTPUT * unit + cut
    if _is_last_recomputed(model):
        in_layer += layer - unit
    whole = _input_bytes(model, sizes, parallel.sequence_size * unit, batch)
    return kept + max(in_layer, _UNITS_AT_HEAD * unit) + whole


def sampling_bytes(model: ModelConfig, *, sizes: Sizes, precision: str) -> float:
    """The most that one guided sampling step holds beyond the weights."""
    unit = 2.0 * sizes.tokens * model.hidden_size * BYTES[precision]  # both branches at once
    units = _UNITS_WITHOUT_GRADIENTS[model.positions]
    return units * unit + _input_bytes(model, sizes, unit, 2)


def _is_last_recomputed(model: ModelConfig) -> bool:
    if model.activation_checkpointing == "selective":
        return model.num_layers % 2 == 1
    return model.activation_checkpointing == "full"


def _input_bytes(model: ModelConfig, sizes: Sizes, unit: float, batch: int) -> float:
    """Latents, text, and the table of positions."""
    frames, channels, height, width = sizes.latent
    latents = 4.0 * batch * frames * channels * height * width
    text = 4.0 * batch * sizes.text_tokens * model.text_dim
    # Rotary: complex64 for each pair of a head's channels. sincos: a token tensor of one sample.
    rotary = 8.0 * sizes.tokens * (model.hidden_size // model.num_heads // 2)
    table = rotary if model.positions == "rotary" else unit / batch
    return _LATENT_COPIES * latents + text + table
