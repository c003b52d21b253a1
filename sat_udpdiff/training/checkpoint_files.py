"""The files of a checkpoint, as one process writes, publishes and deletes them.

Whatever is not complete lies under a name that no reader looks at: a folder gets its name when all
of it is on the disk, and loses it before the first of its files is deleted. So a process may be
killed anywhere in here.
"""

import hashlib
import json
import os
import secrets
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


def clear_staging(folder: Path, *, tell: Callable[[str], None], needed: Path | None = None) -> None:
    """Remove what a process that was killed, or a disk that failed, left among the checkpoints.

    Args:
        folder: Of the checkpoints.
        tell: Called with one line for each leftover that cannot be deleted, which ends nothing.
        needed: Name under which a save is about to write.

    Raises:
        OSError: What lies under `needed` cannot be deleted.
    """
    for leftover in folder.glob(f"{STAGING}*"):
        try:
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        except OSError as error:  # say, a file that another machine has open
            if leftover == needed:
                raise
            tell(_stays(leftover, error))


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
        # What of it cannot be deleted now, the next save tells.
        shutil.rmtree(_set_aside(target), ignore_errors=True)
    staging.rename(target)
    sync_folder(target.parent)
    pointer = target.with_name(STAGING + LATEST)
    _write(pointer, f"{target.name}\n".encode())
    pointer.replace(target.with_name(LATEST))
    sync_folder(target.parent)


def prune(
    newest: Path, *, config: CheckpointConfig, tell: Callable[[str], None], known: set[Path]
) -> None:
    """Delete the checkpoints that `config` does not keep.

    Nothing is deleted before `keep_last` whole checkpoints were seen, `newest` among them: damaged
    ones do not count, whatever their step. What lies after `newest` is no part of this run.

    Each time, sizes and headers of those that count are looked at. Where that leaves something to
    delete, every byte of `newest` is compared with its sum, and of the others once by each process:
    one that was whole then counts while its sizes and headers stay as they were. A disk may answer
    from its memory of what was just written. Checkpoints of version 1 have no sums.

    Args:
        newest: The checkpoint that was just published.
        config: What is kept.
        tell: Called with one line where something cannot be deleted, which ends nothing.
        known: Checkpoints whose bytes this process has compared; those that are now are added.

    Raises:
        CheckpointError: `newest` is damaged; nothing was deleted.
    """
    open_checkpoint(newest)
    if not _superfluous(newest, config=config, is_whole=_opens):
        return
    open_checkpoint(newest, verify=True)
    known.add(newest)

    def is_whole(folder: Path) -> bool:
        if not _opens(folder, verify=folder not in known):
            return False
        known.add(folder)
        return True

    for folder in _superfluous(newest, config=config, is_whole=is_whole):
        try:
            shutil.rmtree(_set_aside(folder))
        except OSError as error:
            tell(_stays(folder, error))


def _superfluous(
    newest: Path, *, config: CheckpointConfig, is_whole: Callable[[Path], bool]
) -> list[Path]:
    """What `prune` deletes if those are whole of which `is_whole` says so, and `newest` is."""
    last, num_kept, found = step_of(newest), 1, []
    assert last is not None
    for folder in step_folders(newest.parent.parent) if config.keep_last else []:
        step = step_of(folder)
        assert step is not None
        if step >= last:
            continue
        if num_kept < config.keep_last:
            num_kept += is_whole(folder)
        elif not config.keep_every or step % config.keep_every:
            found.append(folder)
    return found


def _opens(folder: Path, *, verify: bool = False) -> bool:
    try:
        open_checkpoint(folder, verify=verify)
    except CheckpointError:
        return False
    return True


def _set_aside(folder: Path) -> Path:
    """Take its name from a checkpoint that is to be deleted, so that no half of it is ever seen.

    Returns:
        Where it lies; a new name each time, for an old one may not have been deleted yet.
    """
    aside = folder.with_name(f"{_DELETED}{secrets.token_hex(4)}_{folder.name}")
    folder.rename(aside)
    sync_folder(folder.parent)
    return aside


def _stays(path: Path, error: OSError) -> str:
    return f"note: {path} could not be deleted ({error.strerror}) and stays"


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
