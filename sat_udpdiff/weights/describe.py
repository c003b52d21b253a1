"""The configuration that goes with weights from elsewhere, which bring none of ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sat_udpdiff.config import Config, ConfigError
from sat_udpdiff.config_io import load_config
from sat_udpdiff.encoders.source import TINY
from sat_udpdiff.weights.beside import frozen_beside, own_config_file
from sat_udpdiff.weights.recognise import NetworkFacts
from sat_udpdiff.weights.run_folder import CONFIG_FILE

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
"""Value files of the families and tasks."""
_DENSE_CHANNELS = 32


def describe(
    facts: NetworkFacts,
    *,
    place: str,
    base: Sequence[str] = (),
    settings: Sequence[str] = (),
    expand: str | None = None,
) -> Config:
    """The configuration of a network on the disk.

    Its own config.yaml where there is one, else the family's file by the shapes and the task file
    by channels and table; frozen networks that lie beside it are named; what the user gives wins.

    Args:
        facts: Of the weights.
        place: What the user named: a folder may hold the frozen networks too.
        base: Value files of the user.
        settings: `key=value` of the user.
        expand: `duplicate` or `random`: the network is to be expanded to both tasks.

    Raises:
        ValueError: The shapes leave several possibilities; says which file to name.
        ConfigError: The user's files or settings cannot be used.
    """
    own = None if place == TINY else own_config_file(place)
    files = [str(own)] if own else [] if base else _files(facts, expand=expand)
    words = [*frozen_beside(place), *settings]
    if expand is None:
        return load_config([*files, *base], words)
    if files and load_config(files).model.dense_groups == 0:
        # What was described is what shall be expanded; what the user gives comes after.
        files.append(str(CONFIGS / "multitask.yaml"))
    config = load_config([*files, *base], [f"init.dense_channels={expand}", *words])
    if config.model.dense_groups == 0:
        raise ConfigError("model.dense_groups: expected 1 together with --expand, got 0")
    return config


def _files(facts: NetworkFacts, *, expand: str | None) -> list[str]:
    """Value files of the family and of the task."""
    family = facts.family
    if family is None:
        raise ValueError(
            f"this is {facts.name}, which was not released and brings no {CONFIG_FILE}; name its "
            "configuration by --base"
        )
    if facts.out_channels < _DENSE_CHANNELS and expand is None:
        task = "baseline"
    elif facts.has_task_table or facts.out_channels < _DENSE_CHANNELS:
        task = "multitask"
    else:
        raise ValueError(
            f"these weights make one dense map and do not say which; name it by --base "
            f"configs/{family}.yaml --base configs/segmentation.yaml, or configs/depth.yaml"
        )
    return [str(CONFIGS / f"{name}.yaml") for name in (family, task)]
