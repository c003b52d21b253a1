"""How a run begins: its own newest checkpoint, else `init.weights`, else weights from the seed."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sat_udpdiff.config import Config, ConfigError, makes_sample_videos
from sat_udpdiff.config_io import load_config
from sat_udpdiff.distributed import Place
from sat_udpdiff.encoders.source import DTYPES
from sat_udpdiff.generation import Encoders
from sat_udpdiff.model.low_rank import add_adapters
from sat_udpdiff.model.transformer import UDPDiffTransformer, build_network
from sat_udpdiff.parallel.layout import lay_out
from sat_udpdiff.parallel.network import share_out
from sat_udpdiff.sat_compat import ensure_model_parallel
from sat_udpdiff.training import checkpoint, ranks
from sat_udpdiff.training.changes import check_changes
from sat_udpdiff.training.ema import EMA
from sat_udpdiff.training.engine import TrainEngine
from sat_udpdiff.training.resume_point import find_whole
from sat_udpdiff.training.state import TrainState
from sat_udpdiff.weights.adapted import LoadedWeights, check_start, load_weights
from sat_udpdiff.weights.run_folder import CONFIG_FILE, Checkpoint, CheckpointError


def find_resume_point(config: Config, *, place: Place) -> Checkpoint | None:
    """The newest whole checkpoint of `run.output`, checked against the configuration.

    Every rank calls it, and all get the same one.

    Raises:
        CheckpointError: All checkpoints are damaged.
        ConfigError: It holds another network, or what would alter the training is not allowed.
    """
    tell = say if place.is_main else lambda message: None
    found = find_whole(Path(config.run.output), place=place, tell=tell)
    if found is None:
        return None
    try:
        before = load_config([str(found.folder / CONFIG_FILE)], [])
    except ConfigError as error:
        raise CheckpointError(f"{found.folder / CONFIG_FILE}: {error}") from None
    world_size = found.content["world_size"]
    notes = check_changes(
        before, config, world_sizes=(world_size, place.world_size), folder=found.folder
    )
    change = "" if world_size == place.world_size else f" (saved by {world_size} ranks)"
    tell(f"resuming after step {found.step} from {found.folder}{change}")
    for note in notes:
        tell(note)
    return found


def load_encoders(config: Config, *, device: torch.device) -> Encoders | None:
    """The frozen networks; None where latents are cached and no sample videos are asked for.

    Held-out clips that are no latents need them at the start alone, and load them for it.

    Raises:
        ValueError: Weights are missing; names the key and where they are to be had.
    """
    if config.data.source == "latents" and not makes_sample_videos(config):
        return None
    return Encoders.load(config, device=device)


def build_engine(config: Config, *, place: Place, resume_point: Checkpoint | None) -> TrainEngine:
    """The network with its weights, inside deepspeed."""
    dtype = DTYPES[config.train.precision]
    network = build_network(config.model, dtype=dtype, device=place.device)
    weights = str(resume_point.folder) if resume_point else None
    loaded = _load_once(network, config=config, weights=weights, place=place)
    if place.is_main and resume_point is None:
        say(f"weights: {loaded.source}")
    share_out(network, layout=lay_out(config.parallel, place=place))
    return TrainEngine(network, config=config, place=place, base_sha256=loaded.base_sha256)


def check_weights(config: Config, *, place: Place, resume_point: Checkpoint | None) -> None:
    """Before anything large is loaded: are the weights there that a new run starts from.

    Raises:
        ValueError: On all ranks, with the file and what is wrong with it.
    """
    if resume_point is None:
        # The check builds a network, for which SAT makes its groups: all ranks together, or none.
        ensure_model_parallel()
        _do_on_first_rank(lambda: check_start(config), place=place)


def _load_once(
    network: UDPDiffTransformer, *, config: Config, weights: str | None, place: Place
) -> LoadedWeights:
    """Read the weights on the first rank alone and send them to the others.

    The disk is read once whatever the number of ranks, and no rank but the first has a file open.
    """
    loaded = _do_on_first_rank(lambda: load_weights(network, config, weights=weights), place=place)
    if config.lora.rank and not place.is_main:
        add_adapters(network, config.lora, seed=config.seed)  # to be filled, as the others
    for parameter in network.parameters():
        ranks.send_from_first(parameter.data, place=place)
    return loaded


def _do_on_first_rank(do: Callable[[], Any], *, place: Place) -> Any:
    """What `do` returns on the first rank; what it raises there, all raise."""
    result = error = None
    if place.is_main:
        try:
            result = do()
        except Exception as caught:  # whatever it is: the others must not wait for a failed rank
            error = caught
    known = isinstance(error, ValueError | OSError)
    fault = None if error is None else str(error) if known else f"the first rank failed: {error!r}"
    result, fault = ranks.gather((result, fault), place=place)[0]
    if error is not None and not known:
        raise error
    if fault is not None:
        raise ValueError(fault)
    return result


def restore_or_start(
    engine: TrainEngine, *, config: Config, resume_point: Checkpoint | None
) -> tuple[TrainState, EMA | None]:
    """Counters and averaged weights; optimizer and fp32 weights are set inside the engine."""
    ema = EMA(engine.masters(), config=config.ema) if config.ema.enabled else None
    if resume_point is None:
        return TrainState(), ema
    return checkpoint.restore(resume_point, engine=engine, ema=ema), ema


def say(message: str) -> None:
    """A line of the program, for people."""
    sys.stderr.write(f"train.py: {message}\n")
