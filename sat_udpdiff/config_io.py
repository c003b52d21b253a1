"""Reading and writing a configuration: YAML value files, command-line overrides, one-line errors.

    --base configs/5b.yaml configs/multitask.yaml optimizer.lr=1e-5 data.tasks=[depth]

Later values win; sections merge key by key, lists are replaced. No file holds types or defaults:
those are the dataclasses in `config.py`.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from sat_udpdiff.config import Config, ConfigError
from sat_udpdiff.config_checks import check_device, notes, require, validate
from sat_udpdiff.config_sources import (
    Setting,
    build,
    dump_settings,
    files_and_words,
    plain,
    read_settings,
    read_value,
    setting_types,
)

__all__ = [
    "CommandLine",
    "ConfigError",
    "add_help_config",
    "check_device",
    "config_of",
    "dump_config",
    "load_config",
    "notes",
    "parse_cli",
    "require",
    "save_config",
    "setting_types",
    "to_values",
    "validate",
]


class CommandLine(NamedTuple):
    """What the user asked for: the program's own options, and the configuration."""

    options: argparse.Namespace
    config: Config


def load_config(base: Sequence[str], overrides: Sequence[str] = ()) -> Config:
    """The configuration of `base` files and `key.sub=value` overrides, checked.

    Args:
        base: YAML files; later ones win over earlier ones.
        overrides: `dotted.key=value`; they win over all files, later ones over earlier ones.

    Raises:
        ConfigError: One line naming the key, what was expected, what came, and from where.
    """
    settings = read_settings(base, overrides)
    config = build(Config, {key: setting.value for key, setting in settings.items()})
    try:
        validate(config)
    except ConfigError as error:
        raise ConfigError(f"{error}{origins(error.keys, settings)}", keys=error.keys) from None
    return config


def config_of(values: Mapping[str, Any], *, source: str) -> Config:
    """The configuration of plain values, as JSON holds them; all others are the defaults.

    Args:
        values: Dotted key of a setting -> its value.
        source: Where they were read, for messages.

    Raises:
        ConfigError: One line naming the key, what was expected and what came.
    """
    typed = {key: read_value(key, value, source=source) for key, value in values.items()}
    try:
        config = build(Config, typed)
        validate(config)
    except ConfigError as error:
        raise ConfigError(f"{error} (from {source})", keys=error.keys) from None
    return config


def save_config(config: Config, path: str | os.PathLike[str]) -> None:
    """Write every value of `config` as YAML; `load_config([path])` gives an equal configuration."""
    target = Path(path)
    partial = target.with_name(target.name + ".partial")
    partial.write_text(
        f"# Resolved configuration of a run. To use it again: --base {target.name}\n"
        + dump_config(config),
        encoding="utf-8",
    )
    partial.replace(target)


def dump_config(config: Config) -> str:
    """Every value of `config` as YAML text, in the order of the dataclasses."""
    return dump_settings(config)


def to_values(config: Config) -> dict[str, Any]:
    """`config` as nested dictionaries, lists and scalars, for YAML, JSON and wandb."""
    return plain(dataclasses.asdict(config))


def parse_cli(
    argv: Sequence[str] | None = None,
    *,
    description: str,
    extra: Callable[[argparse.ArgumentParser], None] | None = None,
) -> CommandLine:
    """Options and configuration of a command line; a wrong one ends the program in one line.

    Args:
        argv: The arguments without the program's name; None reads them from `sys.argv`.
        description: What the program does, for `--help`.
        extra: Adds the program's own options to the parser.

    Returns:
        The options (`dry_run` and what `extra` added) and the checked configuration.
    """
    parser = _parser(description)
    if extra is not None:
        extra(parser)
    options = parser.parse_intermixed_args(argv)
    files, words = files_and_words(options.base)
    try:
        config = load_config(files, words + options.overrides)
    except ConfigError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    # What launchers pass and what is now in `config` is nothing the program should look at.
    for name in ("base", "overrides", "local_rank"):
        delattr(options, name)
    return CommandLine(options, config)


def _parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: --base configs/tiny.yaml configs/multitask.yaml train.steps=100 seed=1",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--base",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="YAML value files; later ones win",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="settings that win over the files, such as optimizer.lr=1e-5",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the resolved configuration with its sizes, and exit",
    )
    add_help_config(parser)
    # The deepspeed launcher passes it; the rank itself is read from the environment.
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    return parser


def add_help_config(parser: argparse.ArgumentParser, *, cls: type = Config) -> None:
    """Give a program `--help-config`, which lists every setting with type, default and meaning.

    Args:
        parser: Of the program.
        cls: Its dataclass of settings, all of which have defaults.
    """
    parser.add_argument(
        "--help-config", action=_HelpConfig, const=cls, help="list every setting, and exit"
    )


class _HelpConfig(argparse.Action):
    """Prints the settings of `const`, and ends the program."""

    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **kwargs)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        # Parsing our own source for the docstrings is needed here only.
        from sat_udpdiff.config_help import describe_settings

        sys.stdout.write(describe_settings(self.const))
        parser.exit()


def origins(keys: Sequence[str], settings: Mapping[str, Setting]) -> str:
    """Where the settings of a failed check were written, for the end of its message."""
    if not keys:
        return ""
    places = [
        f"{key} from {settings[key].source}" if key in settings else f"{key} is the default"
        for key in keys
    ]
    return f" ({', '.join(places)})"
