"""Weights into a network, from wherever they are.

`init.weights` and `--load` take the same things: `tiny`, a `.safetensors` file, a run folder or one
of its checkpoints, a SAT checkpoint (`.pt` or its folder), a diffusers transformer folder, a hub id.
"""

import json
import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sat_udpdiff.config import Config
from sat_udpdiff.encoders.source import HUB_ID, TINY, TINY_WEIGHTS
from sat_udpdiff.model.dense_channels import expand_state_dict
from sat_udpdiff.model.transformer import UDPDiffTransformer, initialise
from sat_udpdiff.weights.key_map import diffusers_to_sat, is_ignored, strip_sat_prefix
from sat_udpdiff.weights.run_folder import (
    CHECKPOINTS,
    EMA_FILE,
    NETWORK_FILE,
    STATE_FILE,
    find_latest,
    open_checkpoint,
)

_DIFFUSERS = "diffusion_pytorch_model"
_SAT_FILE = "mp_rank_00_model_states.pt"
_MOST_NAMES = 5


def load_network_weights(
    network: UDPDiffTransformer, config: Config, *, weights: str | None = None, ema: bool = False
) -> str:
    """Set every weight of `network`; a 16-channel checkpoint is expanded on the way.

    Args:
        network: Of `config.model`, on its device.
        config: `init` says how weights are expanded, `seed` what is drawn.
        weights: Where the weights are; None takes `init.weights`, and if that is null they are
            drawn from the seed.
        ema: Take the averaged weights of a checkpoint of ours.

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
    source = _find(place, ema=ema)
    state = read_state(source, num_layers=config.model.num_layers)
    generator = torch.Generator().manual_seed(config.seed)
    try:
        state = expand_state_dict(state, config=config.model, init=config.init, generator=generator)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    state = {key: value for key, value in state.items() if not is_ignored(key)}
    _check(state, network=network, source=source)
    network.load_state_dict(state)
    return str(source)


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


def _find(weights: str, *, ema: bool) -> Path:
    """The file of weights, or the diffusers folder, that a setting means."""
    path = Path(weights).expanduser()
    if weights == TINY:
        path = TINY_WEIGHTS / "base" / NETWORK_FILE
        if not path.is_file():
            raise ValueError(f"init.weights: the weights shipped with us are missing at {path}")
    if path.is_file():
        return path
    if path.is_dir():
        return _find_in_folder(path, ema=ema)
    if HUB_ID.fullmatch(weights):
        from huggingface_hub import snapshot_download

        folder = snapshot_download(weights, allow_patterns=["transformer/*"])
        return _find_in_folder(Path(folder), ema=False)
    raise ValueError(
        f"weights: expected `tiny`, a file, a folder or a hub id, found nothing at {weights!r}"
    )


def _find_in_folder(folder: Path, *, ema: bool) -> Path:
    name = EMA_FILE if ema else NETWORK_FILE
    if (folder / CHECKPOINTS).is_dir():
        found = find_latest(folder)
        if found is None:
            raise ValueError(f"{folder}: this run has no checkpoint yet")
        folder = found.folder
    if (folder / STATE_FILE).is_file():
        open_checkpoint(folder)
        if not (folder / name).is_file():
            raise ValueError(f"{folder}: no {name}; the run was made with ema.enabled=false")
        return folder / name
    if (folder / name).is_file():
        return folder / name
    for sub in (folder / "transformer", folder):
        if list(sub.glob(f"{_DIFFUSERS}*.safetensors*")):
            return sub
    for candidate in (folder / _SAT_FILE, *folder.glob(f"*/{_SAT_FILE}")):
        if candidate.is_file():
            return candidate
    raise ValueError(
        f"{folder}: expected a run, one of its checkpoints, a diffusers transformer folder or a "
        f"SAT checkpoint; it has none of {CHECKPOINTS}/, {name}, {_DIFFUSERS}*.safetensors, "
        f"{_SAT_FILE}"
    )


def _read_diffusers(folder: Path) -> dict[str, Tensor]:
    index = folder / f"{_DIFFUSERS}.safetensors.index.json"
    names = [f"{_DIFFUSERS}.safetensors"]
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
