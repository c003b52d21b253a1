"""Which checkpoint a run goes on from: the newest whose every byte is as it was written."""

from collections.abc import Callable
from pathlib import Path

from sat_udpdiff.distributed import Place
from sat_udpdiff.training import ranks
from sat_udpdiff.weights.run_folder import (
    CHECKPOINTS,
    Checkpoint,
    CheckpointError,
    all_damaged,
    candidates,
    check_sum,
    open_checkpoint,
    passed_over,
)


def find_whole(
    run: Path, *, place: Place, tell: Callable[[str], None] = print
) -> Checkpoint | None:
    """The newest whole checkpoint of a run; None if the run has none.

    Every rank calls it. The files of a checkpoint are dealt out and read side by side, and what is
    damaged for one rank is passed over by all.

    Args:
        run: Run folder.
        place: Of this rank.
        tell: Called with one line for each damaged checkpoint that is passed over.

    Raises:
        CheckpointError: There are checkpoints, and all are damaged.
    """
    # A folder may look different from another machine, hence by the word of the first rank.
    names = [folder.name for folder in candidates(run)] if place.is_main else []
    names = ranks.gather(names, place=place)[0]
    for name in names:
        found, fault = _open(run / CHECKPOINTS / name, place=place)
        faults = [text for text in ranks.gather(fault, place=place) if text is not None]
        if not faults:
            return found
        tell(passed_over(faults[0]))
    if names:
        raise all_damaged(run, count=len(names))
    return None


def _open(folder: Path, *, place: Place) -> tuple[Checkpoint | None, str | None]:
    """The checkpoint, of which this rank has read its share; or what is wrong with it."""
    try:
        found = open_checkpoint(folder)
        for name in _share(found, place=place):
            check_sum(found, name)
    except (CheckpointError, OSError) as error:  # whatever it is: the others wait for a word
        return None, str(error)
    return found, None


def _share(found: Checkpoint, *, place: Place) -> list[str]:
    """Files that this rank reads; the largest are dealt out first, so that each gets one."""
    sizes = found.content["files"]
    names = sorted(found.sums, key=lambda name: (-sizes.get(name, 0), name))
    return names[place.rank :: place.world_size]
