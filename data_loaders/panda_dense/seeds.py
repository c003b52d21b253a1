"""Seeds that belong to a clip: the order of clips, and what runs beside them, change nothing."""

import hashlib

import torch


def clip_seed(seed: int, *names: str | int) -> int:
    """A seed for one use in one clip.

    Args:
        seed: Of the run.
        names: What the numbers are for: the clip's key, and more where a clip needs several.

    Returns:
        0..2**63 - 1: the first bits of SHA-256 over all of them.
    """
    text = "\0".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def clip_generator(seed: int, *names: str | int) -> torch.Generator:
    """A generator on the host, which draws the same numbers whatever the device of the model."""
    return torch.Generator().manual_seed(clip_seed(seed, *names))
