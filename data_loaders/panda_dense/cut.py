"""Stage `cut`: the clips as they go into the shards, which all later stages look at.

They are encoded once: labels belong to the very frames that training sees.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data_loaders.clip_writer import codec_for
from data_loaders.decode import RGB_ENCODINGS, encode_labels, encode_rgb
from data_loaders.geometry import fit_depth, fit_ids
from data_loaders.panda_dense.clip_reader import MISSING, ClipError, read_clip, read_labels
from data_loaders.panda_dense.ingest import source_of
from data_loaders.panda_dense.sidecars import ClipSource
from data_loaders.panda_dense.stage import Clip, Dropped, Flagged, Kept, Outcome, Stage
from data_loaders.schema import DataError
from data_loaders.shard_format import LABEL_MEMBERS
from data_loaders.source_video import TimedVideo


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipSettings:
    """What the clips of the data set are."""

    num_frames: int = 49
    """4k + 1, as the video codec takes: CogVideoX's 49, about 6 s."""
    fps: float = 8.0
    """Frames per second: CogVideoX's."""
    height: int = 480
    """Pixels, a multiple of 16: of the codec's 8 and the patches of 2."""
    width: int = 720
    """Pixels, a multiple of 16. The source is scaled to cover both and cut in the centre."""
    rgb_codec: Literal["auto", "h264", "vp9", "ffv1"] = "auto"
    """'auto': ffv1, which is exact, up to 256 x 256 pixels, else h264 at crf 14. 'vp9' is what DALI
    decodes on a CPU."""


def check_clip(settings: ClipSettings, *, section: str) -> None:
    """Check the settings.

    Raises:
        DataError: One is out of range; names it.
    """
    if settings.num_frames < 1 or settings.num_frames % 4 != 1:
        raise DataError(
            f"{section}.num_frames: expected 4k + 1 (5, 9, ... 49), got {settings.num_frames}"
        )
    if not 0 < settings.fps < float("inf"):
        raise DataError(f"{section}.fps: expected a number > 0, got {settings.fps}")
    for name in ("height", "width"):
        value = getattr(settings, name)
        if value < 16 or value % 16:
            raise DataError(f"{section}.{name}: expected a multiple of 16, got {value}")


def check_videos(videos: str) -> None:
    """Refuse a folder of sources that is not there.

    Raises:
        DataError: Names the setting.
    """
    if not videos or not Path(videos).is_dir():
        raise DataError(f"ingest.videos: expected a folder, got {videos!r}")


class CutStage(Stage):
    """See the module.

    Args:
        settings: Of the clips.
        videos: Folder of the sources.
    """

    name, reads = "cut", ("ingest",)

    def __init__(self, settings: ClipSettings, *, videos: str) -> None:
        self._settings, self._videos = settings, videos

    def settings(self) -> dict[str, Any]:
        """Of the clips."""
        return asdict(self._settings)

    def check(self) -> None:
        """The numbers, and the folder of the sources."""
        check_clip(self._settings, section="clip")
        check_videos(self._videos)

    def work(self, clips: Sequence[Clip]) -> list[Outcome]:
        """Cut each clip."""
        return [self._cut(source_of(clip, videos=self._videos)) for clip in clips]

    def _cut(self, source: ClipSource) -> Outcome:
        settings = self._settings
        try:
            video = read_clip(
                source,
                num_frames=settings.num_frames,
                fps=settings.fps,
                height=settings.height,
                width=settings.width,
            )
        except ClipError as error:
            return unusable(error)
        codec = codec_for(video.rgb, rgb_codec=settings.rgb_codec)
        member = RGB_ENCODINGS[codec].member
        files = {member: encode_rgb(video.rgb, fps=settings.fps, codec=codec)}
        labels = self._labels(source, video=video)
        files |= {
            f"exact.{LABEL_MEMBERS[name]}": encode_labels(label, fps=settings.fps)
            for name, label in labels.items()
        }
        columns = asdict(settings) | {"member": member, "labels": sorted(labels)}
        return Kept(columns=columns, files=files)

    def _labels(self, source: ClipSource, *, video: TimedVideo) -> dict[str, np.ndarray]:
        """Exact labels of a synthetic source, cut and resized as the video was."""
        if not source.member:
            return {}
        found = {}
        for name, fit in (("entity_ids", fit_ids), ("depth", fit_depth)):
            label = read_labels(source, name, video=video)
            if label is not None:
                height, width = self._settings.height, self._settings.width
                found[name] = fit(label, height=height, width=width)
        return found


def unusable(error: ClipError) -> Outcome:
    """The outcome of a clip that cannot be read: of one that is gone it may come back."""
    if error.reason == MISSING:
        return Flagged(reason=error.reason, detail=error.detail)
    return Dropped(reason=error.reason, detail=error.detail)
