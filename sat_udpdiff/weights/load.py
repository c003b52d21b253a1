"""Weights into a network, from wherever they are; `find.py` says what can be named."""

import json
import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sat_udpdiff.config import Config
from sat_udpdiff.model.dense_channels import expand_state_dict
from sat_udpdiff.model.transformer import UDPDiffTransformer, initialise
from sat_udpdiff.weights.find import DIFFUSERS_STEM, find_weights
from sat_udpdiff.weights.key_map import diffusers_to_sat, is_ignored, strip_sat_prefix

_MOST_NAMES = 5


def load_network_weights(
    network: UDPDiffTransformer,
    config: Config,
    *,
    weights: str | None = None,
    ema: bool = False,
    expand: bool = True,
) -> str:
    """Set every weight of `network`; a 16-channel checkpoint may be expanded on the way.

    Args:
        network: Of `config.model`, on its device.
        config: `init` says how weights are expanded, `seed` what is drawn.
        weights: Where the weights are; None takes `init.weights`, and if that is null they are
            drawn from the seed.
        ema: Take the averaged weights of a checkpoint of ours.
        expand: Make missing dense channels and the task table, to train them; False refuses a
            checkpoint without them, as sampling must.

    Returns:
        Where the weights came from, for a message.

    Raises:
        ValueError: No such place, a damaged file, or weights of another network; names the file,
            and the keys with expected and found shapes.
    """
    place = weights if weights is not None else config.init.weights
    if place is None:
        initialise(network, config.seed)
        return f"drawn from seed {config.seed}"
    source = find_weights(place, ema=ema)
    state = read_state(source, num_layers=config.model.num_layers)
    if expand:
        state = _expand(state, config=config, source=source)
    state = {key: value for key, value in state.items() if not is_ignored(key)}
    _check(state, network=network, source=source)
    network.load_state_dict(state)
    return str(source)


def _expand(state: dict[str, Tensor], *, config: Config, source: Path) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(config.seed)
    try:
        return expand_state_dict(state, config=config.model, init=config.init, generator=generator)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def read_state(source: Path, *, num_layers: int) -> dict[str, Tensor]:
    """Weights of a file or diffusers folder under SAT's names, on the CPU.

    Raises:
        ValueError: The file is damaged or has other keys; names it.
    """
    try:
        if source.is_dir():
            return diffusers_to_sat(_read_diffusers(source), num_layers)
        if source.suffix == ".pt":
            # weights_only: a pickle could run anything.
            content = torch.load(source, map_location="cpu", weights_only=True, mmap=True)
            return strip_sat_prefix(content.get("module", content))
        state = load_file(source)
        is_diffusers = any(key.startswith("transformer_blocks.") for key in state)
        return diffusers_to_sat(state, num_layers) if is_diffusers else strip_sat_prefix(state)
    except (SafetensorError, OSError, RuntimeError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{source}: not a readable weights file ({reason})") from None
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def _read_diffusers(folder: Path) -> dict[str, Tensor]:
    index = folder / f"{DIFFUSERS_STEM}.safetensors.index.json"
    names = [f"{DIFFUSERS_STEM}.safetensors"]
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    state: dict[str, Tensor] = {}
    for name in names:
        # Only file names: an index may not point out of its folder.
        state.update(load_file(folder / Path(name).name))
    return state


def _check(state: dict[str, Tensor], *, network: UDPDiffTransformer, source: Path) -> None:
    expected = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in state.items()}
    problems = _list("missing", sorted(expected.keys() - found.keys()))
    problems += _list("unexpected", sorted(found.keys() - expected.keys()))
    wrong = [
        f"{key} expected {expected[key]}, got {found[key]}"
        for key in sorted(expected.keys() & found.keys())
        if expected[key] != found[key]
    ]
    problems += _list("of another shape", wrong)
    if problems:
        raise ValueError(
            f"{source}: not the weights of model.family={network.config.family}: "
            + "; ".join(problems)
        )


def _list(what: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return [f"{len(names)} {what}: {', '.join(names[:_MOST_NAMES])}{more}"]
