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
        if list(sub.glob(f"{DIFFUSERS_STEM}*.safetensors*")):
            return sub
    for candidate in (folder / _SAT_FILE, *folder.glob(f"*/{_SAT_FILE}")):
        if candidate.is_file():
            return candidate
    raise ValueError(
        f"{folder}: expected a run, one of its checkpoints, a diffusers transformer folder or a "
        f"SAT checkpoint; it has none of {CHECKPOINTS}/, {name}, {DIFFUSERS_STEM}*.safetensors, "
        f"{_SAT_FILE}"
    )
