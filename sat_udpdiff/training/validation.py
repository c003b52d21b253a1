"""Sample videos during training, to be looked at."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import nn

from data_loaders.decode import encode_rgb
from sat_udpdiff.config import Config
from sat_udpdiff.generation import Encoders, GeneratedSample, SampleRequest, generate


class SampleVideos:
    """Writes RUN/samples/step_00000500/<prompt>_<task>.mp4: the video beside its dense map.

    Seeds are fixed, so the files of different steps show one sample as training goes on.

    Args:
        config: Of the run; `validation` says what and with how many steps.
        encoders: The frozen networks.
    """

    def __init__(self, config: Config, *, encoders: Encoders) -> None:
        steps = replace(config.sample, num_steps=config.validation.num_steps)
        self._config = replace(config, sample=steps)
        self._encoders = encoders

    def __call__(self, network: nn.Module, step: int) -> None:
        """Make every prompt with every task."""
        config, data = self._config, self._config.data
        folder = Path(config.run.output) / "samples" / f"step_{step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        for index, prompt in enumerate(config.validation.prompts):
            for task in data.tasks if config.model.dense_groups else (None,):
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
