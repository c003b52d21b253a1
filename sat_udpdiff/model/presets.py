"""The numbers of each network family."""

from __future__ import annotations

from types import MappingProxyType

from sat_udpdiff.config import ModelConfig

PRESETS = MappingProxyType(
    {
        # The synthetic world: 9x64x96 clips, latents 3x16x24, 288 video tokens.
        "tiny": ModelConfig(
            family="tiny",
            num_layers=6,
            hidden_size=256,
            num_heads=4,
            time_embed_dim=128,
            text_dim=128,
            text_length=48,
            activation_checkpointing="none",
        ),
        "2b": ModelConfig(
            family="2b",
            num_layers=30,
            hidden_size=1920,
            num_heads=30,
            positions="sincos",
        ),
        "5b": ModelConfig(family="5b"),
    }
)
"""Network settings by family; `2b` and `5b` are the released CogVideoX with the paper's mixins."""


def preset(family: str) -> ModelConfig:
    """Return the settings of a family.

    Raises:
        ValueError: `family` is unknown; the message lists the valid names.
    """
    if family not in PRESETS:
        raise ValueError(f"model.family: expected one of {sorted(PRESETS)}, got {family!r}")
    return PRESETS[family]
