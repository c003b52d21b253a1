"""Carrying entity masks, or points, through a clip with SAM 2 (Ravi et al. 2024).

Objects are independent of each other in the model; they meet where their masks are compared, pixel
by pixel: the highest logit wins, and where none is above zero the pixel stays unlabelled. So they
may be tracked some at a time, and each frame is seen once by all of them: first by the encoder,
whose features the groups share, then group after group.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, UInt8, UInt16
from torch import Tensor
from torch.nn.functional import interpolate

from data_loaders.panda_dense.models import Dtype, ModelFacts, Pieces
from data_loaders.panda_dense.reprompting import Reprompter
from data_loaders.panda_dense.sam2_inputs import (
    LoadedSam2,
    load_sam2,
    prepare_picture,
    scale_points,
)
from data_loaders.schema import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class Sam2Settings:
    """Which model, and how much at once."""

    weights: str = "facebook/sam2.1-hiera-large"
    """Folder or hub id; the largest, for the masks are what is trained on."""
    dtype: Dtype | None = None
    """Of weights, frames and activations; null = bf16 on a GPU, as Meta's code runs, fp32 on a
    CPU."""
    objects_per_pass: int = 32
    """Objects whose memories are encoded together, 33 MiB of the device each at 1024 x 1024, bf16:
    32 fit beside the large model on a card of 8 GiB. More is hardly faster, for transformers
    attends object by object. (What is kept from frame to frame is 8 MiB per object, of all.)"""


def check_sam2(settings: Sam2Settings, *, section: str) -> None:
    """Check the values.

    Raises:
        DataError: A value out of its range, naming `section` and the field.
    """
    if not settings.weights:
        raise DataError(f"{section}.weights: expected a folder or hub id, got ''")
    if settings.dtype not in (None, "fp32", "bf16", "fp16"):
        raise DataError(f"{section}.dtype: expected fp32, bf16, fp16 or null, got {settings.dtype}")
    if settings.objects_per_pass < 1:
        raise DataError(
            f"{section}.objects_per_pass: expected >= 1, got {settings.objects_per_pass}"
        )


class Sam2Propagator:
    """SAM 2 for video, through transformers.

    Args:
        loaded: The video model.
        objects_per_pass: Objects whose memories are encoded together.
        device: Where it runs; the clip stays on the host, one frame at a time goes there.
    """

    def __init__(self, loaded: LoadedSam2, *, objects_per_pass: int, device: torch.device) -> None:
        self.facts: ModelFacts = loaded.facts
        self._loaded = loaded
        self.pieces = Pieces(objects_per_pass)
        self._device = device

    @classmethod
    def load(
        cls, settings: Sam2Settings, *, device: torch.device, section: str = "propagation.sam2"
    ) -> "Sam2Propagator":
        """Load the weights.

        Args:
            settings: Which weights.
            device: Where it runs.
            section: Of the configuration, for messages.

        Raises:
            ValueError: No weights, or they do not fit; names `section`.weights.
        """
        loaded = load_sam2(
            "video",
            settings.weights,
            key=f"{section}.weights",
            dtype=settings.dtype,
            device=device,
        )
        return cls(loaded, objects_per_pass=settings.objects_per_pass, device=device)

    def propagate(
        self,
        rgb: UInt8[np.ndarray, "t h w 3"],
        ids: UInt16[np.ndarray, "h w"],
        *,
        reprompter: Reprompter | None = None,
    ) -> UInt16[np.ndarray, "t h w"]:
        """Carry the masks of the first frame through the clip.

        Args:
            rgb: Frames, 0..255.
            ids: Of the first frame; each id is a mask prompt, 0 = unlabelled.
            reprompter: Finds entities that come in later; None = they stay unlabelled.

        Returns:
            Ids of every frame, the same through the clip; 0 = unlabelled. The first frame is what
            the model makes of its prompts, at a quarter of its resolution as all others: equal to
            `ids` but for borders.
        """
        return self._run(rgb, _mask_prompts(ids), reprompter=reprompter)

    def propagate_points(
        self, rgb: UInt8[np.ndarray, "t h w 3"], points: Float32[np.ndarray, "n 2"]
    ) -> UInt16[np.ndarray, "t h w"]:
        """Take each point for an object of its own and carry them through the clip.

        What several points see as their object goes to the one with the highest logit, pixel by
        pixel: an entity under many points comes out in patches.

        Args:
            rgb: Frames, 0..255.
            points: (x, y), pixels of the first frame.

        Returns:
            Ids of every frame: 1 for the first point, 2 for the second, ...; 0 = none.
        """
        height, width = rgb.shape[1:3]
        scaled = scale_points(points, height=height, width=width, size=self._loaded.size)
        prompts = {i + 1: _PointPrompt(point) for i, point in enumerate(scaled)}
        return self._run(rgb, prompts, reprompter=None)

    @torch.inference_mode()
    def _run(
        self,
        rgb: UInt8[np.ndarray, "t h w 3"],
        prompts: Mapping[int, "_Prompt"],
        *,
        reprompter: Reprompter | None,
    ) -> UInt16[np.ndarray, "t h w"]:
        clip = np.zeros(rgb.shape[:3], np.uint16)
        tracker = _Tracker(self._loaded, rgb, per_pass=self.pieces.size, device=self._device)
        tracker.add(prompts, frame=0)
        next_id = max(prompts, default=0) + 1
        for t, frame in enumerate(rgb):
            contest = _Contest(frame.shape[:2], device=self._device)
            tracker.track(t, contest=contest)
            if reprompter is not None and reprompter.is_due(t):
                new = reprompter.new_entities(frame, known=contest.ids(), next_id=next_id)
                # They compete on this frame too, against what is there.
                tracker.add(_mask_prompts(new), frame=t)
                tracker.track(t, contest=contest)
                next_id = max(next_id, int(new.max()) + 1)
            clip[t] = contest.ids()
            tracker.forget(t)
        return clip


@dataclass(frozen=True, slots=True)
class _MaskPrompt:
    mask: Bool[np.ndarray, "h w"]


@dataclass(frozen=True, slots=True)
class _PointPrompt:
    point: Float32[Tensor, "2"]
    """(x, y) in the square that the model sees."""


_Prompt = _MaskPrompt | _PointPrompt


def _mask_prompts(ids: UInt16[np.ndarray, "h w"]) -> dict[int, _Prompt]:
    return {int(i): _MaskPrompt(ids == i) for i in np.unique(ids) if i > 0}


class _Contest:
    """Who has each pixel of one frame: the highest logit of all objects so far, if above zero."""

    def __init__(self, size: tuple[int, int], *, device: torch.device) -> None:
        self._best = torch.zeros(size, device=device)
        self._ids = torch.zeros(size, dtype=torch.int32, device=device)

    def enter(self, logits: Float[Tensor, "n y x"], *, ids: Sequence[int]) -> None:
        """Let objects compete; of equal logits the one that entered first wins.

        Args:
            logits: Of each object, at any size; compared at the size of the frame.
            ids: Of the objects, > 0.
        """
        full = interpolate(
            logits[:, None].float(), size=self._best.shape, mode="bilinear", align_corners=False
        )
        best, place = full[:, 0].max(dim=0)
        better = best > self._best
        named = torch.tensor(ids, dtype=torch.int32, device=place.device)[place]
        self._best = torch.where(better, best, self._best)
        self._ids = torch.where(better, named, self._ids)

    def ids(self) -> UInt16[np.ndarray, "h w"]:
        """The winners; 0 = nobody."""
        return self._ids.cpu().numpy().astype(np.uint16)


class _Frames(Mapping[int, Tensor]):
    """The clip for a session, each frame prepared when it is asked for."""

    def __init__(self, rgb: UInt8[np.ndarray, "t h w 3"], *, size: int, dtype: torch.dtype) -> None:
        self._rgb = rgb
        self._size = size
        self._dtype = dtype

    def __getitem__(self, t: int) -> Tensor:
        return prepare_picture(self._rgb[t], size=self._size).to(self._dtype)

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self)))

    def __len__(self) -> int:
        return len(self._rgb)


class _Tracker:
    """Sessions of one clip, one per group of objects. They share the features of the frame."""

    def __init__(
        self,
        loaded: LoadedSam2,
        rgb: UInt8[np.ndarray, "t h w 3"],
        *,
        per_pass: int,
        device: torch.device,
    ) -> None:
        self._model = loaded.model
        self._loaded = loaded
        self._device = device
        self._per_pass = per_pass
        self._size: tuple[int, int] = (rgb.shape[1], rgb.shape[2])
        self._frames = _Frames(rgb, size=loaded.size, dtype=loaded.dtype)
        self._sessions: list[Any] = []
        self._tracked: list[int] = []

    def add(self, prompts: Mapping[int, _Prompt], *, frame: int) -> None:
        """Take in objects that are prompted on a frame, in the order of their ids."""
        ids = sorted(prompts)
        for start in range(0, len(ids), self._per_pass):
            group = {i: prompts[i] for i in ids[start : start + self._per_pass]}
            self._sessions.append(self._session(group, frame=frame))
            self._tracked.append(frame - 1)

    def _session(self, prompts: Mapping[int, _Prompt], *, frame: int) -> Any:
        from transformers import Sam2VideoInferenceSession

        session: Any = Sam2VideoInferenceSession(
            video_height=self._size[0],
            video_width=self._size[1],
            inference_device=self._device,
            inference_state_device=self._device,
            dtype=self._loaded.dtype,  # pyright: ignore[reportArgumentType]
        )
        session.processed_frames = self._frames
        if self._sessions:
            session.cache = self._sessions[0].cache
        for number, prompt in prompts.items():
            place = session.obj_id_to_idx(number)
            if isinstance(prompt, _MaskPrompt):
                mask = _square_mask(prompt.mask, size=self._loaded.size, device=self._device)
                session.add_mask_inputs(place, frame, mask)
            else:
                point = {
                    "point_coords": prompt.point[None, None, None],
                    "point_labels": torch.ones(1, 1, 1, dtype=torch.int32),
                }
                session.add_point_inputs(place, frame, point)
        session.obj_with_new_inputs = list(prompts)
        return session

    def track(self, t: int, *, contest: _Contest) -> None:
        """Run all groups that have not seen frame t yet on it."""
        for place, session in enumerate(self._sessions):
            if self._tracked[place] < t:
                found = self._model(session, frame_idx=t)
                self._tracked[place] = t
                logits = found.pred_masks[:, 0].float()
                seen = found.object_score_logits.reshape(-1).float() > 0
                # An object that is hidden has no mask, whatever its logits say.
                logits = torch.where(seen[:, None, None], logits, logits.clamp(max=-1))
                contest.enter(logits, ids=[int(i) for i in found.object_ids])

    def forget(self, t: int) -> None:
        """Drop what no later frame looks at; transformers would keep it all.

        Full-size masks of every frame and object are 2 MiB each in bf16, 20 GiB for 200 objects of
        a clip. Later frames look at the prompts, the last `num_maskmem` - 1 memories and the last
        `max_object_pointers_in_encoder` - 1 pointers.
        """
        config = self._model.config
        memories = t + 1 - (config.num_maskmem - 1)
        pointers = t + 1 - (config.max_object_pointers_in_encoder - 1)
        for session in self._sessions:
            for outputs in session.output_dict_per_obj.values():
                kept = outputs["non_cond_frame_outputs"]
                for frame, output in [*kept.items(), *outputs["cond_frame_outputs"].items()]:
                    output.pop("high_res_masks", None)
                    output.pop("pred_masks", None)
                    if frame < memories and frame in kept:
                        output.pop("maskmem_features", None)
                        output.pop("maskmem_pos_enc", None)
                for frame in [old for old in kept if old < min(memories, pointers)]:
                    del kept[frame]
            for given in (session.mask_inputs_per_obj, session.point_inputs_per_obj):
                for prompts in given.values():
                    prompts.clear()


def _square_mask(
    mask: Bool[np.ndarray, "h w"], *, size: int, device: torch.device
) -> Float32[Tensor, "1 1 s s"]:
    """A mask prompt in the square that the model sees: a pixel is in if half of it is."""
    square = torch.from_numpy(mask).to(device=device, dtype=torch.float32)[None, None]
    if mask.shape != (size, size):
        square = interpolate(
            square, size=(size, size), mode="bilinear", align_corners=False, antialias=True
        )
    return (square >= 0.5).float()
