"""A folder of the user's own videos, with captions, to shards.

    python -m data_loaders.ingest VIDEOS OUT --captions captions.jsonl --segmentation classical

Captions are one JSON object per line: {"path", "caption_short", "caption_long"}, or {"path",
"caption"}; paths are relative to the captions file or to VIDEOS. Everything is checked before
anything is written.
"""

import argparse
import json
import logging
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from data_loaders import classical_segmentation
from data_loaders.decode import RGB_ENCODINGS
from data_loaders.geometry import fit_rgb
from data_loaders.ingest_sources import Source, find_sources, read_captions, readable
from data_loaders.schema import DataError, Sample, SampleMeta
from data_loaders.shards import make_shards
from data_loaders.source_video import read_at_rate

_log = logging.getLogger(__name__)

_NO_DEPTH = (
    "--depth: depth needs a depth model and this program has none yet: leave --depth out and train "
    "with data.tasks=[segmentation] data.task_weights=[1.0]"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipFormat:
    """What clips are made of."""

    frames: int
    height: int
    width: int
    fps: float


def make_sample(
    source: Source,
    *,
    clip: ClipFormat,
    segment: Callable[[np.ndarray], np.ndarray] | None,
    skip_bad: bool,
) -> Sample | None:
    """Clip of a video.

    Args:
        source: Video.
        clip: Size, rate and length.
        segment: rgb (t, h, w, 3) -> entity ids; None = no ids.
        skip_bad: Leave out a video that proves damaged further on, rather than stop.

    Returns:
        The clip; None for a video that was left out, which is logged.

    Raises:
        DataError: The video is damaged and `skip_bad` is off.
    """
    prepare = partial(fit_rgb, height=clip.height, width=clip.width)
    try:
        video = read_at_rate(source.path, fps=clip.fps, num_frames=clip.frames, prepare=prepare)
    except DataError as error:
        if not skip_bad:
            raise
        _log.warning("left out: %s", error)
        return None
    found = len(video.rgb)
    if found < clip.frames:
        _log.warning(
            "%s: %d of %d frames; training repeats the last one", source.path, found, clip.frames
        )
    ids = None if segment is None else segment(video.rgb)
    return Sample(
        key=source.key,
        rgb=video.rgb,
        entity_ids=ids,
        depth=None,
        caption_short=source.captions.short,
        caption_long=source.captions.long,
        fps=clip.fps,
        meta=SampleMeta(
            source="ingest",
            segmentation_backend="" if ids is None else classical_segmentation.BACKEND,
            num_entities=0 if ids is None else int(np.count_nonzero(np.bincount(ids.ravel())[1:])),
            extra={"file": source.path.name, "source_fps": video.source_fps},
        ),
    )


def _name_source(source: Source) -> str:
    return str(source.path)


def _parse_size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH such as 480x720, got {text!r}")
    height, width = int(match[1]), int(match[2])
    if height < 16 or width < 16 or height % 16 or width % 16:
        raise argparse.ArgumentTypeError(f"expected multiples of 16, got {text!r}")
    return height, width


def _parse_frames(text: str) -> int:
    if not text.isdigit() or int(text) % 4 != 1:
        raise argparse.ArgumentTypeError(f"expected 4k + 1 frames (1, 5, 9, ... 49), got {text!r}")
    return int(text)


def _parse_fps(text: str) -> float:
    try:
        fps = float(text)
    except ValueError:
        fps = 0.0
    if not 0 < fps <= 240:
        raise argparse.ArgumentTypeError(f"expected frames per second in (0, 240], got {text!r}")
    return fps


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_loaders.ingest",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("videos", type=Path, metavar="VIDEOS", help="folder, searched with its subfolders")
    add("out", type=Path, metavar="OUT", help="folder of shards to make")
    add("--captions", type=Path, required=True, help="JSON lines")
    add(
        "--segmentation",
        choices=(classical_segmentation.BACKEND, "none"),
        required=True,
        help="classical: superpixels and optical flow, for trying things; none: no entity ids",
    )
    add(
        "--depth", metavar="MODEL", nargs="?", const="", help="refused: there is no depth model yet"
    )
    add("--frames", type=_parse_frames, default=49, help="per clip, 4k + 1 (default 49)")
    add(
        "--size",
        type=_parse_size,
        default=(480, 720),
        metavar="HxW",
        help="clips are resized to cover this and cropped in the centre (default 480x720)",
    )
    add("--fps", type=_parse_fps, default=8.0, help="frames are taken by time (default 8)")
    add(
        "--rgb-codec",
        choices=("auto", *RGB_ENCODINGS),
        default="auto",
        help="auto: exact (ffv1) for small pictures, else h264",
    )
    add("--samples-per-shard", type=int, default=64)
    add("--workers", type=int, default=0, help="processes; 0 = this one (default 0)")
    add("--skip-bad", action="store_true", help="leave out videos that cannot be read")
    add("--overwrite", action="store_true", help="replace shards in OUT")
    return parser


def ingest(arguments: argparse.Namespace) -> Path:
    """Check everything, then write the shards; returns the manifest's path."""
    if arguments.depth is not None:
        raise DataError(_NO_DEPTH)
    captions = read_captions(arguments.captions, videos=arguments.videos)
    sources = find_sources(arguments.videos, captions=captions)
    sources = readable(sources, skip_bad=arguments.skip_bad)
    segment = None
    if arguments.segmentation == classical_segmentation.BACKEND:
        _log.warning(
            "--segmentation classical: regions of one colour carried on by optical flow, "
            "not entities; for trying the program, not for results"
        )
        segment = classical_segmentation.segment_clip
    height, width = arguments.size
    clip = ClipFormat(frames=arguments.frames, height=height, width=width, fps=arguments.fps)
    return make_shards(
        partial(make_sample, clip=clip, segment=segment, skip_bad=arguments.skip_bad),
        sources,
        arguments.out,
        samples_per_shard=arguments.samples_per_shard,
        overwrite=arguments.overwrite,
        rgb_codec=arguments.rgb_codec,
        workers=arguments.workers,
        describe=_name_source,
        progress="ingest",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    arguments = _parser().parse_args(argv)
    try:
        manifest = ingest(arguments)
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted: no shards were left in {arguments.out}", file=sys.stderr)
        return 130
    record = json.loads(manifest.read_text())
    print(f"{record['num_samples']} clips in {len(record['shards'])} shard(s): {manifest}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
