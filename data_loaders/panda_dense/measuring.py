"""Stage 2, first half: all scores of a clip, by what the settings name."""

from dataclasses import asdict, dataclass, fields
from typing import Literal

import numpy as np
import torch
from jaxtyping import UInt8

from data_loaders.panda_dense import measures
from data_loaders.panda_dense.aesthetic import AestheticScorer
from data_loaders.panda_dense.models import Dtype, ModelFacts, Pieces, library_version
from data_loaders.panda_dense.motion import Flow, RaftFlow, dis_flow, load_raft, measure_motion
from data_loaders.panda_dense.shot_cuts import content_scores, find_cuts
from data_loaders.panda_dense.text_overlay import TextDetector
from data_loaders.schema import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasureSettings:
    """How clips are measured; the thresholds are `thresholds.FilterSettings`."""

    motion_backend: Literal["dis", "raft"] = "dis"
    """dis: OpenCV's, on the CPU, 0.3 s per clip; raft: torchvision's, for a GPU, with
    `raft_weights`. How far their scores agree was not measured."""
    motion_rows: int = 256
    """Height at which motion is measured, pixels; the score is relative to the diagonal."""
    raft_weights: str | None = None
    """State dict of torchvision's RAFT, for 'raft'."""
    raft_size: Literal["small", "large"] = "large"
    """Which network the file holds."""
    cut_ratio: float = 2.0
    """A cut changes the picture so many times more than its neighbours. PySceneDetect's 3.0 is for
    the source's rate; at 8 frames per second 2.0 found all planted cuts of real clips, first and
    last frame included, and no other."""
    cut_content: float = 15.0
    """And by this content score at least, 0..255: PySceneDetect's own least value."""
    text_weights: str | None = None
    """ONNX file of PaddleOCR's text detector, such as OpenCV Zoo's
    text_detection_en_ppocrv3_2023may.onnx (Apache-2.0); None = text is not measured."""
    text_rows: int = 480
    """Height at which text is looked for, pixels: subtitles of a 480-row clip are legible there."""
    text_frames: int = 4
    """Frames that are looked at: overlaid text stays for seconds."""
    aesthetic_clip: str = "openai/clip-vit-large-patch14"
    """CLIP that `aesthetic_head` was trained on; folder or hub id."""
    aesthetic_head: str | None = None
    """LAION's predictor, sac+logos+ava1-l14-linearMSE.pth or sa_0_4_vit_l_14_linear.pth; None =
    looks are not measured."""
    aesthetic_frames: int = 4
    """Frames that are looked at; their mean is the score."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of CLIP. auto: fp16 on a GPU, as OpenAI's own program runs it, fp32 on a CPU."""


