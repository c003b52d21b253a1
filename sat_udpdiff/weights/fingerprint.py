"""One number for all weights of a network, to tell later which ones made a result."""

import hashlib

import torch
from torch import nn


def fingerprint(module: nn.Module) -> str:
    """SHA-256 (hexadecimal) over name, dtype, shape and bytes of every tensor, in order of name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
