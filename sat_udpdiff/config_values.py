"""One YAML value to one typed setting; the type of the field decides how a value is read.

YAML 1.1 reads `1e-5` as text and `off` as a boolean. Here the text of a scalar is kept and read
again by the field's own type, so that `optimizer.lr=1e-5` is a number and `log.wandb=off` a word.
"""

from __future__ import annotations

import difflib
import math
import re
import types
from collections.abc import Callable, Iterable
from typing import Any, Literal, Union, get_args, get_origin

import yaml

_CORE_TAG = "tag:yaml.org,2002:"
_NULL_TAG = _CORE_TAG + "null"
_BOOLEANS = {
    "true": True, "yes": True, "on": True,
    "false": False, "no": False, "off": False,
}  # fmt: skip
_WHOLE_NUMBER = re.compile(r"[-+]?[0-9](_?[0-9])*")
_NUMBER = re.compile(r"[-+]?([0-9][0-9_]*\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")


class Mismatch(ValueError):  # noqa: N818  (never reaches the user: config_io words the message)
    """A value that does not fit its type.

    Attributes:
        expected: What would have been right, in words.
        got: The value that came, as the user wrote it.
        index: Position inside a list, or None.
    """

    def __init__(self, *, expected: str, got: str, index: int | None = None) -> None:
        super().__init__(f"expected {expected}, got {got}")
        self.expected = expected
        self.got = got
        self.index = index


def parse(node: yaml.Node, *, kind: Any) -> Any:
    """The value of `node` as `kind`.

    Args:
        node: A composed (not constructed) YAML node.
        kind: int, float, bool, str, a Literal, `X | None`, `tuple[X, ...]` or `tuple[X, Y]`.

    Raises:
        Mismatch: The value does not fit.
    """
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        (inner,) = (arg for arg in get_args(kind) if arg is not types.NoneType)
        return None if _is_null(node) else parse(node, kind=inner)
    if origin is tuple:
        return _parse_tuple(node, kind=kind)
    text = _scalar_text(node, kind=kind)
    if origin is Literal:
        for option in get_args(kind):
            if text == str(option):
                return option
        raise Mismatch(expected=describe(kind) + hint(text, get_args(kind)), got=shown(node))
    value = _SCALARS[kind](text, _is_quoted(node))
    if value is None:
        raise Mismatch(expected=describe(kind), got=shown(node))
    return value


def describe(kind: Any) -> str:
    """`kind` in words, as error messages and the help say it."""
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        inner = " or ".join(describe(arg) for arg in get_args(kind) if arg is not types.NoneType)
        return f"{inner} or null"
    if origin is Literal:
        return "one of " + ", ".join(str(option) for option in get_args(kind))
    if origin is tuple:
        items = get_args(kind)
        if items[-1] is Ellipsis:
            return f"a list, each {describe(items[0])}"
        return "a list of " + " and ".join(describe(item) for item in items)
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]


def is_text(kind: Any) -> bool:
    """Whether a value of `kind` is words, which the command line passes without YAML rules."""
    if get_origin(kind) in (Union, types.UnionType):
        return any(is_text(arg) for arg in get_args(kind))
    if get_origin(kind) is Literal:
        return all(isinstance(option, str) for option in get_args(kind))
    return kind is str


def text_node(text: str) -> yaml.ScalarNode:
    """A plain scalar for `text`, with the null of YAML understood and nothing else."""
    tag = _NULL_TAG if text in ("null", "~") else _CORE_TAG + "str"
    return yaml.ScalarNode(tag, text)


def shown(node: yaml.Node) -> str:
    """`node` as a message quotes it, at most 60 characters of it."""
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return f"a list of {len(node.value)}"
    if _is_null(node):
        return "null"
    text = node.value if len(node.value) <= 60 else node.value[:57] + "..."
    return repr(text) if _is_quoted(node) or not text or not text.isprintable() else text


def hint(name: str, names: Iterable[object]) -> str:
    """`" (nearest: X)"` when one of `names` looks like `name`, else nothing."""
    close = difflib.get_close_matches(name, [str(known) for known in names], n=1, cutoff=0.5)
    return f" (nearest: {close[0]})" if close else ""


def _parse_tuple(node: yaml.Node, *, kind: Any) -> tuple[Any, ...]:
    items = get_args(kind)
    if not isinstance(node, yaml.SequenceNode):
        brackets = f"; write [{node.value}]" if isinstance(node, yaml.ScalarNode) else ""
        raise Mismatch(expected=describe(kind), got=shown(node) + brackets)
    if items[-1] is Ellipsis:
        items = items[:1] * len(node.value)
    if len(items) != len(node.value):
        raise Mismatch(expected=describe(kind), got=shown(node))
    values = []
    for index, (child, item) in enumerate(zip(node.value, items, strict=True)):
        try:
            values.append(parse(child, kind=item))
        except Mismatch as error:
            raise Mismatch(expected=error.expected, got=error.got, index=index) from None
    return tuple(values)


def _scalar_text(node: yaml.Node, *, kind: Any) -> str:
    is_plain = isinstance(node, yaml.ScalarNode) and node.tag.startswith(_CORE_TAG)
    if not is_plain or "python/" in node.tag:
        raise Mismatch(expected=describe(kind), got=shown(node))
    # `key:` with nothing behind it is null to YAML; for text it is the empty text.
    if _is_null(node) and not (kind is str and node.value == ""):
        raise Mismatch(expected=describe(kind), got="null")
    return node.value


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == _NULL_TAG


def _is_quoted(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.style in ("'", '"')


def _whole_number(text: str, quoted: bool) -> int | None:
    return int(text) if not quoted and _WHOLE_NUMBER.fullmatch(text) else None


def _number(text: str, quoted: bool) -> float | None:
    if quoted or not _NUMBER.fullmatch(text):
        return None
    value = float(text.replace("_", ""))
    return value if math.isfinite(value) else None


def _boolean(text: str, quoted: bool) -> bool | None:
    return None if quoted else _BOOLEANS.get(text.lower())


def _text(text: str, quoted: bool) -> str:
    return text


_SCALARS: dict[Any, Callable[[str, bool], Any]] = {
    int: _whole_number,
    float: _number,
    bool: _boolean,
    str: _text,
}
