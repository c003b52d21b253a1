"""Where the weights of a stage are, what they are, and how a stage meets a device that is full."""

import gc
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal, TypeVar

import torch

from sat_udpdiff.encoders.source import WeightSource, find_source, loading_error

_Model = TypeVar("_Model")

Dtype = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFacts:
    """What made a label: it goes into the manifest, and from there into the shards."""

    backend: str
    """'model', 'classical', 'synthetic', 'given', 'measured' or 'none'."""
    model: str = ""
    """Folder name or hub id of the weights; '' without weights."""
    revision: str = ""
    """Commit of the hub, or the first 12 digits of the SHA-256 of a local folder's weights."""
    version: str = ""
    """Library that ran it, with its version, such as 'transformers 5.23.0'."""
    license: str = ""
    """Of the weights, as their authors name it; '' without weights."""

    def as_row(self) -> dict[str, str]:
        """Columns of the manifest."""
        return asdict(self)


class Pieces:
    """How much of a clip goes through a model at once: less where the device is full.

    Args:
        size: Of a piece, as the settings say.
    """

    def __init__(self, size: int) -> None:
        self.size = self._whole = size

    def shrink(self) -> bool:
        """Halve the pieces; False at one."""
        if self.size == 1:
            return False
        self.size //= 2
        return True

    def restore(self) -> None:
        """Undo `shrink`: what is made of a clip must not depend on the clips before it."""
        self.size = self._whole


def library_version(name: str) -> str:
    """'NAME VERSION' of an installed package."""
    return f"{name} {version(name)}"


def find_weights(weights: str, *, key: str, get: str, subfolder: str | None = None) -> WeightSource:
    """The folder or hub id of a setting; see `encoders.source.find_source`.

    Args:
        weights: Folder, or hub id `owner/name`.
        key: Setting, for messages.
        get: How to obtain the weights, for messages.
        subfolder: Where the files lie below `weights`.

    Raises:
        ValueError: There is none; names the key and how to get it.
    """
    return find_source(weights, subfolder=subfolder, tiny="", key=key, get=get)


def require_weights(
    weights: str, *, key: str, get: str, subfolder: str | None = None
) -> WeightSource:
    """`find_weights` before any work is done, for a stage that will need them hours later.

    Raises:
        ValueError: There is none, or it is on the hub only, which may not answer by then; names the
            key and how to get it.
    """
    source = find_weights(weights, key=key, get=get, subfolder=subfolder)
    if not source.is_local:
        raise ValueError(
            f"{key}: {weights} is neither a folder nor a model of the hub that is on this machine; "
            f"{get}"
        )
    return source


def load_or_explain(
    source: WeightSource, load: Callable[[], _Model], *, key: str, get: str
) -> _Model:
    """Run `load`, whose errors become one line that names the key and the place.

    Raises:
        ValueError: The weights are there but cannot be loaded.
    """
    try:
        return load()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise loading_error(source, key=key, get=get, cause=error) from error


def weights_revision(source: WeightSource, *, commit: str | None = None) -> str:
    """The commit of a hub model, or a digest of a local folder's weights.

    Args:
        source: Of `find_weights`.
        commit: What the library read from the hub (`model.config._commit_hash`).
    """
    import hashlib

    from sat_udpdiff.encoders.identity import file_sha256

    folder = Path(source.name) / source.subfolder
    if not source.is_local:
        return commit or ""
    if folder.parent.name == "snapshots":
        return folder.name  # the hub's cache names a snapshot by its commit
    files = sorted(
        path
        for pattern in ("*.safetensors", "*.bin", "*.pth", "*.pt", "config.json")
        for path in folder.glob(pattern)
    )
    digests = "".join(file_sha256(path) for path in files)
    return hashlib.sha256(digests.encode()).hexdigest()[:12]


def free_device_memory() -> None:
    """Give back what torch holds of a device after a model is gone or did not fit."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
