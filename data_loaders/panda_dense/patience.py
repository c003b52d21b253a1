"""A disk that is full may have space again: whoever shares it clears up, or a quota is raised."""

import errno
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

_log = logging.getLogger(__name__)

_Result = TypeVar("_Result")

_FULL = (errno.ENOSPC, errno.EDQUOT)
_LOOK_AGAIN_SECONDS = 30.0
"""Between two looks."""


def is_full(error: BaseException) -> bool:
    """Whether an error says that a disk, or the user's share of it, is full."""
    return isinstance(error, OSError) and error.errno in _FULL


def patiently(write: Callable[[], _Result], *, where: Path, seconds: float) -> _Result:
    """Write something; where the disk is full, wait for space.

    Args:
        write: Leaves nothing half-written when it fails, and may be called again.
        where: For messages.
        seconds: How long to wait at most.

    Raises:
        OSError: The disk is still full, or something else is wrong.
    """
    give_up = time.monotonic() + seconds
    swept = False
    while True:
        try:
            return write()
        except FileNotFoundError:
            # Another process took this one's claim for dead and swept its file away unfinished.
            if swept:
                raise
            swept = True
        except OSError as error:
            left = give_up - time.monotonic()
            if not is_full(error) or left <= 0:
                raise
            _log.warning("%s: no space left: waiting %.0f s for some", where, left)
            time.sleep(min(_LOOK_AGAIN_SECONDS, left))
