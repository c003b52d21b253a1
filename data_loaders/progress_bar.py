"""A progress bar that a log can bear."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

_EACH_SCREEN, _EACH_LINE = 0.1, 30.0
"""Seconds between two states: on a terminal, and in a file, which keeps all of them."""


def progress_bar(items: Iterable[Any] | None = None, **settings: Any) -> tqdm:
    """A bar of tqdm on stderr, as wide as a terminal; a state each half minute where there is none.

    Args:
        items: As tqdm's first argument.
        settings: tqdm's.
    """
    seconds = _EACH_SCREEN if sys.stderr.isatty() else _EACH_LINE
    return tqdm(
        items,
        dynamic_ncols=True,
        mininterval=seconds,
        maxinterval=max(seconds, 10.0),
        **settings,
    )
