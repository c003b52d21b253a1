"""Where the weights of the network are.

`init.weights` and `--load` take the same things: `tiny`, a `.safetensors` file, a run folder or
one of its checkpoints, a SAT checkpoint (`.pt` or its folder), a diffusers transformer folder, or a
hub id.
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

DIFFUSERS_STEM = "diffusion_pytorch_model"
"""File names of diffusers' weights begin with it."""
_SAT_FILE = "mp_rank_00_model_states.pt"


def find_weights(weights: str, *, ema: bool) -> Path:
    """The file of weights, or the diffusers folder, that a setting means.

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
    for sub in (folder / "transformer", folder):
        if list(sub.glob(f"{DIFFUSERS_STEM}*.safetensors*")):
            return sub
    if sat := _find_sat(folder):
        return sat
    raise ValueError(
        f"{folder}: expected a run, one of its checkpoints, a diffusers transformer folder or a "
        f"SAT checkpoint; it has none of {CHECKPOINTS}/, {name}, {DIFFUSERS_STEM}*.safetensors, "
        f"{_SAT_FILE}"
    )


def _find_sat(folder: Path) -> Path | None:
    """SAT's file in its folder; among several saves the one that SAT's `latest` names."""
    if (folder / _SAT_FILE).is_file():
        return folder / _SAT_FILE
    saves = sorted(folder.glob(f"*/{_SAT_FILE}"))
    latest = folder / LATEST
    if latest.is_file():
        named = folder / latest.read_text(encoding="utf-8").strip() / _SAT_FILE
        if named in saves:
            return named
    if len(saves) > 1:
        raise ValueError(
            f"{folder}: expected one SAT checkpoint, or a file `{LATEST}` that names one of them, "
            f"got {', '.join(save.parent.name for save in saves)}"
        )
    return saves[0] if saves else None
