"""All settings of an evaluation: its value files and the words of the command line."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from data_loaders.panda_dense.depth import DepthSettings
from data_loaders.panda_dense.propagate import PropagateSettings
from data_loaders.panda_dense.segment import SegmentSettings
from sat_udpdiff.config import ConfigError, Task
from sat_udpdiff.config_sources import dump_settings, load_settings
from sat_udpdiff.evaluation.depth import Align
from sat_udpdiff.evaluation.fvd import FvdProtocol
from sat_udpdiff.evaluation.truth_measures import Scored

MeasureName = Literal[
    "subject_consistency",
    "background_consistency",
    "motion_smoothness",
    "fvd",
    "depth",
    "depth_comparison",
    "segmentation",
    "edge",
    "tiny",
    "tiny_fvd",
    "consistency",
    "agreement",
    "entities",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class VBenchSettings:
    """Networks of VBench's three measures; what is not there is named with where users get it."""

    dino: str = "facebook/dino-vitb16"
    """subject_consistency: dino_vitbase16_pretrain.pth, transformers' folder, or a hub id."""
    clip: str = "openai/clip-vit-base-patch32"
    """background_consistency: ViT-B-32.pt, transformers' folder, or a hub id."""
    motion: Literal["amt", "flow"] = "amt"
    """motion_smoothness: amt is VBench's; flow is ours, scored as motion_smoothness_flow, and does
    not compare with VBench's."""
    amt: str = "~/.cache/vbench/amt_model/amt-s.pth"
    """motion amt: amt-s.pth or its folder, where VBench keeps it."""
    package: str | None = None
    """motion amt: folder of the vbench package; null = the installed one."""
    chunk_frames: int = 8
    """Frames that go through DINO or CLIP at once; of no influence but for memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FvdOptions:
    """Frechet video distance."""

    weights: str = ""
    """I3D's weights or their folder: i3d_torchscript.pt (styleganv), i3d_pretrained_400.pt (cdfvd);
    empty = the working folder."""
    protocol: FvdProtocol = "styleganv"
    """What is done to pixels, and what the covariance is divided by; the two do not compare."""
    min_videos: int = 64
    """Samples of a task and references below which there is no distance; of tiny_fvd, too."""
    resamples: int = 100
    """Of the bootstrap."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthScoreSettings:
    """How depth is scored against its truth (measures depth and depth_comparison)."""

    align: tuple[Align, ...] = ("none", "lstsq")
    """A pair of scores each; the paper states none, DepthCrafter's program takes lstsq."""
    scored: Scored = "all"
    """above_least: where the truth is above .001, as in DepthCrafter's program."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptSettings:
    """What a network is asked for (`--load`)."""

    source: Literal["reference", "world", "file"] = "reference"
    """reference: captions of the reference shards; world: of held-out clips of the synthetic world;
    file: lines of a text file."""
    file: str = ""
    """source file: UTF-8 text, a prompt per line."""
    count: int = 1024
    """The paper's 1024; of a file at most all its lines."""
    caption: Literal["long", "short"] = "long"


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleSettings:
    """How a network is sampled (`--load`)."""

    seed: int = 0
    """Prompt number k is sampled with seed + k, for every task and network alike."""
    num_steps: int | None = None
    """null = those of the network's configuration."""
    tasks: tuple[Task, ...] = ()
    """Of those that the network was trained on; none = all of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceSettings:
    """Real videos to compare with."""

    source: Literal["none", "shards", "world"] = "shards"
    """shards: `--reference` or `shards`; world: the clips of the prompts, rendered."""
    shards: str = ""
    """Folder of shards, its address, or the output of the data set pipeline, whose held-out split
    is taken then. Empty: no reference set, and no score that needs one."""
    count: int = 1024
    """Clips; fewer are taken where there are fewer."""
    world: Literal["simple", "full"] = "simple"
    """source world, here or of the prompts: which one."""
    world_seed: int = 0
    """source world, here or of the prompts: its seed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSettings:
    """How the work is done; no number depends on it."""

    cache: str = ""
    """Folder of features; empty = `features` in the output."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    shown: int = 1
    """Samples that the page shows of each score: so many of the best, the middle and the worst."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """Which videos, judged by what."""

    measures: tuple[MeasureName, ...] = ("consistency", "agreement", "entities")
    """In the order of the report."""
    prompts: PromptSettings = field(default_factory=PromptSettings)
    sample: SampleSettings = field(default_factory=SampleSettings)
    reference: ReferenceSettings = field(default_factory=ReferenceSettings)
    vbench: VBenchSettings = field(default_factory=VBenchSettings)
    fvd: FvdOptions = field(default_factory=FvdOptions)
    depth_scores: DepthScoreSettings = field(default_factory=DepthScoreSettings)
    depth: DepthSettings = field(default_factory=DepthSettings)
    """What the true depth of a sample's video is made with, as in the data set's pipeline;
    `depth.depth_anything` is what depth_comparison judges."""
    segment: SegmentSettings = field(default_factory=SegmentSettings)
    """Likewise of its true entities, in the first frame."""
    propagate: PropagateSettings = field(default_factory=PropagateSettings)
    """And through the clip."""
    run: RunSettings = field(default_factory=RunSettings)


def load(files: Sequence[str], overrides: Sequence[str] = ()) -> EvaluationConfig:
    """The settings of files and `dotted.key=value` words; later ones win.

    Raises:
        ConfigError: One line naming the key, what was expected, what came, and from where.
    """
    config = load_settings(EvaluationConfig, files, overrides)
    check(config)
    return config


def dump(config: EvaluationConfig) -> str:
    """Every value as YAML text, which `load` reads again."""
    head = "# Settings of this evaluation. To use them again: --config evaluation.yaml\n"
    return dump_settings(config, head=head)


def check(config: EvaluationConfig) -> None:
    """See that values are possible, and go together.

    Raises:
        ConfigError: One is not; names the key.
    """
    least = {
        "prompts.count": (config.prompts.count, 1),
        "sample.seed": (config.sample.seed, 0),
        "sample.num_steps": (1 if config.sample.num_steps is None else config.sample.num_steps, 1),
        "reference.count": (config.reference.count, 1),
        "reference.world_seed": (config.reference.world_seed, 0),
        "run.shown": (config.run.shown, 1),
        "vbench.chunk_frames": (config.vbench.chunk_frames, 1),
        "fvd.min_videos": (config.fvd.min_videos, 2),
        "fvd.resamples": (config.fvd.resamples, 2),
        "depth_scores.align": (len(config.depth_scores.align), 1),
    }
    for key, (value, minimum) in least.items():
        if value < minimum:
            raise ConfigError(f"{key}: expected at least {minimum}, got {value}", keys=(key,))
    if not config.measures:
        raise ConfigError("measures: expected one or more, got none", keys=("measures",))
    if len(set(config.measures)) < len(config.measures):
        raise ConfigError(
            f"measures: expected each once, got {', '.join(config.measures)}", keys=("measures",)
        )
    if len(set(config.sample.tasks)) < len(config.sample.tasks):
        raise ConfigError(
            f"sample.tasks: expected each once, got {', '.join(config.sample.tasks)}",
            keys=("sample.tasks",),
        )
    if (config.prompts.source == "file") != bool(config.prompts.file):
        raise ConfigError(
            "prompts.file: expected a file with prompts.source=file and nothing else, "
            f"got {config.prompts.file!r} with source {config.prompts.source}",
            keys=("prompts.file", "prompts.source"),
        )
