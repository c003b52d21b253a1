"""Weights into a network that may have adapters: a base, and what LoRA training made of it.

A checkpoint of a LoRA run holds adapters and the few weights that were trained whole. The rest is
read from `init.weights` each time, and must be what the run began with: each file of a checkpoint
carries a fingerprint of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sat_udpdiff.config import Config, ModelConfig
from sat_udpdiff.model.low_rank import add_adapters, is_adapter, is_trained
from sat_udpdiff.model.transformer import UDPDiffTransformer
from sat_udpdiff.weights import load
from sat_udpdiff.weights.find import find_weights, is_on_hub
from sat_udpdiff.weights.fingerprint import fingerprint_of
from sat_udpdiff.weights.lora_map import read_lora
from sat_udpdiff.weights.names import differences
from sat_udpdiff.weights.run_folder import BASE_FINGERPRINT
from sat_udpdiff.weights.sources import read_safetensors
from sat_udpdiff.weights.stored import State, read_all, store_all


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedWeights:
    """What `load_weights` did."""

    source: str
    """Where the weights came from, for a message."""
    base_sha256: str = ""
    """Fingerprint of the frozen weights; empty where all are trained."""


def load_weights(
    network: UDPDiffTransformer,
    config: Config,
    *,
    weights: str | None = None,
    ema: bool = False,
    expand: bool = True,
) -> LoadedWeights:
    """Set every weight of `network`, and with `lora.rank` attach adapters and set them too.

    Args:
        network: Of `config.model`, on its device, without adapters.
        config: Of the run.
        weights: As for `load_network_weights`, or a LoRA run, one of its checkpoints or files; then
            `init.weights` is its base. Weights that are no LoRA run's get adapters as they start.
        ema: Take the averaged weights of a checkpoint.
        expand: As for `load_network_weights`.

    Raises:
        ValueError: As `load_network_weights`; or adapters without `lora.rank`, of another rank or
            on other targets, or a base that is missing or not the one that they were trained on.
    """
    place = weights if weights is not None else config.init.weights
    file = None if place is None or is_on_hub(place) else find_weights(place, ema=ema)
    if file is None or not holds_adapters(file):
        source = load.load_network_weights(network, config, weights=weights, ema=ema, expand=expand)
        if not config.lora.rank:
            return LoadedWeights(source=source)
        add_adapters(network, config.lora, seed=config.seed)
        source += _load_first_adapters(network, config)
        own = network.state_dict()
        fingerprint = base_fingerprint(own, own.__getitem__, model=config.model)
        return LoadedWeights(source=source, base_sha256=fingerprint)
    if weights is None:
        _refuse_adapters_as_base(file)
    if not config.lora.rank:
        raise ValueError(f"{file}: holds adapters; set lora.rank and lora.targets as its run did")
    return _load_checkpoint(network, config, file=file)


def check_start(config: Config) -> None:
    """Refuse weights that a run could not start from; of large files, reads names and shapes only.

    Raises:
        ValueError: As `load_weights`.
    """
    place = config.init.weights
    if place is not None and not is_on_hub(place):
        _refuse_adapters_as_base(find_weights(place, ema=False))
    load.check_start(config)
    if config.lora.weights is not None:
        read_lora(config.lora.weights, lora=config.lora, num_layers=config.model.num_layers)


def _refuse_adapters_as_base(file: Path) -> None:
    if holds_adapters(file):
        raise ValueError(
            f"init.weights: expected whole weights, got adapters: {file}; convert the LoRA run, "
            "which merges its adapters, or go on with it"
        )


def holds_adapters(file: Path) -> bool:
    """Whether a file of weights is one of a LoRA checkpoint."""
    if file.suffix != ".safetensors" or not file.is_file():
        return False
    try:
        with safe_open(file, framework="pt") as content:
            return any(is_adapter(name) for name in content.keys())
    except (SafetensorError, OSError):  # loading it will say what is wrong
        return False


def _load_first_adapters(network: UDPDiffTransformer, config: Config) -> str:
    if config.lora.weights is None:
        return ""
    file, adapters = read_lora(
        config.lora.weights, lora=config.lora, num_layers=config.model.num_layers
    )
    _overlay(network, store_all(adapters), is_wanted=is_adapter, file=file)
    return f", adapters {file}"


def _load_checkpoint(network: UDPDiffTransformer, config: Config, *, file: Path) -> LoadedWeights:
    try:
        base = load.load_network_weights(network, config)
    except ValueError as error:
        raise ValueError(f"{file}: needs the base weights of its run: {error}") from None
    add_adapters(network, config.lora, seed=config.seed)
    own = network.state_dict()
    found = base_fingerprint(own, own.__getitem__, model=config.model)
    check_base(file, config=config, found=found)
    is_wanted = partial(is_trained, config=config.model)
    _overlay(network, read_safetensors(file), is_wanted=is_wanted, file=file)
    return LoadedWeights(source=f"{base}, adapters {file}", base_sha256=found)


def _overlay(
    network: UDPDiffTransformer, state: State, *, is_wanted: Callable[[str], bool], file: Path
) -> None:
    check_adapters(network, state, is_wanted=is_wanted, file=file)
    network.load_state_dict(read_all(state), strict=False)


def check_adapters(
    network: UDPDiffTransformer, state: State, *, is_wanted: Callable[[str], bool], file: Path
) -> None:
    """Refuse a state of `file` that is not those weights of the adapted network that are wanted.

    Raises:
        ValueError: Names every missing, unexpected and mis-shaped key.
    """
    own = network.state_dict()
    expected = {name: tuple(value.shape) for name, value in own.items() if is_wanted(name)}
    found = {name: stored.shape for name, stored in state.items()}
    if problems := differences(found, expected=expected):
        raise ValueError(
            f"{file}: not the adapters of this lora.rank, lora.targets and model: "
            f"{'; '.join(problems)}"
        )


def base_fingerprint(
    names: Iterable[str], read: Callable[[str], Tensor], *, model: ModelConfig
) -> str:
    """Of the frozen ones among all weights of a network, as bf16.

    So sampling in fp32 or bf16 may follow training in the other; fp16 rounds small numbers further
    and counts as another base.

    Args:
        names: Of the weights, adapters or not.
        read: The weight of a name; asked once for each frozen one.
        model: Says which are frozen.
    """
    frozen = sorted(name for name in names if not is_trained(name, model))
    return fingerprint_of(((name, read(name)) for name in frozen), dtype=torch.bfloat16)


def check_base(file: Path, *, config: Config, found: str) -> None:
    """Refuse a base that is not the one on which the adapters of `file` were trained.

    Raises:
        ValueError: Names both fingerprints and the setting.
    """
    with safe_open(file, framework="pt") as content:
        expected = (content.metadata() or {}).get(BASE_FINGERPRINT, found)
    if found != expected:
        raise ValueError(
            f"{file}: trained on other base weights than init.weights={config.init.weights}: "
            f"expected SHA-256 {expected[:16]}..., got {found[:16]}...; set init.weights to the "
            "weights that the run began with, and train.precision as it was if that is fp16"
        )
