"""The folder of a run and its checkpoints, as readers see them.

    RUN/config.yaml  metrics.jsonl  checkpoints/step_00000100/  checkpoints/latest

`training/checkpoint.py` writes them; sampling, evaluation and a resumed run read them.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

CHECKPOINTS = "checkpoints"
CONFIG_FILE = "config.yaml"
NETWORK_FILE = "network.safetensors"
EMA_FILE = "ema.safetensors"
STATE_FILE = "state.json"
LATEST = "latest"
STEP_PREFIX = "step_"
FORMAT_VERSION = 1
BASE_FINGERPRINT = "base_sha256"
"""Entry in the metadata of a LoRA checkpoint's files: which weights were frozen beside it."""


class CheckpointError(ValueError):
    """A checkpoint cannot be written or read; names the folder or file, and the way out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A complete checkpoint."""

    folder: Path
    step: int
    """Optimizer steps done."""
    content: dict[str, Any]
    """Of state.json."""


def step_folder(run: Path, *, step: int) -> Path:
    """Folder of the checkpoint after `step` steps."""
    return run / CHECKPOINTS / f"{STEP_PREFIX}{step:08d}"


def find_latest(run: Path, *, tell: Callable[[str], None] = print) -> Checkpoint | None:
    """The newest complete checkpoint of a run; None if the run has none.

    `latest` goes first, then the others from new to old, should it be missing or damaged.

    Args:
        run: Run folder.
        tell: Called with one line for each damaged checkpoint that is passed over.

    Raises:
        CheckpointError: There are checkpoints, and all are damaged.
    """
    folder = run / CHECKPOINTS
    candidates = sorted(folder.glob(f"{STEP_PREFIX}*"), reverse=True)
    named = _read_latest(folder)
    candidates.sort(key=lambda path: path.name != named)  # stable: the others stay in order
    for candidate in candidates:
        try:
            return open_checkpoint(candidate)
        except CheckpointError as error:
            tell(f"passed over a damaged checkpoint: {error}")
    if candidates:
        raise CheckpointError(
            f"{folder}: all {len(candidates)} checkpoints are damaged; "
            "move the folder away to start from the beginning"
        )
    return None


def _read_latest(folder: Path) -> str:
    try:
        return (folder / LATEST).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def open_checkpoint(folder: Path) -> Checkpoint:
    """Check that a checkpoint is complete, without reading its tensors.

    Raises:
        CheckpointError: A file is missing, cut short or unreadable.
    """
    try:
        content = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        files, step = content["files"], content["state"]["step"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / STATE_FILE}: unreadable ({error})") from None
    if content.get("version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{folder}: expected format version {FORMAT_VERSION}, got {content.get('version')}"
        )
    for name, size in files.items():
        path = folder / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            got = "no file" if found is None else f"{found:,} bytes"
            raise CheckpointError(f"{path}: expected {size:,} bytes, got {got}")
        if name.endswith(".safetensors"):
            _check_header(path)
    return Checkpoint(folder=folder, step=step, content=content)


def _check_header(path: Path) -> None:
    try:
        with safe_open(path, framework="pt"):
            return
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from None
