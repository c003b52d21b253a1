"""Settings as they are written: YAML files and `key=value` words, with where each came from."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml

from sat_udpdiff.config import Config, ConfigError
from sat_udpdiff.config_values import Mismatch, hint, is_text, parse, shown, text_node

_Settings = TypeVar("_Settings")

_COMMAND_LINE = "the command line"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One value, and where it was written."""

    value: Any
    source: str


@cache
def setting_types(cls: type = Config) -> Mapping[str, Any]:
    """Dotted key of every setting -> its type, in the order of the dataclasses.

    Args:
        cls: Dataclass whose fields are settings, or sections: dataclasses themselves.
    """
    return dict(_flatten(cls, prefix=""))


def build(cls: type[_Settings], values: Mapping[str, Any]) -> _Settings:
    """An instance of a dataclass of settings; what `values` lacks is the default.

    Args:
        cls: See `setting_types`.
        values: Dotted key -> value of the right type.
    """
    return _build(cls, values, prefix="")


def load_settings(
    cls: type[_Settings], files: Sequence[str], overrides: Sequence[str] = ()
) -> _Settings:
    """An instance of a dataclass of settings; see `read_settings`.

    Raises:
        ConfigError: One line naming the key, what was expected, what came, and from where.
    """
    settings = read_settings(files, overrides, cls=cls)
    return build(cls, {key: setting.value for key, setting in settings.items()})


def dump_settings(settings: Any, *, head: str = "") -> str:
    """Every value of a dataclass of settings as YAML text, in the order of its fields.

    Args:
        settings: The dataclass.
        head: Lines above, comments.
    """
    values = plain(dataclasses.asdict(settings))
    return head + yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)


def plain(value: Any) -> Any:
    """What `dataclasses.asdict` made, with tuples as lists: for YAML and JSON."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return value


def files_and_words(entries: Sequence[str]) -> tuple[list[str], list[str]]:
    """What stands behind an option that takes several files, as files and as `key=value` words.

    `--base a.yaml key=value` gives argparse no way to see where the files end.
    """
    words = [entry for entry in entries if "=" in entry and not Path(entry).exists()]
    return [entry for entry in entries if entry not in words], words


def read_settings(
    files: Sequence[str], overrides: Sequence[str] = (), *, cls: type = Config
) -> dict[str, Setting]:
    """The settings of YAML files and `dotted.key=value` words, by key.

    Args:
        files: Later ones win over earlier ones.
        overrides: They win over all files, later ones over earlier ones.
        cls: See `setting_types`.

    Raises:
        ConfigError: As of `read_file` and `read_override`.
    """
    settings: dict[str, Setting] = {}
    for path in files:
        settings |= read_file(Path(path), cls=cls)
    for override in overrides:
        settings |= read_override(override, cls=cls)
    return settings


def read_file(path: Path, *, cls: type = Config) -> dict[str, Setting]:
    """The settings of one YAML file, by dotted key.

    Nodes are composed but never constructed, so no tag of the file can name a Python object.

    Args:
        path: The file.
        cls: See `setting_types`.

    Raises:
        ConfigError: The file cannot be read, is not YAML, or holds a wrong key or value.
    """
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError(f"{path}: cannot read the file: {reason}{_nearest_file(path)}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}{_yaml_problem(error)}") from None
    if node is None:
        return {}
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{path}: expected sections such as `train:`, got {shown(node)}")
    return _read_node(node, key="", source=str(path), types=setting_types(cls))


def read_override(override: str, *, cls: type = Config) -> dict[str, Setting]:
    """The settings of one `dotted.key=value` word of the command line.

    Args:
        override: The word.
        cls: See `setting_types`.

    Raises:
        ConfigError: It is not of that form, or holds a wrong key or value.
    """
    key, equals, text = override.partition("=")
    if not equals:
        advice = "files are given after --base" if Path(key).suffix else "as in train.steps=100"
        raise ConfigError(f"{override}: expected key=value on the command line ({advice})")
    key = key.strip()
    types = setting_types(cls)
    _check_key(key, source=_COMMAND_LINE, types=types)
    node = _override_node(text, kind=types.get(key), key=key)
    return _read_node(node, key=key, source=_COMMAND_LINE, types=types)


def read_value(key: str, value: Any, *, source: str) -> Any:
    """A plain value (of JSON) in the type of the setting `key`.

    Raises:
        ConfigError: It is not of that type.
    """
    node = yaml.compose(json.dumps(value), Loader=yaml.SafeLoader)
    try:
        return parse(node, kind=setting_types()[key])
    except Mismatch as error:
        where = key if error.index is None else f"{key}[{error.index}]"
        raise ConfigError(f"{where}: {error} (from {source})", keys=(key,)) from None


def _override_node(text: str, *, kind: Any, key: str) -> yaml.Node:
    """The value of an override; words stay as the shell passed them (`a: b`, `@x`, `#1`)."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader) or text_node("")
    except yaml.YAMLError as error:
        if not is_text(kind):
            raise ConfigError(f"{key}{_yaml_problem(error)} (from {_COMMAND_LINE})") from None
        return text_node(text)
    is_quoted = isinstance(node, yaml.ScalarNode) and node.style is not None
    return text_node(text) if is_text(kind) and not is_quoted else node


