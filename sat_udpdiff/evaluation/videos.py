"""Generated videos on the disk: folders that `sample.py` wrote, and plain mp4 files.

Nothing is decoded before it is asked for. A folder that is not whole is named with its reason and
counted by whoever lists it, never judged by what happens to be there.
"""

import hashlib
import json
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from data_loaders.decode import decode_as_vbench, decode_rgb, video_facts
from data_loaders.probe import probe
from data_loaders.schema import DataError
from sat_udpdiff.config import TASKS, Task
from sat_udpdiff.evaluation.measure import Fact, UnusableError, Video
from sat_udpdiff.evaluation.paper import network_kind
from sat_udpdiff.outputs import RECORD_FILE

PRODUCTS: dict[Task, str] = {"segmentation": "ids", "depth": "depth"}
"""Name of what a map says: of its file (.npz) and of the array in it."""
_VIDEO, _DENSE = "video.mp4", "dense.mp4"
_VBENCH_NAME = re.compile(r"(?P<prompt>.+)-\d+")
_CHUNK = 1 << 20
_DECIDING = ("sample", "diffusion", "colormap")
"""Sections of a configuration that change samples of the same weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """Videos of a folder, and what could not be taken."""

    videos: tuple[Video, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Name of a folder or file -> why."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SampleVideo:
    """A sample in its folder; see `sat_udpdiff/outputs.py`. `open` makes it."""

    folder: Path
    prompt: str
    task: Task | None
    seed: int
    fps: float
    size: tuple[int, int, int]
    """Frames, height, width."""
    made_by: Mapping[str, Fact]
    """Weights, steps and the like: what is the same for all samples of one network."""

    @classmethod
    def open(cls, folder: Path) -> "SampleVideo":
        """Look at a folder without decoding a pixel.

        Raises:
            UnusableError: It is not whole: a file is missing, cannot be read, or has other frames
                than sample.json says.
        """
        record = _read_record(folder / RECORD_FILE)
        try:
            video = cls(
                folder=folder,
                prompt=str(record["prompt"]),
                task=record["task"],
                seed=int(record["seed"]),
                fps=float(record["config"]["data"]["fps"]),
                size=(int(record["num_frames"]), int(record["height"]), int(record["width"])),
                made_by=made_by(record),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UnusableError(
                f"{RECORD_FILE}: expected the record of a sample: {error!r}"
            ) from None
        if video.task is not None and video.task not in TASKS:
            raise UnusableError(f"{RECORD_FILE}: task: expected one of {TASKS}, got {video.task!r}")
        _check_whole(video)
        return video

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.folder.name

    @property
    def path(self) -> Path:
        """The video file."""
        return self.folder / _VIDEO

    @property
    def digest(self) -> str:
        """SHA-256 of the contents of video, map and what the map says."""
        return _digest(self.files())

    def files(self) -> list[Path]:
        """What is judged: video, map and what the map says."""
        if self.task is None:
            return [self.path]
        return [self.path, self.folder / _DENSE, self.folder / f"{PRODUCTS[self.task]}.npz"]

    def rgb(self) -> UInt8[np.ndarray, "t h w 3"]:
        """The frames; UnusableError where they cannot be decoded."""
        return _frames(self.path)

    def dense(self) -> UInt8[np.ndarray, "t h w 3"] | None:
        """The dense map in colours, as it can be viewed (h264); None without one."""
        return None if self.task is None else _decode(self.folder / _DENSE, how=decode_rgb)

    def entity_ids(self) -> Int32[np.ndarray, "t h w"] | None:
        """Ids that were decoded from the map; None for other tasks."""
        return self._product("segmentation")

    def depth(self) -> Float32[np.ndarray, "t h w"] | None:
        """Disparity that was decoded from the map; None for other tasks."""
        return self._product("depth")

    def _product(self, task: Task) -> np.ndarray | None:
        if self.task != task:
            return None
        name = PRODUCTS[task]
        try:
            path = self.folder / f"{name}.npz"
            # numpy leaves a file open that it finds damaged.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return arrays[name]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
            raise UnusableError(f"{name}.npz: cannot be read: {error}") from error


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FileVideo:
    """A video file of any source; `open` makes it."""

    path: Path
    prompt: str
    fps: float

    @classmethod
    def open(cls, path: Path) -> "FileVideo":
        """Look at a file's header.

        The prompt is that of a name in VBench's form, `PROMPT-0.mp4`; other names have none.

        Raises:
            UnusableError: It is no video.
        """
        match = _VBENCH_NAME.fullmatch(path.stem)
        try:
            fps = video_facts(path, name=path.name).fps
        except DataError as error:
            raise UnusableError(str(error)) from error
        return cls(path=path, prompt=match["prompt"] if match else "", fps=fps)

    @property
    def name(self) -> str:
        """Of the file, without its ending."""
        return self.path.stem

    @property
    def task(self) -> Task | None:
        """None: a file has no map."""
        return None

    @property
    def digest(self) -> str:
        """SHA-256 of the file."""
        return _digest([self.path])

    def rgb(self) -> UInt8[np.ndarray, "t h w 3"]:
        """The frames; UnusableError where they cannot be decoded."""
        return _frames(self.path)

    def dense(self) -> None:
        """None: a file has no map."""

    def entity_ids(self) -> None:
        """None: unknown."""

    def depth(self) -> None:
        """None: unknown."""


def find_videos(folder: Path) -> Found:
    """Samples of a folder of `sample.py`, one of its samples, or the mp4 files of another folder.

    Raises:
        ValueError: There is neither, or there are samples and files.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder of samples or of mp4 files, found none")
    if (folder / RECORD_FILE).is_file():
        return open_samples([folder])
    files, records = sorted(folder.glob("[!.]*.mp4")), sorted(folder.glob(f"[!.]*/{RECORD_FILE}"))
    if files and records:
        raise ValueError(
            f"{folder}: expected samples or mp4 files, got both: the sample "
            f"{records[0].parent.name} and {files[0].name}; move one of the kinds"
        )
    return videos_in(folder) if files else samples_in(folder)


