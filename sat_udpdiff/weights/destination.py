"""The folder that a conversion writes: checked before, whole or not there after."""

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from data_loaders.atomic_file import partial_of, sync_folder
from sat_udpdiff.weights.run_folder import CONFIG_FILE

_MODEL_INDEX = "model_index.json"


def check_free(folder: Path, *, overwrite: bool, kept: Iterable[Path]) -> None:
    """Refuse a place that is taken.

    Args:
        folder: Where to.
        overwrite: Let an older conversion be replaced; nothing else is.
        kept: What the result is made of or will point to; none of it may lie in the folder.

    Raises:
        ValueError: It is taken; says what would be lost.
    """
    folder = folder.resolve()
    if not folder.exists():
        return
    if not overwrite:
        raise ValueError(
            f"{folder}: exists already; give --overwrite to replace it, or another folder"
        )
    for needed in (place.resolve() for place in kept):
        if folder == needed or folder in needed.parents:
            raise ValueError(
                f"{folder}: expected a folder other than the source to replace: {needed} is in it"
            )
    if not any((folder / name).is_file() for name in (CONFIG_FILE, _MODEL_INDEX)):
        raise ValueError(
            f"{folder}: expected an older conversion to replace, with {CONFIG_FILE} or "
            f"{_MODEL_INDEX} in it; delete it yourself if it may go"
        )


def check_space(folder: Path, *, need: int) -> None:
    """Refuse a disk without room.

    Raises:
        ValueError: With both numbers.
    """
    parent = next(place for place in folder.resolve().parents if place.exists())
    free = shutil.disk_usage(parent).free
    if need > free:
        raise ValueError(
            f"{folder}: no space: the result takes {need:,} bytes, {free:,} are free on {parent}"
        )


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A new folder under another name, which takes its own when the block ends without an error.

    Yields:
        The folder to write into. After an error nothing of it is left, and an older one is as it
        was.
    """
    folder = folder.resolve()  # a link keeps pointing to it
    staging, older = partial_of(folder), partial_of(folder)
    try:
        staging.mkdir(parents=True)
        yield staging
        sync_folder(staging)
        if folder.exists():
            folder.rename(older)
        staging.rename(folder)
    except BaseException:
        if older.exists() and not folder.exists():
            older.rename(folder)
        shutil.rmtree(staging, ignore_errors=True)
        raise
    sync_folder(folder.parent)
    shutil.rmtree(older, ignore_errors=True)
