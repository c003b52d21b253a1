"""The files of a checkpoint, as one process writes, publishes and deletes them.

Whatever is not complete lies under a name that no reader looks at: a folder gets its name when all
of it is on the disk, and loses it before the first of its files is deleted. So a process may be
killed anywhere in here.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from data_loaders.atomic_file import sync_folder
from sat_udpdiff.config import CheckpointConfig, Config
from sat_udpdiff.config_io import save_config
from sat_udpdiff.weights.run_folder import (
    CONFIG_FILE,
    LATEST,
    STATE_FILE,
    SUMS_FILE,
    CheckpointError,
    open_checkpoint,
    sha256_of,
    step_folders,
    step_of,
    sums_text,
)
from sat_udpdiff.weights.stored import store_all
from sat_udpdiff.weights.write import write_safetensors

STAGING = ".staging_"
"""Beginning of the names of what is being written or deleted."""
_DELETED = f"{STAGING}deleted_"


def staging_of(target: Path) -> Path:
    """Where a checkpoint lies until it is complete."""
    return target.with_name(STAGING + target.name)


def clear_staging(folder: Path) -> None:
    """Remove what a process that was killed left in the folder of checkpoints."""
    for leftover in folder.glob(f"{STAGING}*"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], *, facts: Mapping[str, str]) -> str:
    """Write a safetensors file and flush it to the disk; returns its SHA-256.

    The sum is of the numbers in memory, so that it also tells what went wrong on their way.

    Raises:
        OSError: No space, or not writable.
    """
    digest = hashlib.sha256()
    write_safetensors(path, store_all(tensors), metadata=facts, see=digest.update)
    return digest.hexdigest()


def publish(
    target: Path, *, content: Mapping[str, Any], sums: Mapping[str, str], config: Config
) -> None:
    """Complete what lies in staging, give it its name, and let `latest` name it.

    Args:
        target: The name.
        content: Of state.json, but for the sizes of files.
        sums: File name -> SHA-256 of all tensor files.
        config: Of the run.

    Raises:
        OSError: No space, or not writable; `latest` is as it was.
    """
    staging = staging_of(target)
    save_config(config, staging / CONFIG_FILE)
    _flush(staging / CONFIG_FILE)
    sums = {**sums, CONFIG_FILE: sha256_of(staging / CONFIG_FILE)}
    sizes = {name: (staging / name).stat().st_size for name in sorted(sums)}
    state = json.dumps({**content, "files": sizes}, indent=1).encode()
    _write(staging / STATE_FILE, state)
    sums[STATE_FILE] = hashlib.sha256(state).hexdigest()
    _write(staging / SUMS_FILE, sums_text(sums).encode())
    sync_folder(staging)
    if target.exists():  # of the same step, damaged: a complete one would have been resumed
        _discard(target)
    staging.rename(target)
    sync_folder(target.parent)
    pointer = target.with_name(STAGING + LATEST)
    _write(pointer, f"{target.name}\n".encode())
    pointer.replace(target.with_name(LATEST))
    sync_folder(target.parent)


def prune(newest: Path, *, config: CheckpointConfig, tell: Callable[[str], None]) -> None:
    """Delete the checkpoints that `config` does not keep.

    Nothing is deleted before `keep_last` complete checkpoints were seen, `newest` among them:
    damaged ones do not count, whatever their step. What lies after `newest` is no part of this run.

    Args:
        newest: The checkpoint that was just published.
        config: What is kept.
        tell: Called with one line where something cannot be deleted, which ends nothing.

    Raises:
        CheckpointError: `newest` is damaged; nothing was deleted.
    """
    open_checkpoint(newest)
    num_kept = 1
    for folder in step_folders(newest.parent.parent):
        step, last = step_of(folder), step_of(newest)
        assert step is not None
        assert last is not None
        if step >= last or not config.keep_last:
            continue
        if num_kept < config.keep_last:
            num_kept += _is_complete(folder)
        elif not config.keep_every or step % config.keep_every:
            try:
                _discard(folder)
            except OSError as error:
                tell(f"note: {folder} could not be deleted ({error.strerror}) and stays")


def _is_complete(folder: Path) -> bool:
    try:
        open_checkpoint(folder)
    except CheckpointError:
        return False
    return True


def _discard(folder: Path) -> None:
    """Delete a checkpoint: its name first, so that no half of it is ever seen."""
    deleted = folder.with_name(_DELETED + folder.name)
    folder.rename(deleted)
    sync_folder(folder.parent)
    shutil.rmtree(deleted)


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _flush(path: Path) -> None:
    """Ask the disk to keep it; a rename can reach the disk before the file's content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
