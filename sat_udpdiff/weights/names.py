"""Names of tensors in messages: all of them, and still short."""

import re
from collections.abc import Iterable, Mapping

# The first number between dots: the layer, or the level of the codec.
_NUMBERED = re.compile(r"(.*?\.)(\d+)(\..*)")


def listed(what: str, names: Iterable[str]) -> list[str]:
    """[] without names, else one phrase that has every one: `2 missing keys: a.{0-1}.b`."""
    names = list(names)
    if not names:
        return []
    return [f"{len(names)} {what} {'key' if len(names) == 1 else 'keys'}: {shortened(names)}"]


def differences(
    found: Mapping[str, tuple[int, ...]], *, expected: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """Every missing, unexpected and mis-shaped key, a phrase per kind; [] where all fit.

    Args:
        found: Shapes by name.
        expected: Shapes by name of what shall hold them.
    """
    problems = listed("missing", sorted(expected.keys() - found.keys()))
    problems += listed("unexpected", sorted(found.keys() - expected.keys()))
    wrong: dict[str, list[str]] = {}
    for name in sorted(expected.keys() & found.keys()):
        if expected[name] != found[name]:
            wrong.setdefault(f"expected {expected[name]}, got {found[name]}", []).append(name)
    return problems + [f"{listed('mis-shaped', those)[0]} ({how})" for how, those in wrong.items()]


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
