"""Steps of a save that succeed on all ranks or fail on all."""

import shutil
from pathlib import Path
from typing import Any

from sat_udpdiff.distributed import Place, node_name
from sat_udpdiff.training import ranks
from sat_udpdiff.training.checkpoint_files import staging_of
from sat_udpdiff.weights.run_folder import CheckpointError, step_folders


class all_or_none:  # noqa: N801 - reads as a statement
    """Run a block that only some ranks fill; if it fails on one, the first cleans up and all raise.

    No communication belongs inside, so a rank that fails leaves no other waiting, whatever it
    fails with.

    Args:
        target: The checkpoint that is being saved; its staging folder goes with a failure.
        place: Of this rank.
        cleans: Whether it does.

    Raises:
        CheckpointError: On all ranks, with the message of the first that failed; a rank whose own
            failure is neither this nor an OSError raises that one, for its traceback.
    """

    def __init__(self, target: Path, *, place: Place, cleans: bool = True) -> None:
        self._target, self._place, self._cleans = target, place, cleans

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None and not isinstance(error, Exception):
            return  # the end of this process, which the others notice
        message = None if error is None else self._explain(error)
        messages = ranks.gather(message, place=self._place)
        failures = [text for text in messages if text is not None]
        if not failures:
            return
        if self._place.is_main and self._cleans:
            shutil.rmtree(staging_of(self._target), ignore_errors=True)
        if error is None or isinstance(error, OSError | CheckpointError):
            raise CheckpointError(failures[0]) from error

    def _explain(self, error: Exception) -> str:
        if isinstance(error, CheckpointError):
            return str(error)
        if isinstance(error, OSError):
            return _explain(error.strerror or str(error), target=self._target)
        rank = f"rank {self._place.rank} of {self._place.world_size} on {node_name()}"
        return _explain(f"{rank} failed: {error!r}", target=self._target)


def _explain(reason: str, *, target: Path) -> str:
    return (
        f"{target.parent}: cannot write the checkpoint {target.name}: {reason}"
        f"{_describe_disk(staging_of(target))}; {what_is_kept(target.parent.parent)}"
    )


def _describe_disk(staging: Path) -> str:
    try:
        written = sum(file.stat().st_size for file in staging.glob("*"))
        free = shutil.disk_usage(next(p for p in staging.parents if p.exists())).free
    except OSError:  # the disk itself, or another rank that renames its files just now
        return ""
    return f" ({written:,} bytes were written, {free:,} are free)"


def what_is_kept(run: Path) -> str:
    """Names of a run's checkpoints, for the end of a message."""
    kept = [folder.name for folder in reversed(step_folders(run))]
    return f"{', '.join(kept)} kept" if kept else "there is no older checkpoint"
