"""Sample videos during training, to be looked at and to be measured."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice, product
from pathlib import Path

import numpy as np
from torch import nn

from data_loaders.decode import encode_rgb
from sat_udpdiff.config import Config
from sat_udpdiff.distributed import Place
from sat_udpdiff.generation import Encoders, GeneratedSample, SampleRequest, generate


class SampleVideos:
    """Writes RUN/samples/step_00000500/<prompt>_<task>.mp4: the video beside its dense map.

    Seeds are fixed, so the files of different steps show one sample as training goes on.

    Args:
        config: Of the run; `validation` says what and with how many steps.
        encoders: The frozen networks.
        place: Of this rank; the videos are dealt out, so that no rank waits for all of them.
    """

    def __init__(self, config: Config, *, encoders: Encoders, place: Place) -> None:
        steps = replace(config.sample, num_steps=config.validation.num_steps)
        self._config = replace(config, sample=steps)
        self._encoders, self._place = encoders, place

    def __call__(self, network: nn.Module, step: int) -> Iterator[tuple[str, GeneratedSample]]:
        """Make this rank's share of every prompt with every task and seed, one after another.

        Yields:
            The name of the file without its ending, and what was written to it.
        """
        config, data = self._config, self._config.data
        folder = Path(config.run.output) / "samples" / f"step_{step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        tasks = data.tasks if config.model.dense_groups else (None,)
        seeds = config.validation.seeds or (config.seed,)
        videos = product(enumerate(config.validation.prompts), tasks, seeds)
        share = islice(videos, self._place.rank, None, self._place.world_size)
        for (index, prompt), task, seed in share:
            request = SampleRequest(
                prompt=prompt,
                task=task,
                seeds=(seed,),
                num_frames=data.num_frames,
                height=data.height,
                width=data.width,
            )
            (sample,) = generate(network, request, encoders=self._encoders, config=config)
            name = f"{index:02d}_{task or 'rgb'}" + (f"_{seed}" if len(seeds) > 1 else "")
            content = encode_rgb(_side_by_side(sample), fps=data.fps, codec="h264")
            (folder / f"{name}.mp4").write_bytes(content)
            yield name, sample


def _side_by_side(sample: GeneratedSample) -> np.ndarray:
    if sample.dense is None:
        return sample.rgb
    return np.concatenate([sample.rgb, sample.dense], axis=2)
