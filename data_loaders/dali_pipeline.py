"""Clips through DALI: decode, crop, resize and normalise, on a CPU or a GPU, as `geometry` does.

One pipeline definition serves both devices and both kinds of input: files that DALI decodes, and
frames that PyAV has decoded where DALI cannot. It is run once per batch and holds no state: which
clip comes next is decided outside, so a resumed run sees the same data.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int32, UInt16
from torch import Tensor

from data_loaders.damage import DamagedClipsError
from data_loaders.geometry import crop, nearest
from data_loaders.raw_clip import Device, RawClip
from data_loaders.schema import DataError

# A sample without labels still needs an array: one pixel.
_NO_LABELS = np.zeros((1, 1, 1), np.uint16)


@dataclass(frozen=True, kw_only=True)
class FittedBatch:
    """Clips of the wanted size, on the device."""

    rgb: Float[Tensor, "b t 3 h w"]
    """float32 in [-1, 1]."""
    labels: list[Int32[Tensor, "t h w"] | None]
    """Per clip: ids as they were, or depth 0..65535."""


@lru_cache(maxsize=1)
def load_dali() -> SimpleNamespace:
    """DALI's parts that we use, imported at the first call.

    Raises:
        DataError: DALI is not installed.
    """
    try:
        return SimpleNamespace(
            Pipeline=importlib.import_module("nvidia.dali").Pipeline,
            fn=importlib.import_module("nvidia.dali.fn"),
            types=importlib.import_module("nvidia.dali.types"),
            feed=importlib.import_module("nvidia.dali.plugin.pytorch").feed_ndarray,
        )
    except ImportError as error:
        raise DataError(
            f"DALI: expected nvidia-dali to be installed (pip install 'udpdiff[dali]'): {error}"
        ) from error


@dataclass(frozen=True, kw_only=True, slots=True)
class _Route:
    """What a clip needs: clips of one route share a pipeline."""

    encoded: bool
    """A file to decode and crop; else frames, cropped before."""
    resize: bool
    """DALI's CPU resize takes 0.7 s for 49x480x720 even where nothing changes."""


def _sources(fn: Any, types: Any, *, encoded: bool, device: Device) -> tuple[Any, Any]:
    """(cropped RGB, labels), both FHWC on the device."""
    labels = fn.external_source(name="labels", dtype=types.UINT16, ndim=4, layout="FHWC")
    if device == "gpu":
        labels = labels.gpu()
    if not encoded:
        rgb = fn.external_source(name="rgb", dtype=types.UINT8, ndim=4, layout="FHWC")
        return (rgb.gpu() if device == "gpu" else rgb), labels
    data = fn.external_source(name="rgb", dtype=types.UINT8, ndim=1)
    frames = fn.external_source(name="frames", dtype=types.INT32, ndim=1)
    start = fn.external_source(name="start", dtype=types.INT32, ndim=1)
    shape = fn.external_source(name="shape", dtype=types.INT32, ndim=1)
    video = fn.decoders.video(
        data,
        frames=frames,
        device="mixed" if device == "gpu" else "cpu",
        # The default fills frames that a file lacks with black, without an error.
        pad_mode="none",
        # Threads pinned to cores would stand on the same cores in every rank's process.
        affine=False,
    )
    return fn.slice(video, start=start, shape=shape, axis_names="HW"), labels


def _build(
    route: _Route,
    *,
    size: tuple[int, int],
    device: Device,
    device_id: int | None,
    **options: int,
) -> Any:
    """The pipeline: (rgb FCHW float32 in [-1, 1], labels FHWC int32)."""
    dali = load_dali()
    fn, types = dali.fn, dali.types
    # Depth 1: every run takes what was just fed, and nothing is prepared for a next one.
    pipeline = dali.Pipeline(device_id=device_id, prefetch_queue_depth=1, **options)
    with pipeline:
        rgb, labels = _sources(fn, types, encoded=route.encoded, device=device)
        if route.resize:
            wanted = {"size": list(size), "antialias": True}
            # uint8 in between, as in `geometry`: a cubic's overshoot would leave [-1, 1].
            rgb = fn.resize(rgb, interp_type=types.INTERP_CUBIC, **wanted)
            # Ids come in the right size, and a linear filter then changes nothing.
            labels = fn.resize(labels, interp_type=types.INTERP_LINEAR, **wanted)
        rgb = fn.crop_mirror_normalize(
            rgb, mean=[127.5] * 3, std=[127.5] * 3, dtype=types.FLOAT, output_layout="FCHW"
        )
        pipeline.set_outputs(rgb, fn.cast(labels, dtype=types.INT32))
    pipeline.build()
    return pipeline