def check_measures(settings: MeasureSettings, *, section: str) -> None:
    """Check the settings.

    Raises:
        DataError: Names the setting.
    """
    if settings.motion_backend == "raft" and settings.raft_weights is None:
        raise DataError(
            f"{section}.raft_weights: expected a file for motion_backend 'raft', got None"
        )
    least = {"motion_rows": 16, "text_rows": 16, "text_frames": 1, "aesthetic_frames": 1}
    for name, number in {**least, "cut_ratio": 1.0, "cut_content": 0.0}.items():
        value = getattr(settings, name)
        if not number <= value < float("inf"):
            raise DataError(f"{section}.{name}: expected a number >= {number:g}, got {value}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """What was measured of a clip; None = not measured."""

    sharpness: float
    """Variance of the Laplacian of luma at 256 rows, median of the frames; >= 0."""
    dark: float
    """Share of pixels with luma <= 5 of 255, 0..1."""
    bright: float
    """Share of pixels with luma >= 250 of 255, 0..1."""
    luma: float
    """Mean luma, 0 black .. 1 white."""
    black_frames: float
    """Share of frames of which 98 % are black, 0..1."""
    letterbox: float
    """Share of the picture in black bars that stay, 0..1."""
    cuts: int
    """Hard cuts."""
    motion: float
    """Mean length of the optical flow per frame step, in diagonals of the picture."""
    motion_peak: float
    """The same of the fastest 5 % of the pixels."""
    still: float
    """Share of frame steps without any change, 0..1."""
    text: float | None
    """Share of the picture within boxes of text, 0..1."""
    aesthetic: float | None
    """LAION's prediction, about 1 to 10."""

    def as_row(self) -> dict[str, float | int | None]:
        """Columns of the manifest."""
        return asdict(self)

    @classmethod
    def from_row(cls, row: dict[str, float | int | None]) -> "Scores":
        """Undo `as_row`; other columns are left aside."""
        return cls(**{field.name: row[field.name] for field in fields(cls)})  # pyright: ignore[reportArgumentType]


class Measurer:
    """The loaded networks, if there are any, and the settings."""

    def __init__(
        self, settings: MeasureSettings, *, device: torch.device, section: str = "measure"
    ) -> None:
        """Load what the settings name.

        Args:
            settings: What to measure and with what.
            device: Where networks run.
            section: Name of the settings in messages.

        Raises:
            ValueError: A setting that cannot be used, or weights that cannot be loaded.
        """
        check_measures(settings, section=section)
        self._settings = settings
        self._flow: Flow = dis_flow
        self._raft: RaftFlow | None = None
        if settings.motion_backend == "raft":
            assert settings.raft_weights is not None  # checked before
            self._raft = load_raft(settings.raft_weights, size=settings.raft_size, device=device)
            self._flow = self._raft
        self._text = None if settings.text_weights is None else TextDetector(settings.text_weights)
        self._aesthetic: AestheticScorer | None = None
        if settings.aesthetic_head is not None:
            self._aesthetic = AestheticScorer(
                clip=settings.aesthetic_clip,
                head=settings.aesthetic_head,
                dtype=_dtype_of(settings, device=device),
                device=device,
            )

    @property
    def facts(self) -> ModelFacts:
        """What made the scores."""
        if self._aesthetic is not None:
            return self._aesthetic.facts
        return ModelFacts(backend="measured", version=library_version("opencv-python-headless"))

    @property
    def pieces(self) -> list[Pieces]:
        """What goes through the models at once."""
        return [part.pieces for part in (self._raft, self._aesthetic) if part is not None]

    def measure(self, frames: UInt8[np.ndarray, "t h w 3"], *, fps: float) -> Scores:
        """All scores of a clip.

        Args:
            frames: RGB, 0..255: what `read_clip` gave, so that it is judged by what a model sees.
            fps: Their rate.
        """
        settings = self._settings
        gray = measures.working_gray(frames)
        dark, bright, luma = measures.exposure(gray)
        changes = content_scores(frames, fps=fps)
        cuts = find_cuts(changes, ratio=settings.cut_ratio, least=settings.cut_content)
        motion = measure_motion(frames, flow=self._flow, rows=settings.motion_rows)
        text = aesthetic = None
        if self._text is not None:
            some = _spread(frames, count=settings.text_frames)
            text = self._text.share(some, rows=settings.text_rows)
        if self._aesthetic is not None:
            aesthetic = self._aesthetic.score(_spread(frames, count=settings.aesthetic_frames))
        return Scores(
            sharpness=measures.sharpness(gray),
            dark=dark,
            bright=bright,
            luma=luma,
            black_frames=measures.black_frames(gray),
            letterbox=measures.letterbox(gray),
            cuts=len(cuts),
            motion=motion.mean,
            motion_peak=motion.peak,
            still=measures.still_steps(gray),
            text=text,
            aesthetic=aesthetic,
        )


def _dtype_of(settings: MeasureSettings, *, device: torch.device) -> Dtype:
    if settings.dtype != "auto":
        return settings.dtype
    return "fp32" if device.type == "cpu" else "fp16"


def _spread(frames: UInt8[np.ndarray, "t h w 3"], *, count: int) -> UInt8[np.ndarray, "n h w 3"]:
    """The middle frames of `count` equal parts of a clip."""
    count = min(count, len(frames))
    return frames[[(2 * i + 1) * len(frames) // (2 * count) for i in range(count)]]
