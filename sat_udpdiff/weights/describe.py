"""The configuration that goes with weights from elsewhere, which bring none of ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sat_udpdiff.config import Config
from sat_udpdiff.config_io import load_config
from sat_udpdiff.weights.recognise import NetworkFacts
from sat_udpdiff.weights.run_folder import CONFIG_FILE

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
"""Value files of the families and tasks."""
SAT_TEXT_ENCODER = "t5-v1_1-xxl"
"""Folder of the text encoder in SAT's releases."""
_DENSE_CHANNELS = 32


def own_config_file(weights: Path) -> Path | None:
    """The config.yaml in a run, checkpoint or converted folder, or beside a weights file."""
    folders = [weights] if weights.is_dir() else []
    files = [folder / CONFIG_FILE for folder in (*folders, weights.parent)]
    return next((file for file in files if file.is_file()), None)


def describe(  # noqa: PLR0913 - all that a configuration is found by
    facts: NetworkFacts,
    *,
    place: str,
    weights: Path,
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
        weights: File or folder of the weights themselves.
        base: Value files of the user.
        settings: `key=value` of the user.
        expand: `duplicate` or `random`: the network is to be expanded to both tasks.

    Raises:
        ValueError: The shapes leave several possibilities; says which file to name.
        ConfigError: The user's files or settings cannot be used.
    """
    root = Path(place).expanduser()
    own = own_config_file(root) or own_config_file(weights)
    files = [str(own)] if own else [] if base else _files(facts, expand=expand)
    if expand is not None and (own or base) and facts.out_channels < _DENSE_CHANNELS and not base:
        files.append(str(CONFIGS / "multitask.yaml"))
    extra = [f"init.dense_channels={expand}"] if expand else []
    beside = [] if own else frozen_beside(place)
    return load_config([*files, *base], [*beside, *extra, *settings])


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


def frozen_beside(place: str) -> list[str]:
    """Settings that name the frozen networks in a folder of diffusers or of SAT; [] for others."""
    found = []
    root = Path(place).expanduser().resolve()
    if (root / "vae" / "config.json").is_file():
        found += [f"codec.weights={root}", "codec.subfolder=vae"]
    if (root / "text_encoder" / "config.json").is_file():
        found.append(f"text.weights={root}")
    elif (root / SAT_TEXT_ENCODER / "config.json").is_file():
        found.append(f"text.weights={root / SAT_TEXT_ENCODER}")
    return found
