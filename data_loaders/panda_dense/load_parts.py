"""Open networks of transformers and diffusers so that none runs on random or left-over weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data_loaders.panda_dense.models import (
    Dtype,
    find_weights,
    load_or_explain,
    weights_revision,
)
from sat_udpdiff.encoders.source import DTYPES, WeightSource

_HALF = "fp16"
"""Name that diffusers gives to a second copy of the weights in half precision."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Where weights are, and how to speak of them."""

    source: WeightSource
    """Folder or hub id."""
    key: str
    """Setting that names it, for messages."""
    get: str
    """How to obtain the weights, for messages."""


def find_origin(weights: str, *, key: str, get: str, subfolder: str | None = None) -> Origin:
    """`models.find_weights`, with what messages say.

    Raises:
        ValueError: There are no weights; names the key and how to get them.
    """
    source = find_weights(weights, key=key, get=get, subfolder=subfolder)
    return Origin(source=source, key=key, get=get)


def torch_dtype(
    dtype: Dtype | None, *, device: torch.device, on_gpu: Dtype = "fp16"
) -> torch.dtype:
    """A setting's dtype; None = `on_gpu` on an accelerator, and fp32 on a CPU."""
    return DTYPES[dtype or ("fp32" if device.type == "cpu" else on_gpu)]


def load_network(network: Any, *, origin: Origin, dtype: torch.dtype, model_type: str = "") -> Any:
    """A network in evaluation mode, on the host, without gradients.

    Tensors of the file that the network has no place for are left out, as the library logs: older
    files hold buffers that are computed now.

    Args:
        network: Class of transformers or diffusers.
        origin: Of `find_origin`.
        dtype: Of its weights and its computation.
        model_type: What the config must call itself; '' = not checked.

    Raises:
        ValueError: They cannot be loaded, are of another kind, or tensors are missing or of
            another size.
    """
    source = origin.source
    is_diffusers = network.__module__.startswith("diffusers.")

    def load(variant: str | None) -> Any:
        _check_kind(source, model_type=model_type)
        with without_bars(quiet=source.is_local):
            loaded, info = network.from_pretrained(
                source.name,
                subfolder=source.subfolder if not is_diffusers else source.subfolder or None,
                local_files_only=source.is_local,
                output_loading_info=True,
                variant=variant,
                **{"torch_dtype" if is_diffusers else "dtype": dtype},
            )
        wrong = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
        if wrong:
            raise ValueError(f"{len(wrong)} tensors do not fit its config.json, first {wrong[0]!r}")
        return loaded

    model = load_or_explain(
        source,
        lambda: _first_that_is_there(load, source=source, dtype=dtype),
        key=origin.key,
        get=origin.get,
    )
    return model.eval().requires_grad_(False)


def _check_kind(source: WeightSource, *, model_type: str) -> None:
    """Weights of another kind would load as a network without most of its tensors."""
    if not model_type:
        return
    from transformers import PreTrainedConfig

    values, _ = PreTrainedConfig.get_config_dict(
        source.name, subfolder=source.subfolder, local_files_only=source.is_local
    )
    if values.get("model_type") != model_type:
        raise ValueError(f"expected a model of type {model_type!r}, got {values['model_type']!r}")


def revision_of(origin: Origin) -> str:
    """Revision of weights that have been loaded: a hub id's files are on this machine by then."""
    source = origin.source
    if not source.is_local:
        inner = source.subfolder or None
        source = find_weights(source.name, key=origin.key, get=origin.get, subfolder=inner)
    return weights_revision(source)


def _first_that_is_there(load: Any, *, source: WeightSource, dtype: torch.dtype) -> Any:
    """Load from the copy in half precision or the full one, whichever suits and is there."""
    if source.is_local:
        folder = Path(source.name) / source.subfolder
        has_half = any(folder.glob(f"*.{_HALF}*.safetensors")) or any(
            folder.glob(f"*.{_HALF}*.bin")
        )
        weights = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
        has_full = any(f".{_HALF}" not in path.name for path in weights)
        return load(_HALF if has_half and (dtype == torch.float16 or not has_full) else None)
    # Which copies a hub id has is known only by asking; the one that saves half the transfer first.
    variants = (_HALF, None) if dtype == torch.float16 else (None, _HALF)
    try:
        return load(variants[0])
    except OSError:
        return load(variants[1])


@contextmanager
def without_bars(*, quiet: bool) -> Iterator[None]:
    """Without transformers' progress bars, which say nothing when the files are at hand."""
    from transformers.utils import logging

    quiet = quiet and logging.is_progress_bar_enabled()
    if quiet:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if quiet:
            logging.enable_progress_bar()
