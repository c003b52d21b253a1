"""Under which terms the weights of each stage come, by hub id, and where that is said.

Nothing here is advice, and authors change their terms: the source named is what counts.
"""

from dataclasses import dataclass
from fnmatch import fnmatch

from data_loaders.panda_dense.models import ModelFacts

UNKNOWN = "unknown: ask those who made the weights"
"""What stands for the terms of weights that the table does not know."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Licence:
    """Terms of one family of weights."""

    family: str
    """Shell pattern of lower-case hub ids; folders are matched by their own name."""
    terms: str
    """In a few words, with the licence's name."""
    source: str
    """Where the authors say so."""


_STANDS_ON_CARD = "as its model card on the hub names it; read it there"

# The first pattern that fits counts.
LICENCES = (
    Licence(
        family="tencent/depthcrafter",
        terms="DepthCrafter licence: academic, research and education only, no commercial or "
        "production use",
        source="LICENSE of github.com/Tencent/DepthCrafter at e518612",
    ),
    Licence(
        family="stabilityai/stable-video-diffusion-*",
        terms="Stability AI community licence: research and non-commercial use; commercial use on "
        "Stability AI's conditions",
        source=_STANDS_ON_CARD,
    ),
    Licence(
        family="depth-anything/depth-anything-v2-small*",
        terms="Apache-2.0",
        source="README.md of github.com/DepthAnything/Depth-Anything-V2 at a561b84",
    ),
    Licence(
        family="depth-anything/depth-anything-v2-*",
        terms="CC BY-NC 4.0: no commercial use",
        source="README.md of github.com/DepthAnything/Depth-Anything-V2 at a561b84",
    ),
    Licence(
        family="languagebind/video-llava-*",
        terms="code Apache-2.0; the model is a research preview for non-commercial use, under "
        "LLaMA's model licence and OpenAI's terms for the data it was trained on",
        source="README.md of github.com/PKU-YuanGroup/Video-LLaVA at 984e65b",
    ),
    Licence(
        family="qwen/qwen2.5-vl-3b*",
        terms="Qwen research licence: no commercial use",
        source=_STANDS_ON_CARD,
    ),
    Licence(
        family="qwen/qwen2.5-vl-72b*",
        terms="Qwen licence: commercial use with conditions for very large services",
        source=_STANDS_ON_CARD,
    ),
    Licence(family="qwen/qwen2.5-vl-*", terms="Apache-2.0", source=_STANDS_ON_CARD),
    Licence(family="qwen/qwen3-vl-*", terms="Apache-2.0", source=_STANDS_ON_CARD),
    Licence(
        family="facebook/sam2*",
        terms="Apache-2.0",
        source="README.md of github.com/facebookresearch/sam2 at 2b90b9f",
    ),
    Licence(
        family="qqlu1992/adobe_entityseg",
        terms="CC BY-NC 4.0: no commercial use",
        source="Entityv2/README.md (code and models) of github.com/qqlu/Entity at 6e7e13a",
    ),
    Licence(
        family="facebook/mask2former-*",
        terms="MIT",
        source="README.md of github.com/facebookresearch/Mask2Former at 9b0651c",
    ),
    Licence(
        family="openai/clip-*",
        terms="MIT",
        source="LICENSE of github.com/openai/CLIP",
    ),
    Licence(
        family="laion/aesthetic-predictor",
        terms="MIT",
        source="LICENSE of github.com/LAION-AI/aesthetic-predictor at 76bf002",
    ),
    Licence(
        family="christophschuhmann/improved-aesthetic-predictor",
        terms="Apache-2.0",
        source="github.com/christophschuhmann/improved-aesthetic-predictor; read it there",
    ),
    Licence(
        family="torchvision/raft*",
        terms="BSD-3-Clause",
        source="LICENSE of github.com/pytorch/vision",
    ),
)


def find_licence(weights: str) -> Licence | None:
    """The entry for a hub id, or for a folder of the same name; None where there is none."""
    name = weights.rstrip("/").lower()
    for licence in LICENCES:
        if fnmatch(name, licence.family):
            return licence
    last = name.rsplit("/", 1)[-1]
    for licence in LICENCES:
        if fnmatch(last, licence.family.split("/", 1)[1]):
            return licence
    return None


def license_of(weights: str, *, otherwise: str) -> str:
    """What `ModelFacts.license` says of a set of weights.

    Args:
        weights: Setting: hub id or folder.
        otherwise: Hub id whose terms to name, as likely, where the table does not know them.
    """
    known = find_licence(weights)
    if known is not None:
        return known.terms
    likely = find_licence(otherwise)
    return f"{UNKNOWN}; those of {otherwise}: {likely.terms}" if likely else UNKNOWN


def licence_notice(facts: ModelFacts) -> str:
    """One line to print before a model is used: its name, its terms, and where they are said."""
    sources = [
        licence.source
        for name in facts.model.split(" on ")
        if (licence := find_licence(name)) is not None
    ]
    said = f" ({'; '.join(dict.fromkeys(sources))})" if sources else ""
    return f"{facts.model}: {facts.license or UNKNOWN}{said}"
