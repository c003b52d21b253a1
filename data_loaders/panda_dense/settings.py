"""All settings of the data set pipeline: its config files and the words of the command line."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from data_loaders.panda_dense.caption import CaptionStageSettings
from data_loaders.panda_dense.cut import ClipSettings
from data_loaders.panda_dense.depth import DepthSettings
from data_loaders.panda_dense.measuring import MeasureSettings
from data_loaders.panda_dense.propagate import PropagateSettings
from data_loaders.panda_dense.runner import RunSettings
from data_loaders.panda_dense.segment import SegmentSettings
from data_loaders.panda_dense.select import SelectSettings
from data_loaders.panda_dense.sources import IngestSettings
from data_loaders.panda_dense.write import WriteSettings
from data_loaders.schema import DataError
from sat_udpdiff.config_sources import dump_settings, load_settings
from sat_udpdiff.distributed import find_place


@dataclass(frozen=True, kw_only=True, slots=True)
class PandaConfig:
    """One section per stage, and how the work is done."""

    ingest: IngestSettings = field(default_factory=IngestSettings)
    clip: ClipSettings = field(default_factory=ClipSettings)
    filter: MeasureSettings = field(default_factory=MeasureSettings)
    select: SelectSettings = field(default_factory=SelectSettings)
    segment: SegmentSettings = field(default_factory=SegmentSettings)
    propagate: PropagateSettings = field(default_factory=PropagateSettings)
    depth: DepthSettings = field(default_factory=DepthSettings)
    caption: CaptionStageSettings = field(default_factory=CaptionStageSettings)
    write: WriteSettings = field(default_factory=WriteSettings)
    run: RunSettings = field(default_factory=RunSettings)


def load(files: Sequence[str], overrides: Sequence[str] = ()) -> PandaConfig:
    """The settings of files and `dotted.key=value` words; later ones win.

    Raises:
        ConfigError: One line naming the key, what was expected, what came, and from where.
    """
    return load_settings(PandaConfig, files, overrides)


def dump(config: PandaConfig) -> str:
    """Every value as YAML text, which `load` reads again."""
    return dump_settings(config, head="# Settings of this data set; later commands read them.\n")


def resolve_device(name: str) -> torch.device:
    """The device of `run.device`.

    Raises:
        DataError: It is none, or there is no such device here.
    """
    if name == "auto":
        return find_place()[0].device
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DataError(f"run.device: expected auto, cpu or cuda, got {name!r}") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DataError(
            f"run.device: expected one of the {torch.cuda.device_count()} GPU(s) that torch sees, "
            f"got {name!r}"
        )
    return device
