"""Names of tensors in messages: all of them, and still short."""

import re
from collections.abc import Iterable

# The first number between dots: the layer, or the level of the codec.
_NUMBERED = re.compile(r"(.*?\.)(\d+)(\..*)")


def listed(what: str, names: Iterable[str]) -> list[str]:
    """[] without names, else one phrase that has every one: `2 missing keys: a.{0-1}.b`."""
    names = list(names)
    if not names:
        return []
    return [f"{len(names)} {what} {'key' if len(names) == 1 else 'keys'}: {shortened(names)}"]


def shortened(names: Iterable[str]) -> str:
    """Names with the layers of equal ones drawn together: `a.{0-3,7}.b, c`."""
    groups: dict[tuple[str, str], list[int]] = {}
    for name in names:
        match = _NUMBERED.fullmatch(name)
        head, number, tail = match.groups() if match else (name, "", "")
        groups.setdefault((head, tail), []).extend([int(number)] if number else [])
    return ", ".join(f"{head}{_ranges(numbers)}{tail}" for (head, tail), numbers in groups.items())


def _ranges(numbers: list[int]) -> str:
    if len(numbers) < 2:
        return "".join(map(str, numbers))
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return "{" + ",".join(f"{a}-{b}" if a < b else f"{a}" for a, b in runs) + "}"
