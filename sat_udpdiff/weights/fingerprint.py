"""One number for many weights, to tell later which ones made a result."""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn


def fingerprint(module: nn.Module) -> str:
    """SHA-256 (hexadecimal) over name, dtype, shape and bytes of every tensor, in order of name."""
    return fingerprint_of(sorted(module.state_dict().items()))


def fingerprint_of(
    tensors: Iterable[tuple[str, Tensor]], *, dtype: torch.dtype | None = None
) -> str:
    """The same over some tensors, in the order of their names; one is in memory at a time.

    Args:
        tensors: (name, tensor), in that order, of which each may be made when it is asked for.
        dtype: Take them as they are when cast to it.
    """
    digest = hashlib.sha256()
    for name, tensor in tensors:
        seen = tensor.detach().to(dtype or tensor.dtype)
        digest.update(f"{name} {seen.dtype} {tuple(seen.shape)}\n".encode())
        flat = seen.cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
