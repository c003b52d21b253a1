"""The list of all settings for `--help-config`, taken from the dataclasses and their docstrings."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from operator import attrgetter
from typing import get_type_hints

from sat_udpdiff.config import Config
from sat_udpdiff.config_sources import setting_types
from sat_udpdiff.config_values import describe

_WIDTH = 100


def describe_settings(cls: type = Config) -> str:
    """Every setting with its type, default and meaning, as text for a terminal.

    Args:
        cls: Dataclass of settings, all of which have defaults.
    """
    defaults = cls()
    meanings = setting_docs(cls)
    lines: list[str] = []
    section = ""
    for key, kind in setting_types(cls).items():
        if key.rpartition(".")[0] != section:
            section = key.rpartition(".")[0]
            lines += ["", f"{section}: {meanings.get(section, '')}".rstrip(": ")]
        default = attrgetter(key)(defaults)
        shown = list(default) if isinstance(default, tuple) else default
        lines.append(f"  {key} = {'null' if shown is None else repr(shown)}  ({describe(kind)})")
        if key in meanings:
            lines += textwrap.wrap(
                meanings[key], width=_WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6
            )
    return "\n".join(lines).lstrip("\n") + "\n"


def setting_docs(cls: type = Config) -> dict[str, str]:
    """Dotted key -> the string under the field; section -> the docstring of its class."""
    return _docs_below(cls, prefix="")


def _docs_below(cls: type, *, prefix: str) -> dict[str, str]:
    node = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(node, ast.ClassDef)
    docs = {f"{prefix}{name}": text for name, text in _field_docs(node).items()}
    for name, kind in get_type_hints(cls).items():
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            docs[f"{prefix}{name}"] = _first_line(kind.__doc__ or "")
            docs |= _docs_below(kind, prefix=f"{prefix}{name}.")
    return docs


def _field_docs(node: ast.ClassDef) -> dict[str, str]:
    docs: dict[str, str] = {}
    for field, text in zip(node.body, node.body[1:], strict=False):
        match field, text:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(words))),
            ):
                docs[name] = " ".join(words.split())
    return docs


def _first_line(text: str) -> str:
    return text.partition("\n")[0]
