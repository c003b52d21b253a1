"""Where the weights of the network are.

`init.weights` and `--load` take the same things: `tiny`, a `.safetensors` file, a run folder or
one of its checkpoints, a SAT checkpoint (`.pt`, its folder or that of its release), a diffusers
transformer folder or pipeline, a folder of DeepSpeed's ZeRO shards, or a hub id.
"""

from pathlib import Path

from sat_udpdiff.encoders.source import HUB_ID, TINY, TINY_WEIGHTS
from sat_udpdiff.weights.run_folder import (
    CHECKPOINTS,
    EMA_FILE,
    LATEST,
    NETWORK_FILE,
    STATE_FILE,
    find_latest,
    open_checkpoint,
)
from sat_udpdiff.weights.zero_shards import is_zero_folder

DIFFUSERS_STEM = "diffusion_pytorch_model"
"""File names of diffusers' weights begin with it."""
SAT_FILE = "mp_rank_00_model_states.pt"
"""File of a SAT checkpoint."""
_SAT_EMA = "-ema"
"""Ending of the folders in which SAT saves averaged weights."""


def find_weights(weights: str, *, ema: bool) -> Path:
    """The file of weights, or the folder of diffusers or of ZeRO shards, that a setting means.

    Args:
        weights: As above; a hub id is downloaded here.
        ema: Take the averaged weights of a run or checkpoint.

    Raises:
        ValueError: Nothing there, or a damaged checkpoint; names the place.
    """
    path = Path(weights).expanduser()
    if weights == TINY:
        path = TINY_WEIGHTS / "base" / NETWORK_FILE
        if not path.is_file():
            raise ValueError(f"init.weights: the weights shipped with us are missing at {path}")
    if ema and not path.is_dir():
        raise ValueError(
            "--ema: expected a run or checkpoint folder, which holds averaged weights, "
            f"got {weights}"
        )
    if path.is_file():
        return path
    if path.is_dir():
        return _find_in_folder(path, ema=ema)
    if is_on_hub(weights):
        return _find_in_folder(_download(weights), ema=False)
    raise ValueError(
        f"weights: expected `tiny`, a file, a folder or a hub id, found nothing at {weights!r}"
    )


def is_on_hub(weights: str) -> bool:
    """Whether `find_weights` would ask the hub for it."""
    return not Path(weights).expanduser().exists() and HUB_ID.fullmatch(weights) is not None


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=["transformer/*"]))
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"weights: no folder {hub_id!r} here, and the hub id cannot be fetched: {reason}"
        ) from error


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
    subfolders = (folder / "transformer", folder)
    for sub in subfolders:
        if list(sub.glob(f"{DIFFUSERS_STEM}*.safetensors*")):
            return _only_set(sub, ema=ema)
    for sub in subfolders:
        if sat := _find_sat(sub, ema=ema):
            return sat.parent if is_zero_folder(sat.parent) else sat
    raise ValueError(
        f"{folder}: expected a run, one of its checkpoints, a diffusers transformer folder or a "
        f"SAT checkpoint; it has none of {CHECKPOINTS}/, {name}, {DIFFUSERS_STEM}*.safetensors, "
        f"{SAT_FILE}{' of averaged weights' if ema else ''}"
    )


def _only_set(folder: Path, *, ema: bool) -> Path:
    if ema:
        raise ValueError(f"--ema: {folder} is a diffusers folder, which holds one set of weights")
    return folder


def _find_sat(folder: Path, *, ema: bool) -> Path | None:
    """SAT's file in its folder; among several saves the one that SAT's `latest` names."""
    saves = [
        *folder.glob(f"*/{SAT_FILE}"),
        # Stage 3 has no file of that name alone.
        *folder.glob(f"*/zero_pp_rank_0_{SAT_FILE}"),
    ]
    own = [folder / SAT_FILE, folder / f"zero_pp_rank_0_{SAT_FILE}"]
    if here := next((file for file in own if file.is_file()), None):
        _check_not_split(here)
        return here
    saves = sorted(save for save in saves if save.parent.name.endswith(_SAT_EMA) == ema)
    latest = folder / LATEST
    if latest.is_file():
        named = latest.read_text(encoding="utf-8").strip() + (_SAT_EMA if ema else "")
        saves = [save for save in saves if save.parent.name == named] or saves
    if len(saves) > 1:
        raise ValueError(
            f"{folder}: expected one SAT checkpoint, or a file `{LATEST}` that names one of them, "
            f"got {', '.join(save.parent.name for save in saves)}"
        )
    for save in saves:
        _check_not_split(save)
    return saves[0] if saves else None


def _check_not_split(file: Path) -> None:
    """Refuse one part of a checkpoint that was cut for model parallelism."""
    if others := sorted(file.parent.glob("*mp_rank_01_model_states.pt")):
        raise ValueError(
            f"{file.parent}: expected the weights in one file, got a checkpoint cut for model "
            f"parallelism ({others[0].name}); join it with SAT first"
        )