def samples_in(folder: Path) -> Found:
    """The sample folders in a folder, by name; those that are not whole are left out with reasons.

    Raises:
        ValueError: There are none.
    """
    # What is being written has a name that begins with a dot.
    folders = [path for path in sorted(folder.glob("[!.]*")) if path.is_dir()]
    if not folders:
        raise ValueError(f"{folder}: expected folders that sample.py wrote, or mp4 files")
    return open_samples(folders)


def open_samples(folders: Iterable[Path]) -> Found:
    """The samples in these folders; those that are not whole are left out with reasons."""
    return _open_all(folders, how=SampleVideo)


def videos_in(folder: Path) -> Found:
    """The mp4 files of a folder, by name; those that are no videos are left out with reasons.

    Raises:
        ValueError: There are none.
    """
    files = sorted(path for path in folder.glob("[!.]*") if path.suffix.lower() == ".mp4")
    if not files:
        raise ValueError(f"{folder}: expected mp4 files, found none")
    return _open_all(files, how=FileVideo)


def common_origin(videos: Iterable[Video]) -> dict[str, Fact]:
    """What samples were made by, where it is one for all; `several` where it is not."""
    origins = [video.made_by for video in videos if isinstance(video, SampleVideo)]
    names = dict.fromkeys(name for origin in origins for name in origin)
    found = {name: list(dict.fromkeys(origin.get(name) for origin in origins)) for name in names}
    return {name: values[0] if len(values) == 1 else "several" for name, values in found.items()}


def _open_all(paths: Iterable[Path], *, how: type[SampleVideo] | type[FileVideo]) -> Found:
    videos, left_out = [], {}
    for path in paths:
        try:
            videos.append(how.open(path))
        except UnusableError as error:
            left_out[path.name] = str(error)
    return Found(videos=tuple(videos), left_out=left_out)


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UnusableError(f"half written: no {path.name}") from None
    except (OSError, ValueError) as error:
        raise UnusableError(f"half written: {path.name} cannot be read: {error}") from None
    if not isinstance(record, dict):
        raise UnusableError(f"{path.name}: expected an object, got {type(record).__name__}")
    return record


def made_by(record: Mapping[str, Any]) -> dict[str, Fact]:
    """Everything but the request that decides what a sample is, of its record or of `Model.facts`.

    Raises:
        KeyError: It is no such record.
    """
    return {
        "weights": str(record["weights"]["file"]),
        **{f"{part}_sha256": str(record[part]["sha256"]) for part in ("weights", "codec", "text")},
        **settings_of(record["config"]),
    }


def settings_of(config: Mapping[str, Any]) -> dict[str, Fact]:
    """What of a configuration, by section, decides what a sample is."""
    return {
        "network": network_kind(config),
        "precision": str(config["train"]["precision"]),
        "data.fps": float(config["data"]["fps"]),
        **{
            f"{section}.{name}": _fact(value)
            for section in _DECIDING
            for name, value in config[section].items()
        },
    }


def _fact(value: Any) -> Fact:
    return value if isinstance(value, str | int | float | None) else str(value)


def _check_whole(video: SampleVideo) -> None:
    """Raise UnusableError where a file is missing or has other frames than the record."""
    frames, height, width = video.size
    for path in video.files():
        if not path.is_file():
            raise UnusableError(f"half written: no {path.name}")
        if path.suffix == ".npz":
            if (shape := _stored_shape(path)) != video.size:
                raise UnusableError(f"{path.name}: expected {video.size}, got {shape}")
            continue
        try:
            probe(
                path.read_bytes(),
                name=path.name,
                record_frames=frames,
                record_fps=video.fps,
                height=height,
                width=width,
            )
        except DataError as error:
            raise UnusableError(str(error)) from error


def _stored_shape(path: Path) -> tuple[int, ...]:
    """Shape of the only array of an npz file, by its header."""
    try:
        with zipfile.ZipFile(path) as file, file.open(f"{path.stem}.npy") as array:
            np.lib.format.read_magic(array)
            return np.lib.format.read_array_header_1_0(array)[0]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise UnusableError(f"half written: {path.name} cannot be read: {error}") from error


def _frames(path: Path) -> UInt8[np.ndarray, "t h w 3"]:
    """As VBench sees them, whose scores ours are to equal."""
    return _decode(path, how=decode_as_vbench)


def _decode(path: Path, *, how: Callable[..., np.ndarray]) -> UInt8[np.ndarray, "t h w 3"]:
    try:
        return how(path, name=path.name)
    except DataError as error:
        raise UnusableError(str(error)) from error


def _digest(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        # The length tells where a file ends and the next one begins.
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()
