"""A LoRA checkpoint as the whole network that it stands for, one tensor in memory at a time."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from sat_udpdiff.config import Config
from sat_udpdiff.encoders.source import DTYPES
from sat_udpdiff.model.low_rank import adapters_of, add_adapters, is_trained, merged_weight
from sat_udpdiff.model.transformer import build_network, initialise
from sat_udpdiff.weights.adapted import base_fingerprint, check_adapters, check_base
from sat_udpdiff.weights.find import find_weights
from sat_udpdiff.weights.load import fit
from sat_udpdiff.weights.recognise import recognise
from sat_udpdiff.weights.sources import StoredNetwork, open_network, read_safetensors
from sat_udpdiff.weights.stored import State, StoredTensor, store_all


def open_merged(file: Path, *, config: Config) -> StoredNetwork:
    """The network of a LoRA checkpoint with its adapters folded in, in float32.

    The base is read once to see that it is the right one, and again where a weight is read.

    Args:
        file: Of the checkpoint, plain or averaged.
        config: Of its run; `init.weights` is the base.

    Raises:
        ValueError: The base is missing or not the one that the adapters were trained on, or the
            adapters are not those of `lora`; names the file.
    """
    trained = read_safetensors(file)
    network = build_network(config.model, dtype=torch.float32, device="meta")
    add_adapters(network, config.lora, seed=config.seed)
    is_wanted = partial(is_trained, config=config.model)
    check_adapters(network, trained, is_wanted=is_wanted, file=file)
    try:
        base = _base(config)
    except ValueError as error:
        raise ValueError(f"{file}: needs the base weights of its run: {error}") from None
    # As the run had it: a cast to its precision comes before the one of the fingerprint.
    dtype = DTYPES[config.train.precision]
    found = base_fingerprint(base, lambda name: base[name].read().to(dtype), model=config.model)
    check_base(file, config=config, found=found)
    state = {name: _merged(name, base, trained, config=config) for name in base}
    return StoredNetwork(source=file, form="udpdiff", facts=recognise(state), state=state)


def _base(config: Config) -> State:
    """What the run started from, with its dense channels."""
    if config.init.weights is None:
        network = build_network(config.model, dtype=torch.float32, device="cpu")
        initialise(network, config.seed)
        return store_all(network.state_dict())
    return fit(
        open_network(find_weights(config.init.weights, ema=False)), config=config, expand=True
    )


def _merged(name: str, base: State, trained: State, *, config: Config) -> StoredTensor:
    stored = trained.get(name, base[name])
    few = {name: stored, **{key: trained[key] for key in adapters_of(name, trained)}}

    def read() -> torch.Tensor:
        tensors = {key: value.read().float() for key, value in few.items()}
        return merged_weight(name, tensors, config.lora)

    return StoredTensor(shape=stored.shape, dtype=torch.float32, read=read)
