"""Where the weights of a frozen network are: a folder, a hub id, or shipped with the project."""

import re
from dataclasses import dataclass
from pathlib import Path

import torch

TINY = "tiny"
TINY_WEIGHTS = Path(__file__).resolve().parent.parent / "tiny" / "weights"
"""Folders codec/, text/ and base/ of the small world that ships with the project."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]*/[\w.\-]+")
"""A model of the hub, `owner/name`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightSource:
    """Arguments of `from_pretrained`."""

    name: str
    """Folder or hub id."""
    subfolder: str
    """'' = the files lie at the top."""
    is_local: bool


def find_source(
    weights: str, *, subfolder: str | None, tiny: str, key: str, get: str
) -> WeightSource:
    """Resolve the `weights` value of a frozen network, without touching the network.

    Args:
        weights: 'tiny', a folder, or a hub id `owner/name`.
        subfolder: where the files lie below `weights`; a folder that holds them itself is accepted.
        tiny: name of the folder below TINY_WEIGHTS that 'tiny' stands for.
        key: configuration key, for messages.
        get: how to obtain the weights, for messages.

    Raises:
        ValueError: no such folder, or no config.json in it.
    """
    folder = TINY_WEIGHTS / tiny if weights == TINY else Path(weights).expanduser()
    if folder.is_dir():
        inner = "" if weights == TINY or subfolder is None else subfolder
        if inner and not (folder / inner).is_dir():
            inner = ""
        if not (folder / inner / "config.json").is_file():
            raise ValueError(f"{key}: no config.json in {folder / inner}; {get}")
        return WeightSource(name=str(folder), subfolder=inner, is_local=True)
    if weights == TINY:
        raise ValueError(
            f"{key}: the weights shipped with the project are missing at {folder}; {get}"
        )
    if HUB_ID.fullmatch(weights):
        if (local := _downloaded(weights, subfolder=subfolder)) is not None:
            return local
        return WeightSource(name=weights, subfolder=subfolder or "", is_local=False)
    raise ValueError(f"{key}: no folder {weights!r}, and it is no hub id (owner/name); {get}")


def _downloaded(hub_id: str, *, subfolder: str | None) -> WeightSource | None:
    """A model of the hub that is on this machine already, in its folder or at the top of it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(hub_id, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    for inner in (subfolder or "", ""):
        if (folder / inner / "config.json").is_file():
            return WeightSource(name=str(folder), subfolder=inner, is_local=True)
    return None


def loading_error(source: WeightSource, *, key: str, get: str, cause: Exception) -> ValueError:
    """One-line error for a source that was found but could not be loaded."""
    place = "folder" if source.is_local else "hub id (no such folder here)"
    reason = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
    return ValueError(f"{key}: cannot load the {place} {source.name!r}: {reason}; {get}")
