"""What a frozen network is: digests of its files, without loading it.

Cached latents carry them, so that latents of two encoders can never be mixed unnoticed.
"""

import hashlib
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from sat_udpdiff.config import Config, TextEncoderConfig, VideoCodecConfig
from sat_udpdiff.encoders import text, vae
from sat_udpdiff.encoders.source import WeightSource

# Of all that a folder may hold, what `from_pretrained` reads.
_READ = (
    "config.json", "*.index.json", "*.safetensors", "*.bin", "*.model",
    "tokenizer*.json", "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
# Digests of smaller files take less time than looking one up.
_WORTH_KEEPING = 64 * 2**20


def codec_identity(config: VideoCodecConfig) -> dict[str, Any]:
    """What decides the posterior of a clip, before it is scaled.

    Returns:
        Digests of the files ({} where they are not on this machine) and the settings that matter.
    """
    return {
        "files": _digests(partial(vae.find_codec, config), folders=("",)),
        "dtype": config.dtype,
        "encode_chunks": config.encode_chunks,
        "tiling": config.tiling,
    }


def text_identity(config: TextEncoderConfig, *, text_length: int) -> dict[str, Any]:
    """What decides the embedding of a caption; see `codec_identity`."""
    return {
        "files": _digests(partial(text.find_text_encoder, config), folders=("", "../tokenizer")),
        "dtype": config.dtype,
        "text_length": text_length,
        "unconditional": config.unconditional,
    }


def require_encoders(config: Config) -> None:
    """Check that both encoders are on this machine, for a cache must say what made it.

    Raises:
        ValueError: One is not; names the key and how to get it.
    """
    for key, weights, find, get in (
        ("codec.weights", config.codec.weights, partial(vae.find_codec, config.codec), "vae/*"),
        ("text.weights", config.text.weights, partial(text.find_text_encoder, config.text), ""),
    ):
        if not find().is_local:
            include = f" --include '{get}'" if get else ""
            raise ValueError(
                f"{key}: {weights} is not on this machine: hf download {weights}{include}"
            )


def _digests(find: Callable[[], WeightSource], *, folders: tuple[str, ...]) -> dict[str, str]:
    """File name -> SHA-256, of the files in some folders relative to the source's own."""
    try:
        source = find()
    except ValueError:
        return {}
    if not source.is_local:
        return {}
    found = {}
    for folder in folders:
        # Beside a folder that holds everything there is no second one to look at.
        if folder and not source.subfolder:
            continue
        place = Path(os.path.normpath(Path(source.name) / source.subfolder / folder))
        for path in sorted({path for pattern in _READ for path in place.glob(pattern)}):
            found[os.path.normpath(Path(folder) / path.name)] = file_sha256(path)
    return found


def file_sha256(path: Path) -> str:
    """SHA-256 of a file; of large ones it is kept, for as long as size and time stay the same."""
    path = path.resolve()
    facts = path.stat()
    if facts.st_size < _WORTH_KEEPING:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    name = hashlib.sha256(str(path).encode()).hexdigest()
    kept = _cache_folder() / f"{name}.json"
    seen = {"size": facts.st_size, "mtime_ns": facts.st_mtime_ns}
    try:
        record = json.loads(kept.read_text())
        if record["file"] == seen:
            return record["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none yet, or damaged: it is made anew
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_name(f"{kept.name}.{os.getpid()}.partial")
        partial.write_text(json.dumps({"file": seen, "sha256": digest}))
        partial.replace(kept)
    except OSError:
        pass  # a home that cannot be written to costs time, nothing else
    return digest


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "udpdiff" / "digests"
