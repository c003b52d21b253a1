"""Sample videos during training, to be looked at."""

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

    def __call__(self, network: nn.Module, step: int) -> None:
        """Make this rank's share of every prompt with every task."""
        config, data = self._config, self._config.data
        folder = Path(config.run.output) / "samples" / f"step_{step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        tasks = data.tasks if config.model.dense_groups else (None,)
        videos = product(enumerate(config.validation.prompts), tasks)
        for (index, prompt), task in islice(videos, self._place.rank, None, self._place.world_size):
            request = SampleRequest(
                prompt=prompt,
                task=task,
                seeds=(config.seed,),
                num_frames=data.num_frames,
                height=data.height,
                width=data.width,
            )
            (sample,) = generate(network, request, encoders=self._encoders, config=config)
            path = folder / f"{index:02d}_{task or 'rgb'}.mp4"
            path.write_bytes(encode_rgb(_side_by_side(sample), fps=data.fps, codec="h264"))


def _side_by_side(sample: GeneratedSample) -> np.ndarray:
    if sample.dense is None:
        return sample.rgb
    return np.concatenate([sample.rgb, sample.dense], axis=2)
