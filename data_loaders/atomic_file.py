"""Files that are whole or not there: written under another name, flushed to the disk, renamed."""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

PARTIAL = ".partial"
"""Ending of the other name."""
# Of other processes' files, which may write the same one; also on other machines, so no process id.
_RANDOM_BYTES = 6


def partial_of(path: Path) -> Path:
    """A name for a file until it is whole; another one at each call."""
    return path.with_name(f"{path.name}.{secrets.token_hex(_RANDOM_BYTES)}{PARTIAL}")


def partials_of(path: Path) -> Iterator[Path]:
    """Files that lie under a name of `partial_of`: of writers at work, or that were killed."""
    for other in path.parent.glob(f"*{PARTIAL}"):
        if other.name.startswith(f"{path.name}."):
            yield other


def sync_folder(folder: Path) -> None:
    """Flush the names of a folder: a rename is lost with the power until then.

    Raises:
        OSError: The disk is not writable.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # What file systems say that cannot: SMB, some of FUSE.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that takes its name when the block ends without an error.

    Of several that write one file at the same time, the last to end has it, whole.

    Args:
        path: Name of the whole file; an older one is replaced in one step.

    Yields:
        The file under its other name. After an error nothing of it is left, and an older file of
        the name is as it was; it is lost where only flushing the folder fails.

    Raises:
        OSError: The disk is full or not writable.
    """
    partial = partial_of(path)
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    try:
        sync_folder(path.parent)
    except BaseException:
        # The older file is gone; a new one that may be lost is not to be relied on.
        path.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """Write a whole file by `atomic_file`."""
    with atomic_file(path) as file:
        file.write(content)
