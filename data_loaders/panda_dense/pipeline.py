"""All stages in a row: each process does what is ready, whichever stage that is."""

import logging
import time
from collections.abc import Sequence

from data_loaders.panda_dense.steps import Step
from data_loaders.panda_dense.stopping import check_signals

_log = logging.getLogger(__name__)


def run(steps: Sequence[Step], *, names: Sequence[str], wait_seconds: float) -> bool:
    """Do stages until nothing is left to do, with however many other processes.

    A process takes what is ready, in the order of the stages. Where others are still at work on a
    stage it goes on with parts that are through it; where nothing is ready it waits for them.

    Args:
        steps: All stages, in their order.
        names: Those to do.
        wait_seconds: Between two looks whether others are done.

    Returns:
        Whether the stages asked for are complete. They are not where stages before them, that were
        not asked for, are not.

    Raises:
        DataError: See `Step.advance`.
        OSError: See `Step.advance`.
    """
    chosen = [step for step in steps if step.name in names]
    for step in chosen:
        step.check_settings()
    for step in chosen:
        if not step.is_complete():
            step.check()
    has_said = False
    while left := [step for step in chosen if not step.is_complete()]:
        check_signals()
        if _advance(left):
            has_said = False
            continue
        if not any(step.is_ready() for step in left):
            return False
        if not has_said:
            _log.info("waiting for other processes at %s", left[0].name)
            has_said = True
        time.sleep(wait_seconds)
    return True


def _advance(left: Sequence[Step]) -> bool:
    """One round through the stages; starts again at the front as soon as something was done."""
    return any(step.advance() for step in left)
