"""The weights that VBench's measures need: where they are, what they are, where users get them."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sat_udpdiff.encoders.identity import file_sha256
from sat_udpdiff.encoders.source import HUB_ID, find_source

Network = Literal["dino", "clip", "amt"]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Published:
    """A network's weights as their authors publish them."""

    what: str
    file: str
    get: str
    has_folder: bool
    """Whether transformers' folder will do."""


PUBLISHED: dict[Network, _Published] = {
    "dino": _Published(
        what="DINO ViT-B/16",
        file="dino_vitbase16_pretrain.pth",
        get="get dino_vitbase16_pretrain.pth from https://dl.fbaipublicfiles.com/dino/"
        "dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth (VBench keeps it in ~/.cache/vbench/"
        "dino_model), or run `hf download facebook/dino-vitb16`, and give the file, its folder or "
        "that id",
        has_folder=True,
    ),
    "clip": _Published(
        what="CLIP ViT-B/32",
        file="ViT-B-32.pt",
        get="run `hf download openai/clip-vit-base-patch32`, or get ViT-B-32.pt from "
        "https://openaipublic.azureedge.net/clip/models/"
        "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt (VBench "
        "keeps it in ~/.cache/vbench/clip_model), and give that id, the file or its folder",
        has_folder=True,
    ),
    "amt": _Published(
        what="AMT-S (CC BY-NC 4.0)",
        file="amt-s.pth",
        get="get amt-s.pth from https://huggingface.co/lalala125/AMT/resolve/main/amt-s.pth "
        "(VBench keeps it in ~/.cache/vbench/amt_model) and give the file or its folder",
        has_folder=False,
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureWeights:
    """Weights that are on this machine."""

    network: Network
    key: str
    """Setting that names them, for messages."""
    path: Path
    """The published file, or transformers' folder."""
    sha256: str
    """Of the file; of a folder's weights, of their names and digests."""

    @property
    def get(self) -> str:
        """How to obtain them, for messages."""
        return PUBLISHED[self.network].get

    def error(self, cause: Exception | str) -> ValueError:
        """For weights that are there and do not serve, in one line."""
        lines = str(cause).strip().splitlines()
        reason = lines[0] if lines else type(cause).__name__
        what = PUBLISHED[self.network].what
        return ValueError(f"{self.key}: {self.path} is not {what}: {reason}; {self.get}")


def find_feature_weights(weights: str, *, network: Network, key: str) -> FeatureWeights:
    """Find weights without loading them, so that what is missing is told before anything runs.

    Args:
        weights: The published file, a folder that holds it, transformers' folder, or a hub id
            whose files are on this machine.
        network: Which ones.
        key: Setting, for messages.

    Raises:
        ValueError: They are not there; names the setting, the file and where to get it.
    """
    published = PUBLISHED[network]
    path = Path(weights).expanduser()
    if path.is_dir() and (path / published.file).is_file():
        path = path / published.file
    if path.is_file():
        return FeatureWeights(network=network, key=key, path=path, sha256=file_sha256(path))
    is_hub_id = not path.exists() and HUB_ID.fullmatch(weights) is not None
    if not published.has_folder or not (path.is_dir() or is_hub_id):
        raise ValueError(
            f"{key}: expected {published.what}, found no file {weights!r}; {published.get}"
        )
    source = find_source(weights, subfolder=None, tiny="", key=key, get=published.get)
    if not source.is_local:
        raise ValueError(f"{key}: {weights} is not on this machine; {published.get}")
    folder = Path(source.name) / source.subfolder
    return FeatureWeights(
        network=network,
        key=key,
        path=folder,
        sha256=_folder_sha256(folder, key=key, get=published.get),
    )


def _folder_sha256(folder: Path, *, key: str, get: str) -> str:
    # What transformers would read: safetensors where there are any.
    for pattern in ("*.safetensors", "pytorch_model*.bin"):
        if files := sorted(folder.glob(pattern)):
            named = "".join(f"{path.name} {file_sha256(path)}\n" for path in files)
            return hashlib.sha256(named.encode()).hexdigest()
    raise ValueError(f"{key}: no weights (*.safetensors, pytorch_model*.bin) in {folder}; {get}")