def _read_node(
    node: yaml.Node, *, key: str, source: str, types: Mapping[str, Any]
) -> dict[str, Setting]:
    """The settings at and below `key`, converted to their types."""
    place = f"{source} line {node.start_mark.line + 1}" if source != _COMMAND_LINE else source
    if key in types:
        try:
            return {key: Setting(value=parse(node, kind=types[key]), source=place)}
        except Mismatch as error:
            where = key if error.index is None else f"{key}[{error.index}]"
            raise ConfigError(f"{where}: {error} (from {place})", keys=(key,)) from None
    if not isinstance(node, yaml.MappingNode):
        # `train:` with every key below it commented out.
        if isinstance(node, yaml.ScalarNode) and node.value == "":
            return {}
        keys = ", ".join(sorted(name for name in types if name.startswith(f"{key}.")))
        message = f"{key}: expected a section with {keys}, got {shown(node)} (from {place})"
        raise ConfigError(message, keys=(key,))
    settings: dict[str, Setting] = {}
    seen: set[str] = set()
    for name_node, child in node.value:
        line = f"{source} line {name_node.start_mark.line + 1}"
        name = f"{key}.{name_node.value}" if key else str(name_node.value)
        if name in seen:
            raise ConfigError(f"{name}: written twice (from {line})", keys=(name,))
        seen.add(name)
        _check_key(name, source=line, types=types)
        settings.update(_read_node(child, key=name, source=source, types=types))
    return settings


def _check_key(key: str, *, source: str, types: Mapping[str, Any]) -> None:
    """Raise unless `key` is a setting or a section."""
    known = types
    sections = dict.fromkeys(name.partition(".")[0] for name in known if "." in name)
    if key in known or any(name.startswith(f"{key}.") for name in known):
        return
    # The right name in the wrong section, or with its section left out, says more than spelling.
    last = key.rpartition(".")[2]
    close = next((f" (nearest: {name})" for name in known if name.endswith(f".{last}")), "")
    close = close or hint(key, known) or f" (sections: {', '.join(sections)})"
    raise ConfigError(f"{key}: no such setting{close} (from {source})", keys=(key,))


def _flatten(cls: type, *, prefix: str) -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for name, kind in get_type_hints(cls).items():
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            flat += _flatten(kind, prefix=f"{prefix}{name}.")
        else:
            flat.append((f"{prefix}{name}", kind))
    return flat


def _build(cls: type, values: Mapping[str, Any], *, prefix: str) -> Any:
    arguments: dict[str, Any] = {}
    for name, kind in get_type_hints(cls).items():
        key = f"{prefix}{name}"
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            arguments[name] = _build(kind, values, prefix=f"{key}.")
        elif key in values:
            arguments[name] = values[key]
    return cls(**arguments)


def _yaml_problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    line = f" line {mark.line + 1}" if mark is not None else ""
    return f"{line}: not valid YAML: {getattr(error, 'problem', None) or 'unreadable characters'}"


def _nearest_file(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else Path("configs")
    if path.exists() or not folder.is_dir():
        return ""
    names = sorted(entry.name for entry in folder.glob("*.yaml"))
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    return f" (nearest: {folder / close[0]})" if close else ""
