"""Checkpoints with the keys, shapes and dtypes of the releases, and random numbers."""

import zlib
from pathlib import Path

import torch

from sat_udpdiff.config import Config
from sat_udpdiff.encoders.latents import latent_size
from sat_udpdiff.model.transformer import build_network
from sat_udpdiff.weights.key_map import SAT_PREFIX
from sat_udpdiff.weights.sat_extras import sat_extras
from sat_udpdiff.weights.stored import StoredTensor
from sat_udpdiff.weights.write import write_pickle

ROOT = Path(__file__).parents[2]


def random_tensor(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> StoredTensor:
    """Numbers that depend on the name alone; made when they are read."""

    def read() -> torch.Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        # Bits rather than a distribution: every pattern of mantissa and sign, quickly.
        bits = torch.randint(-(2**15), 2**15, shape, generator=generator, dtype=torch.int16)
        if dtype == torch.float32:
            return bits.float() / 2**15
        # Without the highest bit of the exponent: all finite.
        return (bits & ~0x4000).view(dtype)

    return StoredTensor(shape=shape, dtype=dtype, read=read)


def network_state(config: Config, dtype: torch.dtype) -> dict[str, StoredTensor]:
    """Every weight of the network of a configuration, under SAT's names."""
    network = build_network(config.model, dtype=dtype, device="meta")
    return {
        name: random_tensor(name, tuple(value.shape), dtype)
        for name, value in network.state_dict().items()
    }


def sat_state(config: Config, dtype: torch.dtype) -> dict[str, StoredTensor]:
    """All that a SAT release holds: with prefix, and the tables that SAT wants to find."""
    data = config.data
    size = latent_size(
        config.codec, num_frames=data.num_frames, height=data.height, width=data.width
    )
    extras = sat_extras(
        config.model, latent_size=(size.frames, size.height, size.width), dtype=dtype
    )
    state = {**network_state(config, dtype), **extras}
    return {SAT_PREFIX + name: state[name] for name in state}


def write_release(folder: Path, config: Config, dtype: torch.dtype) -> Path:
    """Write `transformer/` of a SAT release."""
    step = folder / "transformer" / "1"
    step.mkdir(parents=True)
    (step.parent / "latest").write_text("1")
    write_pickle(step / "mp_rank_00_model_states.pt", sat_state(config, dtype), under="module")
    return step / "mp_rank_00_model_states.pt"


__all__ = [
    "ROOT",
    "network_state",
    "random_tensor",
    "sat_state",
    "write_release",
]
