"""What the GPUs of a run tell each other in a step, as the collectives that are asked for.

Those of ZeRO were read in the source of deepspeed 0.19.8 (`runtime/zero/stage_1_and_2.py`,
`stage3.py`, `partitioned_param_coordinator.py`) and are counted on live engines in
`tests/plan/test_live_traffic.py`. Left out are flags and norms of a few bytes, and what pads shards
to equal length. How the bytes then travel is the matter of `network.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sat_udpdiff.config import Config, ModelConfig
from sat_udpdiff.plan.sizes import BYTES, Parameters, Sizes, recomputed_layers
from sat_udpdiff.plan.zero import MOST_GATHERED

Kind = Literal["all-reduce", "all-gather", "reduce-scatter", "all-to-all"]
Among = Literal["zero", "tensor", "sequence"]
"""The ranks that share ZeRO's shards, a layer's weights, or a sample's tokens."""
Beside = Literal["forward", "backward", "nothing"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Exchange:
    """A collective of which a step has one or several."""

    what: str
    kind: Kind
    among: Among
    size: float
    """Bytes of the whole tensor: what each rank gives to an all-reduce, a reduce-scatter or an
    all-to-all, what each gets of an all-gather."""
    times: int
    """In a step."""
    beside: Beside
    """The computation that goes on meanwhile; `nothing` where all wait for it."""

    @property
    def total(self) -> float:
        """Bytes in a step."""
        return self.size * self.times


def zero_exchanges(
    config: Config, *, parameters: Parameters, sequence: int = 1, kept: int = MOST_GATHERED
) -> list[Exchange]:
    """Gradients and weights that ZeRO sends, overlapped as on a GPU.

    Stages 1 and 2 do not scatter gradients: deepspeed all-reduces each bucket whole and every rank
    copies its share out of it, twice the bytes of a reduce-scatter on the wire
    (`allreduce_and_scatter`; `use_multi_rank_bucket_allreduce` is on by default). Stage 1 sends
    gradients once per step, stages 2 and 3 for every micro-batch; in the training precision also
    where they are summed in fp32, and in fp32 where sequences are split.

    Args:
        config: Precision, ZeRO stage, accumulation.
        parameters: Of one rank: with tensor parallelism, its share of what is split.
        sequence: Ranks that share a sample's tokens.
        kept: Numbers that stage 3 keeps from the forward to the backward pass of a micro-batch.
    """
    train, width = config.train, BYTES[config.train.precision]
    sent = 4 if sequence > 1 else width
    micro_batches = train.accumulation_steps
    if train.zero_stage == 3:
        return _stage_3(config, parameters, sent=sent, kept=kept)
    return [
        Exchange(
            what=f"gradients, {_name(sent, config)}",
            kind="all-reduce",
            among="zero",
            size=float(sent * parameters.trained),
            times=1 if train.zero_stage == 1 else micro_batches,
            beside="backward",
        ),
        Exchange(
            what=f"weights, {train.precision}",
            kind="all-gather",
            among="zero",
            size=float(width * parameters.trained),
            times=1,
            beside="nothing",
        ),
    ]


def _stage_3(config: Config, parameters: Parameters, *, sent: int, kept: int) -> list[Exchange]:
    """Weights for the forward pass, and again for the backward pass what was let go in between.

    The prefetcher runs ahead until as many numbers are gathered as may be. At the end of the
    forward pass these are the last layers, and it finds that the backward pass begins with them.
    """
    train, width = config.train, BYTES[config.train.precision]
    moved = parameters.total - parameters.small
    again = float(max(0, moved - kept))

    def of(what: str, *, kind: Kind, size: float, beside: Beside) -> Exchange:
        times = 1 if beside == "nothing" else train.accumulation_steps
        return Exchange(what=what, kind=kind, among="zero", size=size, times=times, beside=beside)

    weights, gradients = f"weights, {train.precision}", f"gradients, {_name(sent, config)}"
    reduced, small = float(sent * parameters.trained), float(width * parameters.small)
    found = [
        of(weights, kind="all-gather", size=float(width * moved), beside="forward"),
        of(f"{weights}, again", kind="all-gather", size=width * again, beside="backward"),
        of(gradients, kind="reduce-scatter", size=reduced, beside="backward"),
        of(f"small {weights}", kind="all-gather", size=small, beside="nothing"),
    ]
    return [exchange for exchange in found if exchange.size]


def _name(width: int, config: Config) -> str:
    return config.train.precision if width == BYTES[config.train.precision] else "fp32"


def tensor_exchanges(
    config: Config, *, sizes: Sizes, tensor: int, sequence: int = 1
) -> list[Exchange]:
    """All-reduces of layers whose weights are split among `tensor` ranks.

    Two per layer in the forward pass, after the output of attention and after the MLP; two in the
    backward pass, of the gradients of what both take; and the forward's again where a layer is
    recomputed (Megatron-LM, arXiv:1909.08053, section 3). All wait for each of them.
    """
    if tensor == 1:
        return []
    unit = _token_bytes(config, sizes=sizes) / sequence
    exchange = Exchange(
        what="tokens of layers",
        kind="all-reduce",
        among="tensor",
        size=unit,
        times=2 * _passes_of_layers(config),
        beside="nothing",
    )
    return [exchange]


def sequence_exchanges(
    config: Config, *, sizes: Sizes, sequence: int, tensor: int = 1
) -> list[Exchange]:
    """All-to-alls of layers that split a sample's tokens among `sequence` ranks.

    Queries, keys and values go from all heads of some tokens to some heads of all tokens, and
    attention's output comes back: four per layer and pass (Ulysses, arXiv:2309.14509).
    """
    if sequence == 1:
        return []
    unit = _token_bytes(config, sizes=sizes) / (sequence * tensor)
    exchange = Exchange(
        what="heads of layers",
        kind="all-to-all",
        among="sequence",
        size=unit,
        times=4 * _passes_of_layers(config),
        beside="nothing",
    )
    return [exchange]


def _token_bytes(config: Config, *, sizes: Sizes) -> float:
    """Of the tokens (b, n, hidden_size) of a micro-batch."""
    count = config.train.micro_batch_size * sizes.tokens * config.model.hidden_size
    return float(count * BYTES[config.train.precision])


def _passes_of_layers(config: Config) -> int:
    """Passes through a single layer in a step: forward, backward, and recomputed."""
    layers = 2 * config.model.num_layers + recomputed_layers(config.model)
    return layers * config.train.accumulation_steps


def share_of_rank(parameters: Parameters, *, model: ModelConfig, tensor: int) -> Parameters:
    """Weights that one of `tensor` ranks holds: attention and MLP are split, the rest is not.

    Of the linears that give more numbers than they take (queries, keys and values; the MLP's
    first) weights and biases are split; of those back to the tokens, the weights.
    """
    d = model.hidden_size
    split = model.num_layers * (12 * d**2 + 7 * d)
    kept = split // tensor
    trained = parameters.trained
    return Parameters(
        total=parameters.total - split + kept,
        # Adapters are few, and not split.
        trained=trained - split + kept if trained == parameters.total else trained,
        small=parameters.small,
    )
