"""Weights into a network, from wherever they are; `find.py` says what can be named."""

from __future__ import annotations

import torch

from sat_udpdiff.config import Config
from sat_udpdiff.model.dense_channels import (
    INPUT_KEY,
    OUTPUT_BIAS_KEY,
    OUTPUT_KEY,
    expand_state_dict,
    total_channels,
)
from sat_udpdiff.model.task_embedding import TASK_TABLE_KEY
from sat_udpdiff.model.transformer import UDPDiffTransformer, build_network, initialise
from sat_udpdiff.weights.find import find_weights
from sat_udpdiff.weights.key_map import is_ignored
from sat_udpdiff.weights.names import differences
from sat_udpdiff.weights.recognise import check_family
from sat_udpdiff.weights.sources import StoredNetwork, open_network
from sat_udpdiff.weights.stored import State, read_all, store_all

# What `expand_state_dict` looks at, a few megabytes.
_ENDS = (INPUT_KEY, OUTPUT_KEY, OUTPUT_BIAS_KEY, TASK_TABLE_KEY)


def load_network_weights(
    network: UDPDiffTransformer,
    config: Config,
    *,
    weights: str | None = None,
    ema: bool = False,
    expand: bool = True,
) -> str:
    """Set every weight of `network`; a 16-channel checkpoint may be expanded on the way.

    Tensors are read one at a time, straight into the network.

    Args:
        network: Of `config.model`, on its device.
        config: `init` says how weights are expanded, `seed` what is drawn.
        weights: Where the weights are; None takes `init.weights`, and if that is null they are
            drawn from the seed.
        ema: Take the averaged weights of a checkpoint.
        expand: Make missing dense channels and the task table, to train them; False refuses a
            checkpoint without them, as sampling must.

    Returns:
        Where the weights came from, for a message.

    Raises:
        ValueError: No such place, a damaged file, or weights of another network; names the file,
            and the keys with expected and found shapes. The network is as it was.
    """
    place = weights if weights is not None else config.init.weights
    if place is None:
        initialise(network, config.seed)
        return f"drawn from seed {config.seed}"
    stored, state = _open(network, config, weights=place, ema=ema, expand=expand)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(state[name].read())
    before, after = stored.facts.out_channels, total_channels(config.model)
    grown = f", expanded from {before} to {after} channels" if before != after else ""
    return f"{stored.source}{grown}"


def check_start(config: Config) -> None:
    """Refuse an `init.weights` that a run could not start from; reads names and shapes only.

    Raises:
        ValueError: As `load_network_weights`.
    """
    if config.init.weights is not None:
        network = build_network(config.model, dtype=torch.float32, device="meta")
        _open(network, config, weights=config.init.weights, ema=False, expand=True)


def _open(
    network: UDPDiffTransformer, config: Config, *, weights: str, ema: bool, expand: bool
) -> tuple[StoredNetwork, State]:
    """The checkpoint, and its weights as the network names and shapes them."""
    stored = open_network(find_weights(weights, ema=ema))
    state = fit(stored, config=config, expand=expand)
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    check_shapes(stored, state=state, expected=expected)
    return stored, state


def fit(stored: StoredNetwork, *, config: Config, expand: bool) -> State:
    """The weights as the network of `config` names and shapes them.

    Args:
        stored: A network on the disk.
        config: What it shall become; `init` says how.
        expand: Make missing dense channels and the task table.

    Raises:
        ValueError: It is another network, or has another number of channels.
    """
    try:
        check_family(stored.facts, model=config.model)
        state = {key: value for key, value in stored.state.items() if not is_ignored(key)}
        if not expand:
            _check_channels(stored, config=config)
            return state
        expanded = expand_state_dict(
            read_all({key: state[key] for key in _ENDS if key in state}),
            config=config.model,
            init=config.init,
            generator=torch.Generator().manual_seed(config.seed),
        )
    except ValueError as error:
        raise ValueError(f"{stored.source}: {error}") from None
    return {**state, **store_all(expanded)}


def _check_channels(stored: StoredNetwork, *, config: Config) -> None:
    """Say what to do about weights without a dense map where one is expected."""
    found, expected = stored.facts.out_channels, total_channels(config.model)
    if found == config.model.latent_channels < expected:
        raise ValueError(
            f"these weights have {found} channels and make no dense map, expected {expected}: "
            "expand them (convert.py --expand duplicate, or training from them), or set "
            "model.dense_groups=0 and model.task_signal=none"
        )


def check_shapes(
    stored: StoredNetwork, *, state: State, expected: dict[str, tuple[int, ...]]
) -> None:
    """Compare names and shapes with those of the network that is to be filled.

    Raises:
        ValueError: Names every missing, unexpected and mis-shaped key.
    """
    found = {name: value.shape for name, value in state.items()}
    if problems := differences(found, expected=expected):
        raise ValueError(f"{stored.source}: not the weights of this network: {'; '.join(problems)}")
