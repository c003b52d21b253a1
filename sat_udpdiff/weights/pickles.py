"""Pickled checkpoints (`.pt`), opened so that nothing in them can run.

torch's restricted unpickler builds tensors and plain containers and stops at everything else. What
DeepSpeed and SAT put beside the weights is let through as inert stand-ins: a class of ours that
holds whatever it is given, under the name that the file asks for.
"""

import contextlib
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

TRUST = "--trust-pickle"
"""Option of the converter that opens the others, running whatever they ask for."""

_ZIP = b"PK\x03\x04"
_DEEPSPEED = (
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
)


class _Inert:
    """Stands for an object that does not matter here; keeps its state and does nothing."""

    def __new__(cls, *args: Any) -> "_Inert":
        made = super().__new__(cls)
        made.arguments = args
        return made

    arguments: tuple[Any, ...]

    def __init__(self, *args: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __int__(self) -> int:
        return int(self.arguments[0])


def load_pickle(path: Path, *, trust: bool = False) -> Any:
    """The content of a `.pt` file; tensors are mapped from the disk, not read.

    Args:
        path: Written by `torch.save`.
        trust: Open it even if it asks for code; whoever made the file decides what runs.

    Raises:
        ValueError: It is damaged, or asks for code; names the file and what it asks for.
    """
    try:
        with _known_globals():
            return _load(path, weights_only=not trust)
    except (ImportError, AttributeError) as error:  # trusted, and what it asks for is not here
        raise ValueError(f"{path}: asks for code that is not on this machine ({error})") from None
    except (OSError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        if wanted := re.search(r"(?:GLOBAL|class|function) `?([\w.]+)", str(error)):
            raise ValueError(
                f"{path}: this pickle asks for {wanted[1]}, which is no part of weights and could "
                f"run anything; if you trust where it comes from, convert it with {TRUST}"
            ) from None
        if isinstance(error, OSError) and error.strerror:
            raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
        # torch's own words advise to open it without the checks.
        raise ValueError(
            f"{path}: not a readable weights file: cut short, or not made by torch.save"
        ) from None


def _load(path: Path, *, weights_only: bool) -> Any:
    options: dict[str, Any] = {"map_location": "cpu", "weights_only": weights_only}
    with path.open("rb") as file:
        is_zip = file.read(len(_ZIP)) == _ZIP
    # Files of torch before 1.6 are no zip archives and cannot be mapped.
    return torch.load(path, mmap=is_zip, **options)


@contextlib.contextmanager
def _known_globals() -> Iterator[None]:
    reconstruct: Any = np.zeros(0).__reduce__()[0]
    known: list[Any] = [
        # SAT saves the state of numpy's generator.
        (reconstruct, "numpy.core.multiarray._reconstruct"),
        (reconstruct, "numpy._core.multiarray._reconstruct"),
        np.ndarray,
        np.dtype,
        type(np.dtype(np.uint32)),
        *((_Inert, name) for name in _DEEPSPEED),
    ]
    with torch.serialization.safe_globals(known):
        yield
