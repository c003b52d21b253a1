"""The folder of a run and its checkpoints, as readers see them.

    RUN/config.yaml  metrics.jsonl  checkpoints/step_00000100/  checkpoints/latest

`training/checkpoint.py` writes them; sampling, evaluation and a resumed run read them. A resumed
run compares every byte with SHA256SUMS, and so does a run that is about to delete an older one;
other readers look at sizes and headers, unless they ask for more. By hand: `sha256sum -c
SHA256SUMS` in the folder of a checkpoint.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

CHECKPOINTS = "checkpoints"
CONFIG_FILE = "config.yaml"
NETWORK_FILE = "network.safetensors"
EMA_FILE = "ema.safetensors"
STATE_FILE = "state.json"
SUMS_FILE = "SHA256SUMS"
LATEST = "latest"
FORMAT_VERSION = 2
"""2 has SHA256SUMS; 1 had no sums, and is read without them."""
BASE_FINGERPRINT = "base_sha256"
"""Entry in the metadata of a LoRA checkpoint's files: which weights were frozen beside it."""

_STEP_FOLDER = re.compile(r"step_([0-9]{8,})")
_SUM_LINE = re.compile(r"([0-9a-f]{64})  ([^/]+)")


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
    sums: Mapping[str, str] = field(default_factory=dict)
    """File name -> SHA-256 (hexadecimal); empty for version 1."""


def step_folder(run: Path, *, step: int) -> Path:
    """Folder of the checkpoint after `step` steps."""
    return run / CHECKPOINTS / f"step_{step:08d}"


def step_of(folder: Path) -> int | None:
    """Steps by the name of a checkpoint's folder; None for any other name."""
    match = _STEP_FOLDER.fullmatch(folder.name)
    return int(match[1]) if match else None


def step_folders(run: Path) -> list[Path]:
    """Folders of checkpoints, complete or not, from new to old."""
    steps = {path: step_of(path) for path in (run / CHECKPOINTS).glob("step_*")}
    named = {path: step for path, step in steps.items() if step is not None}
    return sorted(named, key=lambda path: named[path], reverse=True)


def candidates(run: Path) -> list[Path]:
    """Folders in the order in which readers try them: what `latest` names, then from new to old."""
    latest = _read_latest(run / CHECKPOINTS)
    return sorted(step_folders(run), key=lambda path: path.name != latest)  # a stable sort


def find_latest(
    run: Path, *, tell: Callable[[str], None] = print, verify: bool = False
) -> Checkpoint | None:
    """The newest complete checkpoint of a run; None if the run has none.

    Args:
        run: Run folder.
        tell: Called with one line for each damaged checkpoint that is passed over.
        verify: See `open_checkpoint`.

    Raises:
        CheckpointError: There are checkpoints, and all are damaged.
    """
    folders = candidates(run)
    for folder in folders:
        try:
            return open_checkpoint(folder, verify=verify)
        except CheckpointError as error:
            tell(passed_over(error))
    if folders:
        raise all_damaged(run, count=len(folders))
    return None


def passed_over(error: CheckpointError | str) -> str:
    """What is said of a damaged checkpoint."""
    return f"passed over a damaged checkpoint: {error}"


def all_damaged(run: Path, *, count: int) -> CheckpointError:
    """The error of a run none of whose checkpoints can be read."""
    which = f"all {count} checkpoints are" if count > 1 else "the only checkpoint is"
    return CheckpointError(
        f"{run / CHECKPOINTS}: {which} damaged; move {run} away to start from the beginning"
    )


def _read_latest(folder: Path) -> str:
    try:
        return (folder / LATEST).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def open_checkpoint(folder: Path, *, verify: bool = False) -> Checkpoint:
    """Check that a checkpoint is complete, without reading its tensors.

    Args:
        folder: Of the checkpoint.
        verify: Read all files and compare them with their sums (version 1 has none).

    Raises:
        CheckpointError: A file is missing, cut short, unreadable or, with `verify`, changed.
    """
    content, sums = _read_state(folder)
    try:
        files, step = content["files"], content["state"]["step"]
        sizes = [(str(name), int(size)) for name, size in files.items()]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder / STATE_FILE}: unreadable ({error!r})") from None
    if sums and {*files, STATE_FILE} != set(sums):
        raise CheckpointError(f"{folder / SUMS_FILE}: does not have the files of {STATE_FILE}")
    for name, size in sizes:
        path = folder / name
        try:
            found = path.stat().st_size if path.is_file() else None
        except OSError as error:  # of the disk: a file that is not there is none
            raise CheckpointError(f"{path}: unreadable ({error})") from None
        if found != size:
            got = "no file" if found is None else f"{found:,} bytes"
            raise CheckpointError(f"{path}: expected {size:,} bytes, got {got}")
        if name.endswith(".safetensors"):
            _check_header(path)
    checkpoint = Checkpoint(folder=folder, step=step, content=content, sums=sums)
    if verify:
        for name in sums:
            check_sum(checkpoint, name)
    return checkpoint


def check_sum(checkpoint: Checkpoint, name: str) -> None:
    """Read one file and compare it with its sum.

    Raises:
        CheckpointError: It is not what was written, or cannot be read.
    """
    path, expected = checkpoint.folder / name, checkpoint.sums[name]
    try:
        got = sha256_of(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    if got != expected:
        raise CheckpointError(f"{path}: changed on the disk: expected sha256 {expected}, got {got}")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal; read in pieces, while other threads go on."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sums_text(sums: Mapping[str, str]) -> str:
    """Content of SHA256SUMS, as `sha256sum` writes it."""
    return "".join(f"{sums[name]}  {name}\n" for name in sorted(sums))


def _read_state(folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """state.json, which its own sum is compared with before anything in it is believed."""
    sums = _read_sums(folder / SUMS_FILE)
    path = folder / STATE_FILE
    try:
        text = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: unreadable ({error})") from None
    if sums is not None and hashlib.sha256(text).hexdigest() != sums.get(STATE_FILE):
        raise CheckpointError(f"{path}: changed on the disk: its sha256 is not in {SUMS_FILE}")
    try:
        content = json.loads(text)
        version = content.get("version")
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: unreadable ({error})") from None
    if version not in range(1, FORMAT_VERSION + 1):
        expected = f"format version 1 to {FORMAT_VERSION}"
        raise CheckpointError(f"{folder}: expected {expected}, got {version}")
    if sums is None and version > 1:
        raise CheckpointError(f"{folder / SUMS_FILE}: no file")
    return content, sums or {}


def _read_sums(path: Path) -> dict[str, str] | None:
    """File name -> sum; None where there is no such file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: unreadable ({error})") from None
    matches = [_SUM_LINE.fullmatch(line) for line in lines]
    if not lines or None in matches:
        raise CheckpointError(f"{path}: damaged: expected lines of a sha256 and a name")
    return {match[2]: match[1] for match in matches if match is not None}


def _check_header(path: Path) -> None:
    try:
        with safe_open(path, framework="pt"):
            return
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from None