def _reason(error: RuntimeError) -> str:
    """DALI's message without its traceback and source lines, in one line."""
    text = str(error)
    _, found, after = text.partition("encountered:")
    text = after if found else text
    return " ".join(text.partition("C++ context")[0].split()) or type(error).__name__


def _size_fault(clip: RawClip) -> str:
    sizes = [one.shape[1:3] for one in (clip.rgb, clip.labels) if isinstance(one, np.ndarray)]
    if len(set(sizes)) > 1:
        (height, width), (rows, columns) = sizes
        return f"expected labels of {height}x{width} pixels, got {rows}x{columns}"
    box = clip.box
    for height, width in sizes:
        if not (0 <= box.top <= height - box.height and 0 <= box.left <= width - box.width):
            return f"expected a crop within {height}x{width}, got {box}"
    return ""


class DaliFitter:
    """Makes batches of one size out of clips of any size.

    Not safe to call from several threads at once.

    Args:
        num_frames: Of every clip.
        height: Wanted, pixels.
        width: Wanted, pixels.
        device: Where DALI works and its results lie.
        max_batch_size: Most clips per call.
        num_threads: DALI's CPU threads.
        device_id: CUDA device of "gpu"; None for torch's current one.

    Raises:
        DataError: DALI is not installed, or there is no GPU for "gpu".
    """

    def __init__(  # noqa: PLR0913 - size, device and limits, as keywords
        self,
        *,
        num_frames: int,
        height: int,
        width: int,
        device: Device,
        max_batch_size: int,
        num_threads: int,
        device_id: int | None = None,
    ) -> None:
        load_dali()
        if device == "gpu" and not torch.cuda.is_available():
            raise DataError("DALI: expected a CUDA device for device 'gpu', found none")
        self._num_frames, self._size = num_frames, (height, width)
        self._device: Device = device
        self._device_id = None
        if device == "gpu":
            self._device_id = torch.cuda.current_device() if device_id is None else device_id
        self._options = {"batch_size": max_batch_size, "num_threads": num_threads}
        self._pipelines: dict[_Route, Any] = {}

    def __call__(self, clips: Sequence[RawClip]) -> FittedBatch:
        """Fit clips, in the order given.

        Args:
            clips: From 1 to `max_batch_size`, with labels of either kind or none.

        Returns:
            The batch; its tensors are the caller's own.

        Raises:
            DamagedClipsError: Clips that contradict themselves or `num_frames`, or that DALI
                refuses when it is given them alone; names all.
        """
        if not 0 < len(clips) <= self._options["batch_size"]:
            raise ValueError(f"expected 1 to {self._options['batch_size']} clips, got {len(clips)}")
        faults = {clip.key: fault for clip in clips if (fault := self._fault(clip))}
        if faults:
            raise DamagedClipsError(faults)
        try:
            return self._fit(clips)
        except RuntimeError as error:
            reasons = self._blame(clips)
            if not reasons:
                raise  # no clip's fault: memory, the driver
            raise DamagedClipsError(reasons) from error

    def close(self) -> None:
        """Free the pipelines' threads and memory; the next call builds new ones."""
        self._pipelines.clear()

    def _fault(self, clip: RawClip) -> str:
        """How a clip contradicts itself, or ''."""
        encoded = isinstance(clip.rgb, bytes)
        count = len(clip.indices if encoded else clip.rgb)
        if count != self._num_frames:
            return f"expected {self._num_frames} frames, got {count}"
        if encoded and not clip.rgb:
            return "expected a video file, got 0 bytes"
        if (clip.labels is None) != (clip.label_kind is None):
            return (
                "expected labels and their kind together, got "
                f"{'none' if clip.labels is None else 'labels'} of kind {clip.label_kind!r}"
            )
        if clip.labels is not None and len(clip.labels) != count:
            return f"expected labels of {count} frames, got {len(clip.labels)}"
        return _size_fault(clip)

    def _fit(self, clips: Sequence[RawClip]) -> FittedBatch:
        groups: dict[_Route, list[int]] = {}
        for i, clip in enumerate(clips):
            route = _Route(
                encoded=isinstance(clip.rgb, bytes),
                resize=(clip.box.height, clip.box.width) != self._size,
            )
            groups.setdefault(route, []).append(i)
        labels: list[Any] = [None] * len(clips)
        parts: list[Tensor] = []
        for route, places in groups.items():
            part, found = self._run([clips[i] for i in places], route=route)
            parts.append(part)
            for i, one in zip(places, found, strict=True):
                labels[i] = one
        if len(parts) == 1:
            return FittedBatch(rgb=parts[0], labels=labels)
        order = torch.tensor([i for places in groups.values() for i in places]).argsort()
        rgb = torch.cat(parts)
        return FittedBatch(rgb=rgb[order.to(rgb.device)], labels=labels)

    def _run(
        self, clips: Sequence[RawClip], *, route: _Route
    ) -> tuple[Tensor, list[Tensor | None]]:
        if route not in self._pipelines:
            self._pipelines[route] = _build(
                route,
                size=self._size,
                device=self._device,
                device_id=self._device_id,
                **self._options,
            )
        try:
            feeds = self._feeds(clips, encoded=route.encoded)
            rgb, labels = self._pipelines[route].run(**feeds)
        except RuntimeError:
            # After an error DALI's pipeline is of no further use.
            del self._pipelines[route]
            raise
        batch = self._copy(rgb.as_tensor(), dtype=torch.float32)
        found = [
            None if clip.labels is None else self._copy(labels[i], dtype=torch.int32)[..., 0]
            for i, clip in enumerate(clips)
        ]
        return batch, found

    def _feeds(self, clips: Sequence[RawClip], *, encoded: bool) -> dict[str, list[np.ndarray]]:
        feeds = {"labels": [self._labels(clip)[..., None] for clip in clips]}
        if not encoded:
            frames = (np.asarray(clip.rgb) for clip in clips)
            areas = (crop(one, box=clip.box) for one, clip in zip(frames, clips, strict=True))
            return feeds | {"rgb": [np.ascontiguousarray(area) for area in areas]}
        files = [clip.rgb for clip in clips if isinstance(clip.rgb, bytes)]
        boxes = [clip.box for clip in clips]
        return feeds | {
            "rgb": [np.frombuffer(file, np.uint8) for file in files],
            "frames": [np.array(clip.indices, np.int32) for clip in clips],
            "start": [np.array([box.top, box.left], np.int32) for box in boxes],
            "shape": [np.array([box.height, box.width], np.int32) for box in boxes],
        }

    def _labels(self, clip: RawClip) -> UInt16[np.ndarray, "t h w"]:
        if clip.labels is None:
            return _NO_LABELS
        area = crop(clip.labels, box=clip.box)
        if clip.label_kind == "entity_ids":
            # Here, not in DALI: its nearest filter errs where a pixel's centre falls on an edge.
            area = nearest(area, height=self._size[0], width=self._size[1])
        return np.ascontiguousarray(area)

    def _copy(self, found: Any, *, dtype: torch.dtype) -> Tensor:
        """What DALI will overwrite at its next run, as a tensor of our own."""
        if self._device == "cpu":
            into = torch.empty(found.shape(), dtype=dtype)
            return load_dali().feed(found, into)
        into = torch.empty(found.shape(), dtype=dtype, device=f"cuda:{self._device_id}")
        stream = torch.cuda.current_stream(into.device)
        load_dali().feed(found, into, cuda_stream=stream)
        # Given a stream, the copy is asynchronous, and DALI does not know about it.
        stream.synchronize()
        return into

    def _blame(self, clips: Sequence[RawClip]) -> dict[str, str]:
        """Run clips one by one: key -> why, of those that fail."""
        reasons: dict[str, str] = {}
        for clip in clips:
            try:
                self._fit([clip])
            except RuntimeError as error:
                reasons[clip.key] = f"DALI: {_reason(error)}"
        return reasons
