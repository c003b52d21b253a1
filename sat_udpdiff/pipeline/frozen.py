"""The frozen networks of a diffusers folder: vae/, text_encoder/ and tokenizer/.

Files are copied where they are what diffusers reads; pickles, and encoders with a decoder beside
them, are loaded and written again as safetensors.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sat_udpdiff.config import Config
from sat_udpdiff.encoders.source import WeightSource
from sat_udpdiff.encoders.text import TextEncoder, find_text_encoder
from sat_udpdiff.encoders.vae import VideoCodec, find_codec
from sat_udpdiff.weights.sources import read_safetensors

_TOKENIZER_FILES = (
    "tokenizer_config.json",
    "tokenizer.json",
    "spiece.model",
    "special_tokens_map.json",
    "added_tokens.json",
)
_TOKENIZER = "T5Tokenizer"


def copy_frozen(config: Config, folder: Path) -> list[str]:
    """Put codec, text encoder and tokenizer into a folder, from where the configuration points.

    Nothing is fetched: a hub id that is not on this machine is named instead.

    Returns:
        What is missing, a line each; [] = complete.

    Raises:
        ValueError: A source is there but damaged; names the file.
    """
    missing: list[str] = []
    parts: Sequence[tuple[Callable[[], WeightSource], Callable[[WeightSource], None]]] = (
        (lambda: find_codec(config.codec), lambda source: _put_codec(source, config, folder)),
        (lambda: find_text_encoder(config.text), lambda source: _put_text(source, config, folder)),
    )
    names = ("vae/", "text_encoder/ and tokenizer/")
    for (find, put), name in zip(parts, names, strict=True):
        try:
            source = find()
        except ValueError as error:
            missing.append(f"{name} missing: {error}")
            continue
        if source.is_local:
            put(source)
        else:
            missing.append(
                f"{name} missing: {source.name} is not on this machine; fetch it "
                f"(hf download {source.name}) and convert again, or copy it there"
            )
    return missing


def tokenizer_class(config: Config) -> str:
    """Name of the tokenizer's class for model_index.json; T5's own where the source has none."""
    try:
        source = find_text_encoder(config.text)
    except ValueError:
        return _TOKENIZER
    file = _tokenizer_folder(source) / "tokenizer_config.json"
    if not (source.is_local and file.is_file()):
        return _TOKENIZER
    return str(_read_json(file).get("tokenizer_class", _TOKENIZER))


def _put_codec(source: WeightSource, config: Config, folder: Path) -> None:
    target, origin = folder / "vae", Path(source.name) / source.subfolder
    weights = _safetensors(origin, stem="diffusion_pytorch_model")
    if weights:
        _copy([origin / "config.json", *weights], target)
    else:
        VideoCodec.load(config.codec).vae.save_pretrained(target)
    # diffusers' pipelines take the scale of the latents from here.
    file = target / "config.json"
    values = _read_json(file) | {"scaling_factor": config.codec.scale_factor}
    file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _put_text(source: WeightSource, config: Config, folder: Path) -> None:
    target, origin = folder / "text_encoder", Path(source.name) / source.subfolder
    weights = _safetensors(origin, stem="model")
    is_encoder = _read_json(origin / "config.json").get("architectures") == ["T5EncoderModel"]
    tokens = [_tokenizer_folder(source) / name for name in _TOKENIZER_FILES]
    tokens = [file for file in tokens if file.is_file()]
    if not tokens:
        raise ValueError(
            f"text.weights: {_tokenizer_folder(source)}: expected a tokenizer, found none of "
            f"{', '.join(_TOKENIZER_FILES)}"
        )
    if weights and is_encoder:
        _copy([origin / "config.json", *weights], target)
    else:
        text: Any = TextEncoder.load(
            config.text, text_length=config.model.text_length, text_dim=config.model.text_dim
        )
        text.model.save_pretrained(target)
    _copy(tokens, folder / "tokenizer")


def _tokenizer_folder(source: WeightSource) -> Path:
    return Path(source.name) / ("tokenizer" if source.subfolder else "")


def _safetensors(folder: Path, *, stem: str) -> list[Path]:
    """The files of a network's weights, with their index; [] if they are in another form.

    Raises:
        ValueError: The index names files that are not there.
    """
    index, single = folder / f"{stem}.safetensors.index.json", folder / f"{stem}.safetensors"
    if not index.is_file():
        return [single] if single.is_file() else []
    # Only file names: an index may not point out of its folder.
    names = sorted({Path(name).name for name in _read_json(index)["weight_map"].values()})
    lost = [name for name in names if not (folder / name).is_file()]
    if lost:
        raise ValueError(f"{index}: names {len(lost)} files that are not there: {', '.join(lost)}")
    return [index, *(folder / name for name in names)]


def _check_whole(files: Sequence[Path]) -> None:
    """Refuse to hand on a file that is damaged."""
    for file in files:
        if file.suffix == ".safetensors":
            read_safetensors(file)


def _copy(files: Sequence[Path], target: Path) -> None:
    _check_whole(files)
    target.mkdir(parents=True, exist_ok=True)
    for file in files:
        shutil.copyfile(file, target / file.name)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: not a readable JSON file ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{file}: expected a JSON object, got {type(values).__name__}")
    return values
