"""What the GPUs of a run tell each other in a step, as the collectives that are asked for.

Those of ZeRO were read in the source of deepspeed 0.19.8 (`runtime/zero/stage_1_and_2.py`,
`stage3.py`, `partitioned_param_coordinator.py`), those of shared samples are `parallel/`'s; all are
counted on live engines in `tests/plan/test_live_traffic.py`. Left out are flags and norms of a few
bytes, gradients of single heads' norms, and what pads shards to equal length. How the bytes then
travel is the matter of `network.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from sat_udpdiff.config import Config
from sat_udpdiff.plan.sizes import (
    BYTES,
    Parameters,
    Sizes,
    cut_parameters,
    recomputed_layers,
    share_of_rank,
)
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


def exchanges_of(config: Config, *, sizes: Sizes) -> list[Exchange]:
    """All that the ranks send each other in a step."""
    return [*zero_exchanges(config), *sample_exchanges(config, sizes=sizes)]


def sample_exchanges(config: Config, *, sizes: Sizes) -> list[Exchange]:
    """What ranks that work on the same samples send each other in a step."""
    return [*tensor_exchanges(config, sizes=sizes), *sequence_exchanges(config, sizes=sizes)]


def zero_exchanges(
    config: Config, *, parameters: Parameters | None = None, kept: int = MOST_GATHERED
) -> list[Exchange]:
    """Gradients and weights that ZeRO sends, overlapped as on a GPU.

    Stages 1 and 2 do not scatter gradients: deepspeed all-reduces each bucket whole and every rank
    copies its share out of it, twice the bytes of a reduce-scatter on the wire
    (`allreduce_and_scatter`; `use_multi_rank_bucket_allreduce` is on by default). Stage 1 sends
    gradients once per step, stages 2 and 3 for every micro-batch; in the training precision also
    where they are summed in fp32.

    Args:
        config: Precision, ZeRO stage, accumulation, ranks that share weights.
        parameters: Of one rank; None = by the configuration.
        kept: Numbers that stage 3 keeps from the forward to the backward pass of a micro-batch.
    """
    train, width = config.train, BYTES[config.train.precision]
    parameters = share_of_rank(config) if parameters is None else parameters
    micro_batches = train.accumulation_steps
    if train.zero_stage == 3:
        return _stage_3(config, parameters, kept=kept)
    return [
        Exchange(
            what=f"gradients, {train.precision}",
            kind="all-reduce",
            among="zero",
            size=float(width * parameters.trained),
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


def _stage_3(config: Config, parameters: Parameters, *, kept: int) -> list[Exchange]:
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

    weights, gradients = f"weights, {train.precision}", f"gradients, {train.precision}"
    reduced, small = float(width * parameters.trained), float(width * parameters.small)
    found = [
        of(weights, kind="all-gather", size=float(width * moved), beside="forward"),
        of(f"{weights}, again", kind="all-gather", size=width * again, beside="backward"),
        of(gradients, kind="reduce-scatter", size=reduced, beside="backward"),
        of(f"small {weights}", kind="all-gather", size=small, beside="nothing"),
    ]
    return [exchange for exchange in found if exchange.size]


def tensor_exchanges(config: Config, *, sizes: Sizes) -> list[Exchange]:
    """All-reduces of tokens where ranks share every layer's weights.

    Two per layer in the forward pass, after the output of attention and after the MLP; two in the
    backward pass, of the gradients of what both take; and the forward's again where a layer is
    recomputed (Megatron-LM, arXiv:1909.08053, section 3). SAT sums the gradient of what the last
    linear takes, too. All wait for each of them.
    """
    if config.parallel.tensor_size == 1:
        return []
    times = 2 * _passes_of_layers(config) + config.train.accumulation_steps
    unit = _token_bytes(config, sizes=sizes)
    return [_of_sample("tokens of layers", "all-reduce", among="tensor", size=unit, times=times)]


def sequence_exchanges(config: Config, *, sizes: Sizes) -> list[Exchange]:
    """What ranks send each other that share a sample's tokens.

    In each layer and pass queries, keys and values go from all heads of some tokens to some heads
    of all tokens, and attention's output goes back (Ulysses, arXiv:2309.14509); so do their
    gradients, and the forward's again where a layer is recomputed. At the end of a forward pass
    every rank is told the features of all video tokens.
    """
    if config.parallel.sequence_size == 1:
        return []
    unit = _token_bytes(config, sizes=sizes) / config.parallel.tensor_size
    passes, micro_batches = _passes_of_layers(config), config.train.accumulation_steps
    width = float(BYTES[config.train.precision])
    shared = partial(_of_sample, among="sequence")
    patch = config.model.patch_size**2 * config.model.patch_size_t
    outputs = config.train.micro_batch_size * sizes.video_tokens * sizes.latent[1] * patch
    return [
        shared("queries, keys, values", "all-to-all", size=3 * unit, times=passes),
        shared("outputs of attention", "all-to-all", size=unit, times=passes),
        shared("outputs of the network", "all-reduce", size=width * outputs, times=micro_batches),
    ]


def gathering_exchanges(config: Config) -> list[Exchange]:
    """What a save takes for one kind of tensor in fp32: the weights, or a moment of AdamW.

    Stages 1 and 2 sum a tensor that is zero but for each rank's share; then the shares of the ranks
    that hold one network together are put side by side.
    """
    kind: Kind = "all-gather" if config.train.zero_stage == 3 else "all-reduce"
    what, own = "a kind of tensor, fp32", 4.0 * share_of_rank(config).trained
    found = [Exchange(what=what, kind=kind, among="zero", size=own, times=1, beside="nothing")]
    if config.parallel.tensor_size > 1:
        cut = 4.0 * cut_parameters(config.model)
        found.append(_of_sample(what, "all-gather", among="tensor", size=cut, times=1))
    return found


def _of_sample(what: str, kind: Kind, *, among: Among, size: float, times: int) -> Exchange:
    """An exchange for which all ranks of a sample wait."""
    return Exchange(what=what, kind=kind, among=among, size=size, times=times, beside="nothing")


def _token_bytes(config: Config, *, sizes: Sizes) -> float:
    """Of the tokens (b, n, hidden_size) of a micro-batch that a rank works on."""
    tokens = sizes.tokens / config.parallel.sequence_size
    count = config.train.micro_batch_size * tokens * config.model.hidden_size
    return float(count * BYTES[config.train.precision])


def _passes_of_layers(config: Config) -> int:
    """Passes through a single layer in a step: forward, backward, and recomputed."""
    layers = 2 * config.model.num_layers + recomputed_layers(config.model)
    return layers * config.train.accumulation_steps
