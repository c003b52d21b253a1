"""Examples by DALI: processes read and check, DALI decodes, crops and resizes in the background.

What DALI cannot decode on its device (H.264 on the CPU, ffv1 anywhere) the processes decode by
PyAV. Sample for sample the batches are those of `decoder: pyav`, up to the rounding of filters.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int32, UInt8
from torch import Tensor

from data_loaders.batches import ClipBatch, batch_facts, to_floats
from data_loaders.dali_pipeline import DaliFitter, FittedBatch, load_dali
from data_loaders.examples import ExampleFacts, draw_entity_colors, paint_depth, paint_ids
from data_loaders.order import ClipSize
from data_loaders.raw_examples import RawExample
from sat_udpdiff.colormaps import tensors
from sat_udpdiff.config import Config


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _FittedClips:
    facts: list[ExampleFacts]
    rgb: Float[Tensor, "b t 3 h w"]
    dense: Float[Tensor, "b t 3 h w"] | None


class DaliJoiner:
    """Joins examples of `RawExampleMaker`.

    Args:
        config: Batch size and colormaps.
        device: Of training; DALI works on the same.

    Raises:
        DataError: DALI is not installed.
    """

    def __init__(self, config: Config, *, device: torch.device) -> None:
        load_dali()
        self._config, self._device = config, device
        self._fitters: dict[ClipSize, DaliFitter] = {}

    def join(self, examples: Sequence[RawExample]) -> _FittedClips:
        """Fit and paint the clips, on the device.

        Raises:
            DamagedClipsError: DALI cannot decode some; names them.
        """
        size = examples[0].size
        if size not in self._fitters:
            self._fitters[size] = self._make_fitter(size)
        fitted = self._fitters[size]([example.clip for example in examples])
        return _FittedClips(
            facts=[example.facts for example in examples],
            rgb=fitted.rgb,
            dense=self._paint(examples, fitted),
        )

    def finish(self, joined: _FittedClips) -> ClipBatch:
        """The batch; everything is on the device already."""
        return ClipBatch(**batch_facts(joined.facts), rgb=joined.rgb, dense=joined.dense)

    def close(self) -> None:
        """Free DALI's threads and memory."""
        for fitter in self._fitters.values():
            fitter.close()

    def _make_fitter(self, size: ClipSize) -> DaliFitter:
        return DaliFitter(
            num_frames=size.num_frames,
            height=size.height,
            width=size.width,
            device="gpu" if self._device.type == "cuda" else "cpu",
            max_batch_size=self._config.train.micro_batch_size,
            num_threads=max(1, self._config.data.num_workers),
            device_id=self._device.index,
        )

    def _paint(
        self, examples: Sequence[RawExample], fitted: FittedBatch
    ) -> Float[Tensor, "b t 3 h w"] | None:
        found = [labels for labels in fitted.labels if labels is not None]
        if not found:
            return None
        pairs = zip(found, examples, strict=True)
        if self._device.type == "cpu":
            # A table of 8-bit colours takes a quarter of the time of floats.
            painted = [self._paint_on_cpu(labels, example=example) for labels, example in pairs]
            return to_floats(torch.from_numpy(np.stack(painted)))
        return torch.stack(
            [
                tensors.encode_depth(labels / 65535.0)
                if example.facts.task == "depth"
                else paint_ids_on_device(labels, example=example, config=self._config)
                for labels, example in pairs
            ]
        )

    def _paint_on_cpu(
        self, labels: Int32[Tensor, "t h w"], *, example: RawExample
    ) -> UInt8[np.ndarray, "t h w 3"]:
        values = labels.numpy().astype(np.uint16)
        if example.facts.task == "depth":
            return paint_depth(values)
        key, coloring = example.facts.key, example.coloring
        return paint_ids(values, key=key, epoch=coloring, config=self._config)


def paint_ids_on_device(
    ids: Int32[Tensor, "t h w"], *, example: RawExample, config: Config
) -> Float[Tensor, "t 3 h w"]:
    """`examples.paint_ids` on the tensor's device, colours in [-1, 1]."""
    colormap = config.colormap
    is_seen = torch.bincount(ids.flatten()) > 0
    is_seen[0] = False
    ids = torch.where(is_seen, is_seen.cumsum(0), 0).int()[ids]
    if colormap.segmentation == "location_aware":
        return tensors.encode_location_aware(ids, grid=colormap.location_grid)
    count, key = int(is_seen.sum()), example.facts.key
    colors = draw_entity_colors(count, key=key, epoch=example.coloring, config=config)
    return tensors.encode_pixelplanes(ids, colors=torch.from_numpy(colors).to(ids.device))
