"""Open networks of transformers and diffusers so that none runs on random or left-over weights."""

from collections.abc import Iterator
from contextlib import contextmanager
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


def torch_dtype(
    dtype: Dtype | None, *, device: torch.device, on_gpu: Dtype = "fp16"
) -> torch.dtype:
    """A setting's dtype; None = `on_gpu` on an accelerator, and fp32 on a CPU."""
    return DTYPES[dtype or ("fp32" if device.type == "cpu" else on_gpu)]


def load_network(
    network: Any, *, source: WeightSource, dtype: torch.dtype, key: str, get: str
) -> Any:
    """A network in evaluation mode, on the host, without gradients.

    Args:
        network: Class of transformers or diffusers.
        source: Folder or hub id.
        dtype: Of its weights and its computation.
        key: Setting, for messages.
        get: How to obtain the weights, for messages.

    Raises:
        ValueError: They cannot be loaded, or tensors are missing, left over or of another size.
    """
    is_diffusers = network.__module__.startswith("diffusers.")

    def load(variant: str | None) -> Any:
        with _without_bars(quiet=source.is_local):
            loaded, info = network.from_pretrained(
                source.name,
                subfolder=source.subfolder if not is_diffusers else source.subfolder or None,
                local_files_only=source.is_local,
                output_loading_info=True,
                variant=variant,
                **{"torch_dtype" if is_diffusers else "dtype": dtype},
            )
        names = ("missing_keys", "unexpected_keys", "mismatched_keys")
        wrong = sorted(str(name) for kind in names for name in info[kind])
        if wrong:
            raise ValueError(f"{len(wrong)} tensors do not fit its config.json, first {wrong[0]!r}")
        return loaded

    model = load_or_explain(
        source, lambda: _first_that_is_there(load, source=source, dtype=dtype), key=key, get=get
    )
    return model.eval().requires_grad_(False)


def revision_of(source: WeightSource, *, key: str, get: str) -> str:
    """Revision of weights that have been loaded: a hub id's files are on this machine by then."""
    if not source.is_local:
        inner = source.subfolder or None
        source = find_weights(source.name, key=key, get=get, subfolder=inner)
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
def _without_bars(*, quiet: bool) -> Iterator[None]:
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
