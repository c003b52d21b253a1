"""Files that are whole or not there: written under another name, flushed to the disk, renamed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

PARTIAL = ".partial"
"""Ending of the other name."""


def partial_of(path: Path) -> Path:
    """Name that a file has until it is whole."""
    return path.with_name(path.name + PARTIAL)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that takes its name when the block ends without an error.

    Args:
        path: Name of the whole file; an older one is replaced in one step.

    Yields:
        The file under its other name. After an error nothing of it is left, and an older file of
        the name is as it was.

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


def write_atomically(path: Path, content: bytes) -> None:
    """Write a whole file by `atomic_file`."""
    with atomic_file(path) as file:
        file.write(content)
