"""What the loader is compared with: CogVideoX's rule of loading, and plain PyAV; both over files.

Both are map-style datasets for torch's DataLoader. They get the stored clips as files of a folder,
every sample number the clip and the task that the loader would give it, and no captions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import Dataset

from data_loaders.order import draws
from sat_udpdiff.colormaps.depth import COLORS
from sat_udpdiff.config import Config

_ENDLESS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class ClipFiles:
    """One clip as files."""

    rgb: Path
    entity_ids: Path
    depth: Path


class _Clips(Dataset):
    def __init__(self, clips: Sequence[ClipFiles], *, config: Config) -> None:
        self._clips, self._config = clips, config
        self._size = (config.data.height, config.data.width)

    def __len__(self) -> int:
        return _ENDLESS

    def _cover(self, video: Tensor) -> Tensor:
        """(t, c, h, w) of 0..255, resized to cover the wanted size and cut to its centre.

        As torchvision does it to a uint8 tensor: in float32, antialiased, rounded back.
        """
        (rows, columns), (height, width) = video.shape[2:], self._size
        if columns / rows > width / height:
            size = [height, int(columns * height / rows)]
        else:
            size = [int(rows * width / columns), width]
        if size != [rows, columns]:
            video = interpolate(video.float(), size=size, mode="bicubic", antialias=True)
            video = video.clamp_(0, 255).round_().to(torch.uint8)
        top, left = (size[0] - height) // 2, (size[1] - width) // 2
        return video[:, :, top : top + height, left : left + width]


class CogVideoX(_Clips):
    """The rule of CogVideo's `sat/data_video.py`, SFTDataset (v1.0 and later), by decord.

    Every frame of the span is decoded and converted to RGB, then every k-th of them is kept.
    `skip` is 0 and not its 3: a clip of 49 frames would otherwise be cut to 41 and padded.
    """

    skip = 0

    def __getitem__(self, n: int) -> Tensor:
        import decord  # here, so that the other contestants do without

        decord.bridge.set_bridge("torch")
        reader = decord.VideoReader(uri=str(self._clips[n % len(self._clips)].rgb))
        wanted, rate, count = self._config.data.num_frames, reader.get_avg_fps(), len(reader)
        if count / rate * self._config.data.fps > wanted:
            end = int(self.skip + wanted / self._config.data.fps * rate)
            step = (end - self.skip) // wanted
        else:
            end = count - self.skip
            step = max((end - self.skip) // wanted, 1)
        frames = reader.get_batch(np.arange(self.skip, min(end, count)))[::step][:wanted]
        if len(frames) < wanted:
            last = frames[-1:].expand(wanted - len(frames), *frames.shape[1:])
            frames = torch.cat([frames, last])
        return (self._cover(frames.permute(0, 3, 1, 2)) - 127.5) / 127.5


class PlainPyAV(_Clips):
    """PyAV as its documentation shows it; with dense maps as colours or without."""

    def __getitem__(self, n: int) -> Tensor | tuple[Tensor, Tensor]:
        clip = self._clips[n % len(self._clips)]
        frames = torch.from_numpy(self._read(clip.rgb, pixel_format="rgb24")).permute(0, 3, 1, 2)
        rgb = self._cover(frames) / 127.5 - 1
        if not self._config.model.dense_groups:
            return rgb
        if draws(n, seed=self._config.seed, data=self._config.data).task == "depth":
            depth = self._read(clip.depth, pixel_format="gray16le")
            index = (depth.astype(np.float32) / 65536 * len(COLORS)).astype(np.uint8)
            dense = COLORS[index]
        else:
            ids = self._read(clip.entity_ids, pixel_format=None)
            dense = np.random.randint(0, 256, (int(ids.max()) + 1, 3), np.uint8)[ids]
        # Painted before it is fitted, which blurs edges: what a short script would do.
        painted = torch.from_numpy(dense).permute(0, 3, 1, 2)
        return rgb, self._cover(painted) / 127.5 - 1

    def _read(self, path: Path, *, pixel_format: str | None) -> np.ndarray:
        data = self._config.data
        with av.open(str(path)) as container:
            step = float(container.streams.video[0].average_rate) / data.fps
            wanted = {round(k * step) for k in range(data.num_frames)}
            frames = []
            for i, frame in enumerate(container.decode(video=0)):
                if i in wanted:
                    frames.append(frame.to_ndarray(format=pixel_format))
                if len(frames) == data.num_frames:
                    break
        return np.stack(frames)
