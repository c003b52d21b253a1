"""In which setting what was made differs from what is wanted."""

import json
from collections.abc import Mapping
from typing import Any


def difference(stored: Mapping[str, Any], wanted: Mapping[str, Any], *, prefix: str = "") -> str:
    """The first setting in which two records differ, as 'KEY was X, now Y'; '' where none does.

    Args:
        stored: JSON values that something was made with.
        wanted: Those of now.
        prefix: Of the keys, such as 'codec.'.
    """
    for key in sorted({*stored, *wanted}):
        was, now = stored.get(key), wanted.get(key)
        if isinstance(was, dict) and isinstance(now, dict):
            inner = difference(was, now, prefix=f"{prefix}{key}.")
            if inner:
                return inner
        elif was != now:
            return f"{prefix}{key} was {_short(was)}, now {_short(now)}"
    return ""


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
