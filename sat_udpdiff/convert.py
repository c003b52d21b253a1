r"""Convert weights between SAT, diffusers and this project, there and back without a lost bit.

    python sat_udpdiff/convert.py SRC DST --to sat|diffusers|udpdiff|lora

SRC is whatever `--load` takes: a release of CogVideoX for SAT, a diffusers folder, a run or one of
its checkpoints, a file of weights, shards of DeepSpeed's ZeRO; its form is recognised. DST is a new
folder. Tensors pass one at a time: memory is needed for the largest, not for the network.

    --to udpdiff    network.safetensors, for training and sampling here
    --to diffusers  a folder for UDPDiffPipeline, or for diffusers' own where there is no dense map
    --to sat        transformer/1/mp_rank_00_model_states.pt and vae/3d-vae.pt
    --to lora       what a LoRA run trained, for `load_lora_weights` of diffusers' pipelines

The other forms are whole networks: the adapters of a LoRA run are folded into their weights.
`config.yaml` is written beside each. SRC's own one is taken if it has one, else the family and the
task are read off the shapes; `--base` files and `key=value` settings go on top.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

from data_loaders.atomic_file import partials_of, write_atomically
from sat_udpdiff.config import Config, LoraConfig
from sat_udpdiff.config_io import load_config, save_config
from sat_udpdiff.encoders.latents import latent_size
from sat_udpdiff.encoders.source import DTYPES, TINY
from sat_udpdiff.encoders.vae import find_codec
from sat_udpdiff.model.transformer import build_network
from sat_udpdiff.weights.adapted import holds_adapters
from sat_udpdiff.weights.beside import own_config_file
from sat_udpdiff.weights.codec_files import (
    SAT_CODEC_FILE,
    codec_from_sat,
    codec_to_sat_file,
    copy_sat_codec,
)
from sat_udpdiff.weights.describe import describe
from sat_udpdiff.weights.destination import check_free, check_space, whole_folder
from sat_udpdiff.weights.find import DIFFUSERS_STEM, SAT_FILE, find_weights
from sat_udpdiff.weights.key_map import SAT_PREFIX, to_diffusers
from sat_udpdiff.weights.load import check_shapes, fit
from sat_udpdiff.weights.lora_map import DENSE_FILE, LORA_FILE, write_lora
from sat_udpdiff.weights.merged import open_merged
from sat_udpdiff.weights.pickles import TRUST
from sat_udpdiff.weights.run_folder import CONFIG_FILE, LATEST, NETWORK_FILE
from sat_udpdiff.weights.sat_extras import sat_extras
from sat_udpdiff.weights.sources import StoredNetwork, open_network, read_safetensors
from sat_udpdiff.weights.stored import State, StoredTensor, cast, dtype_name, read_all
from sat_udpdiff.weights.write import total_bytes, write_pickle, write_safetensors, write_sharded

_SAT_STEP = "1"
"""Number of the only save in a SAT folder, as in the releases."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversion:
    """What is to be written: everything is checked, no number is read."""

    config: Config
    stored: StoredNetwork
    state: State
    """Under SAT's names, in the dtype of the result."""
    sat_codec: Path | None
    """The codec of a SAT release, which goes along."""
    trust: bool


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status (2 = it cannot be converted, in one line)."""
    options = _parser().parse_intermixed_args(argv)
    # `--base a.yaml key=value` gives argparse no way to see where the files end.
    options.settings += [word for word in options.base if "=" in word]
    options.base = [word for word in options.base if "=" not in word]
    try:
        conversion = prepare(options)
        print(_summary(conversion, options=options))
        check_space(options.dst, need=_bytes_to_write(conversion, form=options.to))
        for left in partials_of(options.dst.resolve()):
            print(
                f"note: {left} is of a conversion that runs or was killed; if none runs, delete it"
            )
        if not options.dry_run:
            start = time.perf_counter()
            for note in write(conversion, options.dst, form=options.to):
                print(f"note: {note}")
            print(f"wrote {options.dst} in {time.perf_counter() - start:.1f} s")
    except (ValueError, OSError) as error:
        print(f"convert.py: {error}", file=sys.stderr)
        return 2
    return 0


def prepare(options: argparse.Namespace) -> Conversion:
    """Open SRC and check that it becomes what is asked for.

    Raises:
        ValueError: One line with the file, the keys, what was expected and what came.
    """
    source = find_weights(options.src, ema=options.ema)
    check_free(options.dst, overwrite=options.overwrite, kept=[source])
    stored = _open(source, options=options)
    try:
        config = describe(
            stored.facts,
            place=options.src,
            base=options.base,
            settings=options.settings,
            expand=options.expand,
        )
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    check_free(options.dst, overwrite=options.overwrite, kept=_places(config))
    if options.to == "lora":
        return _lora_conversion(stored, source, config=config, options=options)
    config = replace(config, lora=LoraConfig())  # folded in
    state = fit(stored, config=config, expand=options.expand is not None)
    network = build_network(config.model, dtype=torch.float32, device="meta")
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    check_shapes(stored, state=state, expected=expected)
    if options.dtype is not None:
        state = {key: cast(key, value, DTYPES[options.dtype]) for key, value in state.items()}
    return Conversion(
        config=config,
        stored=stored,
        state=state,
        sat_codec=_sat_codec(stored, place=Path(options.src).expanduser()),
        trust=options.trust_pickle,
    )


def _open(source: Path, *, options: argparse.Namespace) -> StoredNetwork:
    """Weights as they are, or the whole network of a LoRA checkpoint."""
    own = own_config_file(source)
    if not holds_adapters(source) or own is None:
        return open_network(source, trust=options.trust_pickle)
    return open_merged(source, config=load_config([str(own), *options.base], options.settings))


def _sat_codec(stored: StoredNetwork, *, place: Path) -> Path | None:
    """The file of a SAT codec: of a release, or the one in which a SAT user saved everything."""
    if (place / SAT_CODEC_FILE).is_file():
        return place / SAT_CODEC_FILE
    return stored.source if stored.holds_codec else None


def _lora_conversion(
    stored: StoredNetwork, source: Path, *, config: Config, options: argparse.Namespace
) -> Conversion:
    if not holds_adapters(source):
        raise ValueError(f"{source}: expected a LoRA run or one of its checkpoints for --to lora")
    state = read_safetensors(source)
    if options.dtype is not None:
        state = {key: cast(key, value, DTYPES[options.dtype]) for key, value in state.items()}
    return Conversion(config=config, stored=stored, state=state, sat_codec=None, trust=False)


def write(conversion: Conversion, folder: Path, *, form: str) -> list[str]:
    """Write the result; the folder is whole or not there.

    Returns:
        What is missing in it or differs, a line each.

    Raises:
        OSError: No space, or not writable; an older folder is as it was.
        ValueError: A tensor cannot be read, or does not fit its new dtype; names it.
    """
    writers = {
        "sat": _write_sat,
        "diffusers": _write_diffusers,
        "udpdiff": _write_udpdiff,
        "lora": _write_lora,
    }
    with whole_folder(folder) as staging:
        return writers[form](conversion, staging, folder)


def _write_udpdiff(conversion: Conversion, staging: Path, folder: Path) -> list[str]:
    config = conversion.config
    write_safetensors(staging / NETWORK_FILE, _with_progress(conversion.state))
    if conversion.sat_codec is not None:
        codec_from_sat(
            conversion.sat_codec, staging / "vae", config=config.codec, trust=conversion.trust
        )
        config = _with_codec(config, folder)
    save_config(config, staging / CONFIG_FILE)
    return []


def _write_diffusers(conversion: Conversion, staging: Path, folder: Path) -> list[str]:
    from sat_udpdiff.pipeline.folder import save_folder

    config = conversion.config
    (staging / "transformer").mkdir()
    state = _with_progress(to_diffusers(conversion.state))
    write_sharded(staging / "transformer", state, stem=DIFFUSERS_STEM)
    converted = staging / ".codec"
    if conversion.sat_codec is not None:
        codec_from_sat(
            conversion.sat_codec, converted / "vae", config=config.codec, trust=conversion.trust
        )
        config = _with_codec(config, converted)
    notes = save_folder(staging, config=config)
    shutil.rmtree(converted, ignore_errors=True)
    if (staging / "vae").is_dir():
        config = _with_codec(config, folder)
    if (staging / "text_encoder").is_dir():
        text = replace(config.text, weights=str(folder.resolve()))
        config = replace(config, text=text)
    save_config(config, staging / CONFIG_FILE)
    return notes


def _write_sat(conversion: Conversion, staging: Path, folder: Path) -> list[str]:
    config, data = conversion.config, conversion.config.data
    size = latent_size(
        config.codec, num_frames=data.num_frames, height=data.height, width=data.width
    )
    dtype = next(iter(conversion.state.values())).dtype
    extras = sat_extras(
        config.model, latent_size=(size.frames, size.height, size.width), dtype=dtype
    )
    state = {SAT_PREFIX + key: value for key, value in {**conversion.state, **extras}.items()}
    step = staging / "transformer" / _SAT_STEP
    step.mkdir(parents=True)
    write_pickle(step / SAT_FILE, _with_progress(state), under="module")
    write_atomically(step.parent / LATEST, _SAT_STEP.encode())
    save_config(config, staging / CONFIG_FILE)
    if conversion.sat_codec is not None:
        copy_sat_codec(conversion.sat_codec, staging / SAT_CODEC_FILE, trust=conversion.trust)
        return []
    try:
        codec = find_codec(config.codec)
    except ValueError as error:
        return [f"{SAT_CODEC_FILE} missing: {error}"]
    if not codec.is_local:
        return [f"{SAT_CODEC_FILE} missing: {codec.name} is not on this machine"]
    codec_to_sat_file(Path(codec.name) / codec.subfolder, staging / SAT_CODEC_FILE)
    return []


def _write_lora(conversion: Conversion, staging: Path, folder: Path) -> list[str]:
    config = conversion.config
    written = write_lora(staging, read_all(conversion.state), lora=config.lora, model=config.model)
    save_config(config, staging / CONFIG_FILE)
    if written == [staging / LORA_FILE]:
        return []
    return [
        f"{DENSE_FILE} holds what was trained as a whole; UDPDiffPipeline.load_lora_weights loads "
        "both files, on a base made by --expand duplicate; diffusers' own pipelines take the "
        "adapters alone, which is another model"
    ]


def _with_codec(config: Config, folder: Path) -> Config:
    codec = replace(config.codec, weights=str(folder.resolve()), subfolder="vae")
    return replace(config, codec=codec)


def _with_progress(state: State) -> State:
    """The same, with a bar that moves as tensors are read."""
    bar = tqdm(
        total=total_bytes(state), unit="B", unit_scale=True, dynamic_ncols=True, disable=None
    )

    def watched(stored: StoredTensor) -> StoredTensor:
        def read() -> torch.Tensor:
            tensor = stored.read()
            bar.update(stored.num_bytes)
            return tensor

        return replace(stored, read=read)

    return {name: watched(stored) for name, stored in state.items()}


def _bytes_to_write(conversion: Conversion, *, form: str) -> int:
    """The network, and the frozen networks that are copied beside it."""
    need = total_bytes(conversion.state)
    if form == "diffusers":
        config = conversion.config
        codec = (config.codec.weights, config.codec.subfolder or "")
        for weights, subfolder in (codec, (config.text.weights, "text_encoder")):
            folder = Path(weights).expanduser()
            folder = folder / subfolder if (folder / subfolder).is_dir() else folder
            if folder.is_dir():
                need += sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return need


def _places(config: Config) -> list[Path]:
    """What is on this machine of the things that a configuration names."""
    named = (config.codec.weights, config.text.weights, config.init.weights)
    places = [Path(name).expanduser() for name in named if name]
    return [place for place in places if place.exists()]


def _summary(conversion: Conversion, *, options: argparse.Namespace) -> str:
    facts, config = conversion.stored.facts, conversion.config
    model = config.model
    before = sorted({dtype_name(value.dtype) for value in conversion.stored.state.values()})
    after = sorted({dtype_name(value.dtype) for value in conversion.state.values()})
    channels = model.latent_channels * (1 + model.dense_groups)
    table = ", task table" if model.task_signal == "embedding" else ""
    own = None if options.src == TINY else own_config_file(options.src)
    return (
        f"from {conversion.stored.source}: {conversion.stored.form}, {facts.name}, "
        f"{facts.out_channels} channels, {'/'.join(before)}"
        f"{f', described by {own}' if own else ''}\n"
        f"to   {options.dst}: {options.to}, {channels} channels{table}, {'/'.join(after)}, "
        f"{len(conversion.state)} tensors, {total_bytes(conversion.state) / 1e9:.2f} GB\n"
        f"     with the codec of {conversion.sat_codec or config.codec.weights} and the text "
        f"encoder of {config.text.weights}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("src", metavar="SRC", help="run, checkpoint, file, folder, hub id, `tiny`")
    parser.add_argument("dst", metavar="DST", type=Path, help="folder to write")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="settings on top")
    parser.add_argument("--to", required=True, choices=("sat", "diffusers", "udpdiff", "lora"))
    parser.add_argument("--dtype", choices=tuple(DTYPES), help="default: as they are stored")
    parser.add_argument("--ema", action="store_true", help="take the averaged weights")
    parser.add_argument(
        "--expand",
        choices=("duplicate", "random"),
        help="make dense channels and task table for 16-channel weights",
    )
    parser.add_argument(
        TRUST, action="store_true", help="open pickles that could run code when they are opened"
    )
    parser.add_argument(
        "--base", nargs="+", action="extend", default=[], metavar="FILE", help="YAML value files"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing DST")
    parser.add_argument("--dry-run", action="store_true", help="check and say what would be done")
    return parser


if __name__ == "__main__":
    sys.exit(main())
