"""Samples whose latents no network made, and so are the same on any number of processes.

    shared_decode.main([BASE, OUTPUT, KEY=VALUE ...])

All processes decode the samples together, and the first of them writes OUTPUT, an npz file.
"""

from pathlib import Path

import numpy as np
import torch

from sat_udpdiff.config import ParallelConfig
from sat_udpdiff.config_io import load_config
from sat_udpdiff.distributed import close_distributed, init_distributed
from sat_udpdiff.generation import Encoders, SampleRequest, generate
from sat_udpdiff.parallel.layout import lay_out
from sat_udpdiff.parallel.sampling import helpers_of


def main(arguments: list[str]) -> int:
    """Make the samples; returns the exit status."""
    base, output, *settings = arguments
    config = load_config([base], settings)
    place = init_distributed()
    layout = lay_out(ParallelConfig(sequence_size=place.world_size), place=place)
    request = SampleRequest(
        prompt="a red disc moves left",
        task="depth",
        seeds=(3, 4, 5),
        num_frames=config.data.num_frames,
        height=config.data.height,
        width=config.data.width,
        batch_size=2,
    )
    samples = generate(
        _guess,
        request,
        encoders=Encoders.load(config, device="cpu"),
        config=config,
        helpers=helpers_of(layout, device=torch.device("cpu")),
    )
    if layout.counts:
        rgb = np.stack([sample.rgb for sample in samples])
        np.savez(Path(output), rgb=rgb, dense=np.stack([sample.dense for sample in samples]))
    close_distributed()
    return 0


def _guess(latents: torch.Tensor, **_: torch.Tensor | None) -> torch.Tensor:
    return 0.3 * latents
