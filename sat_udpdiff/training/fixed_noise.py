"""Losses of held-out clips under fixed noise: a curve of training without its randomness.

The training loss jumps with the clips, timesteps and noise of each step. Here all of them stay: the
same clips, each with every task of the run, at the middle of each quartile of the timesteps, with
noise that depends on clip and quartile alone. What is left is what the weights learnt.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn

from data_loaders.loader import Batches
from data_loaders.schema import DataError
from sat_udpdiff.config import Config, ConfigError, Task
from sat_udpdiff.diffusion.schedule import make_schedule
from sat_udpdiff.distributed import Place
from sat_udpdiff.generation import Encoders
from sat_udpdiff.training.example import (
    DiffusionExample,
    EncodedClips,
    encode_clips,
    example_loss,
)
from sat_udpdiff.training.metrics import QUARTILES
from sat_udpdiff.training.rng import Stream, normal

_SEED = 0
"""Of clips, colours and noise: another one than the run's, so that runs can be compared."""

_HALVES = ("total", "video", "dense")

ClipLosses = dict[int, list[list[float]]]
"""By number of the clip: `_HALVES` of each row, tasks in order and the quartiles of each."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _FixedClip:
    """One clip in the memory of the host."""

    number: int
    tasks: list[EncodedClips]
    """A batch of one for each task."""


class FixedNoiseLosses:
    """Losses of `validation.clips` held-out clips, dealt out over the ranks.

    The clips are encoded once, here, and their latents kept in the host's memory: some 9 MB for
    each clip and task of 49 x 480 x 720. Every clip goes through the network by itself, so the
    numbers do not depend on how many ranks there are.

    Args:
        config: Of the run; `validation.shards` or `validation.latents` names the clips.
        encoders: The frozen networks; None loads them for this, if clips and not latents are given.
        place: Of this rank.

    Raises:
        DataError: The clips are not there or lack what the tasks need; names the setting.
        ConfigError: More clips are asked for than there are, or the ranks cannot share them.
    """

    def __init__(self, config: Config, *, encoders: Encoders | None, place: Place) -> None:
        self._check_ranks(config, place=place)
        self._config, self._device = config, place.device
        self._tasks: tuple[Task | None, ...] = (
            config.data.tasks if config.model.dense_groups else (None,)
        )
        self._schedule = make_schedule(config.diffusion).to(place.device)
        self._clips = self._load(encoders, place=place)

    def __call__(self, network: nn.Module) -> ClipLosses:
        """Losses of this rank's clips; the network must be in evaluation mode.

        At ZeRO stage 3 all ranks call it together: every forward gathers the weights.
        """
        return {clip.number: self._of_clip(clip, network=network) for clip in self._clips}

    def means(self, shares: Sequence[Mapping[int, list[list[float]]]]) -> dict[str, float | None]:
        """Means over all clips, given what every rank found: names as in training, and all cells.

        A cell is `loss_video_depth_t_quartile_1`: half, task, quartile; without dense maps there
        are no tasks and no dense half. None is a mean that is not finite.
        """
        found = {number: rows for share in shares for number, rows in share.items()}
        # In order of clips, so that sums are the same whoever computed them.
        rows = np.array([found[number] for number in sorted(found)], dtype=np.float64)
        shape = (len(rows), len(self._tasks), QUARTILES, len(_HALVES))
        named = _named_means(rows.reshape(shape), tasks=self._tasks)
        return {name: value if math.isfinite(value) else None for name, value in named.items()}

    @torch.no_grad()
    def _of_clip(self, clip: _FixedClip, *, network: nn.Module) -> list[list[float]]:
        first = clip.number * QUARTILES
        shape = clip.tasks[0].x0.shape[1:]
        numbers = range(first, first + QUARTILES)
        noise = normal(numbers, seed=_SEED, stream=Stream.FIXED_NOISE, shape=shape)
        rows = torch.arange(len(clip.tasks) * QUARTILES)
        found: list[list[float]] = []
        for some in rows.split(self._config.train.micro_batch_size):
            example = self._example(clip, rows=some, noise=noise)
            terms = example_loss(network, example, schedule=self._schedule, config=self._config)
            columns = torch.stack([getattr(terms, half).double() for half in _HALVES], dim=1)
            found += columns.tolist()
        return found

    def _example(
        self, clip: _FixedClip, *, rows: Int64[Tensor, "b"], noise: Float[Tensor, "q t c h w"]
    ) -> DiffusionExample:
        """Some rows of a clip; row i is task i // QUARTILES at quartile i % QUARTILES."""
        quartiles = rows % QUARTILES
        encoded = [clip.tasks[i] for i in (rows // QUARTILES).tolist()]
        tasks = [each.task for each in encoded if each.task is not None]
        steps = self._config.diffusion.num_train_timesteps
        return DiffusionExample(
            x0=torch.cat([each.x0 for each in encoded]).to(self._device),
            noise=noise[quartiles].to(self._device),
            t=((2 * quartiles + 1) * steps // (2 * QUARTILES)).to(self._device),
            text=torch.cat([each.text for each in encoded]).to(self._device),
            task=torch.cat(tasks).to(self._device) if tasks else None,
        )

    def _load(self, encoders: Encoders | None, *, place: Place) -> list[_FixedClip]:
        """This rank's clips with every task."""
        configs = [_fixed(self._config, task=task) for task in self._tasks]
        # All are checked before the first clip is encoded.
        opened = [_open(config, place=place) for config in configs]
        if encoders is None and self._config.validation.shards:
            encoders = Encoders.load(self._config, device=place.device)
        numbers = range(place.rank, self._config.validation.clips, place.world_size)
        encoded = [
            _encode(batches, count=len(numbers), encoders=encoders, config=config)
            for batches, config in zip(opened, configs, strict=True)
        ]
        if place.device.type == "cuda":
            torch.cuda.empty_cache()  # the network comes next
        return [
            _FixedClip(number=number, tasks=list(of_tasks))
            for number, *of_tasks in zip(numbers, *encoded, strict=True)
        ]

    @staticmethod
    def _check_ranks(config: Config, *, place: Place) -> None:
        clips = config.validation.clips
        if config.train.zero_stage == 3 and clips % place.world_size:
            # A rank that runs out of clips would leave the others waiting for its weights.
            raise ConfigError(
                f"validation.clips: expected a multiple of {place.world_size}, the number of "
                f"processes, with train.zero_stage=3, got {clips}",
                keys=("validation.clips", "train.zero_stage"),
            )


def _fixed(config: Config, *, task: Task | None) -> Config:
    """The configuration under which a run would see the clips with this task and nothing drawn."""
    validation = config.validation
    data = replace(
        config.data,
        source="latents" if validation.latents else "video",
        shards=validation.shards,
        latents=validation.latents,
        crop="center",
        buckets=(),
        bucket_weights=(),
        tasks=config.data.tasks if task is None else (task,),
        task_weights=config.data.task_weights if task is None else (1.0,),
        recolourings=0,
        decoder="pyav",
        num_workers=min(1, config.data.num_workers),
        prefetch=1,
    )
    train = replace(config.train, micro_batch_size=1, caption_dropout=0.0)
    return replace(config, seed=_SEED, data=data, train=train)


def _open(config: Config, *, place: Place) -> Batches:
    """The clips in their order; errors name the setting of `validation`."""
    key = "validation.latents" if config.validation.latents else "validation.shards"
    try:
        batches = Batches(
            config, place_rank=place.rank, world_size=place.world_size, device=place.device
        )
    except DataError as error:
        raise DataError(f"{key}: {str(error).removeprefix('data.latents: ')}") from error
    there, wanted = batches.damage.num_clips, config.validation.clips
    if wanted > there:
        raise ConfigError(
            f"validation.clips: expected at most {there}, the clips of {key}, got {wanted}",
            keys=("validation.clips", key),
        )
    return batches


def _encode(
    batches: Batches, *, count: int, encoders: Encoders | None, config: Config
) -> list[EncodedClips]:
    """The first `count` clips of a rank, in the memory of the host."""
    encoded = []
    with batches:
        for batch in islice(batches, count):
            clip = encode_clips(batch, encoders=encoders, config=config)
            task = None if clip.task is None else clip.task.cpu()
            encoded.append(EncodedClips(x0=clip.x0.cpu(), text=clip.text.cpu(), task=task))
    batches.damage.check()
    return encoded


def _named_means(
    losses: Float64[np.ndarray, "clips tasks quartiles halves"], *, tasks: Sequence[Task | None]
) -> dict[str, float]:
    total, video, dense = np.moveaxis(losses, 3, 0)
    named = {"loss": total, "loss_video": video}
    if tasks != (None,):
        named["loss_dense"] = dense
        named |= {f"loss_{task}": total[:, i] for i, task in enumerate(tasks)}
    named |= {f"loss_t_quartile_{q + 1}": total[:, :, q] for q in range(QUARTILES)}
    for i, task in enumerate(tasks):
        halves = {"video": video} if task is None else {"video": video, "dense": dense}
        for half, values in halves.items():
            name = f"loss_{half}" if task is None else f"loss_{half}_{task}"
            cells = {f"{name}_t_quartile_{q + 1}": values[:, i, q] for q in range(QUARTILES)}
            named |= cells
    return {name: float(values.mean()) for name, values in named.items()}
