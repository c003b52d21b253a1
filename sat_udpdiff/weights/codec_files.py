"""The video codec as a file of SAT and as a folder of diffusers, one into the other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from sat_udpdiff.config import VideoCodecConfig
from sat_udpdiff.weights.codec_map import check_codec, codec_to_diffusers, codec_to_sat
from sat_udpdiff.weights.find import DIFFUSERS_STEM
from sat_udpdiff.weights.recognise import check_tensors
from sat_udpdiff.weights.sources import read_pickle, read_sharded
from sat_udpdiff.weights.stored import State
from sat_udpdiff.weights.write import write_pickle, write_sharded

SAT_CODEC_FILE = Path("vae", "3d-vae.pt")
"""Of SAT's releases, below their folder."""
_DESCRIPTION = ".json"
"""Ending of the file beside it in which we keep what tensors do not tell, such as norm groups."""
_SAT_KEY = "state_dict"


def codec_from_sat(
    file: Path, folder: Path, *, config: VideoCodecConfig, trust: bool = False
) -> None:
    """Write the codec of a SAT file as a folder that diffusers opens.

    Args:
        file: `3d-vae.pt`.
        folder: Where to; made.
        config: Its scale factor goes into config.json.
        trust: See `pickles.load_pickle`.

    Raises:
        ValueError: Damaged, or not this codec; names the file and every key that is wrong.
    """
    state = codec_to_diffusers(read_pickle(file, trust=trust))
    values = _describe(state, config=config, file=file)
    own = file.with_suffix(_DESCRIPTION)
    try:
        values |= json.loads(own.read_text(encoding="utf-8")) if own.is_file() else {}
    except (ValueError, TypeError) as error:
        raise ValueError(f"{own}: not a readable JSON object ({error})") from None
    try:
        check_tensors(state)
        check_codec(state, expected=_shapes(values))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    write_sharded(folder, state, stem=DIFFUSERS_STEM)


def copy_sat_codec(source: Path, file: Path, *, trust: bool = False) -> None:
    """Write the codec that `source` holds, beside whatever else, as SAT's file of it alone."""
    file.parent.mkdir(parents=True)
    codec = codec_to_sat(codec_to_diffusers(read_pickle(source, trust=trust)))
    write_pickle(file, codec, under=_SAT_KEY)
    if (description := source.with_suffix(_DESCRIPTION)).is_file():
        shutil.copyfile(description, file.with_suffix(_DESCRIPTION))


def codec_to_sat_file(folder: Path, file: Path) -> None:
    """Write the codec in a folder of diffusers as SAT's file.

    Raises:
        ValueError: Damaged; names the file.
    """
    file.parent.mkdir(parents=True)
    write_pickle(file, codec_to_sat(read_sharded(folder, stem=DIFFUSERS_STEM)), under=_SAT_KEY)
    shutil.copyfile(folder / "config.json", file.with_suffix(_DESCRIPTION))


def _describe(state: State, *, config: VideoCodecConfig, file: Path) -> dict[str, Any]:
    """The config.json of diffusers, with sizes read off the shapes."""
    from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX

    levels, resnets = _count(state, "encoder.down_blocks."), _count(state, _FIRST_RESNETS)
    try:
        widths = [
            state[f"encoder.down_blocks.{i}.resnets.0.conv1.conv.weight"].shape[0]
            for i in range(levels)
        ]
        channels = state["decoder.conv_in.conv.weight"].shape[1]
    except KeyError as error:
        raise ValueError(f"{file}: no weights of CogVideoX's video codec: no {error}") from None
    with torch.device("meta"):
        defaults = dict(AutoencoderKLCogVideoX().config)
    kinds = {"_class_name": "AutoencoderKLCogVideoX"}
    own = {
        "block_out_channels": widths,
        "down_block_types": ["CogVideoXDownBlock3D"] * levels,
        "up_block_types": ["CogVideoXUpBlock3D"] * levels,
        "latent_channels": channels,
        "layers_per_block": resnets,
        "temporal_compression_ratio": config.temporal_compression,
        "scaling_factor": config.scale_factor,
    }
    return {**kinds, **{k: v for k, v in defaults.items() if not k.startswith("_")}, **own}


_FIRST_RESNETS = "encoder.down_blocks.0.resnets."


def _count(state: State, head: str) -> int:
    """How many numbers follow `head` in the keys."""
    return len({key.removeprefix(head).split(".")[0] for key in state if key.startswith(head)})


def _shapes(values: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX

    with torch.device("meta"):
        codec: Any = AutoencoderKLCogVideoX.from_config(values)
    return {key: tuple(value.shape) for key, value in codec.state_dict().items()}
