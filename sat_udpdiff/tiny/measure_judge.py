"""How far the tiny world's judge can be trusted: its errors on held-out clips, and its reactions.

    python -m sat_udpdiff.tiny.measure_judge

A score that does not get worse when videos do is none. So held-out clips are spoilt step by step,
and every score that the judge gives them is written down for every strength, in `quality.json`.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from data_loaders.schema import Sample
from data_loaders.synthetic import HELD_OUT_START
from sat_udpdiff.colormaps.pixel_values import to_uint8
from sat_udpdiff.config_io import load_config
from sat_udpdiff.encoders.vae import VideoCodec
from sat_udpdiff.evaluation.arrays import ArrayVideo
from sat_udpdiff.evaluation.depth import LEAST, depth_errors
from sat_udpdiff.evaluation.fvd import frechet_distance
from sat_udpdiff.evaluation.fvd_measure import FvdSettings
from sat_udpdiff.evaluation.measure import Features, Measure
from sat_udpdiff.evaluation.overlap import mean_iou, overlaps
from sat_udpdiff.evaluation.segmentation import adjusted_rand_index
from sat_udpdiff.tiny.clips import TinyWorld, through_codec, to_network
from sat_udpdiff.tiny.judge import WEIGHTS, Judge
from sat_udpdiff.tiny.judged import Eyes, distance, single_measures

Pixels = UInt8[np.ndarray, "t h w 3"]
CONFIGS = Path(__file__).parents[2] / "configs"
BIAS_SIZES = (16, 32, 64, 128)


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeErrors:
    """Means over held-out clips."""

    depth_delta1: float
    depth_rmse: float
    segmentation_ari: float
    segmentation_miou: float
    entity_count_error: float
    """Mean absolute difference of the numbers of entities."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeQuality:
    """Everything in quality.json."""

    rendered: JudgeErrors
    coded: JudgeErrors
    """Of the clips as the codec gives them back."""
    reactions: Mapping[str, Mapping[str, Sequence[float]]]
    """Way of spoiling -> score -> its values for growing strength, the first unspoilt."""
    size_bias: Mapping[str, float]
    """N -> Frechet distance of N clips from N others of the same world."""
    num_clips: int


def blurred(rgb: Pixels, *, strength: float, rng: np.random.Generator) -> Pixels:
    """Gaussian blur of `strength` pixels."""
    del rng
    return np.stack([cv2.GaussianBlur(frame, (0, 0), strength) for frame in rgb])


def noisy(rgb: Pixels, *, strength: float, rng: np.random.Generator) -> Pixels:
    """Gaussian noise of standard deviation `strength` (of 255) on every value."""
    return _rounded(rgb + rng.normal(scale=strength, size=rgb.shape))


def flickering(rgb: Pixels, *, strength: float, rng: np.random.Generator) -> Pixels:
    """Another tint for every frame, `strength` of 255 strong."""
    return _rounded(rgb + rng.normal(scale=strength, size=(len(rgb), 1, 1, 3)))


def jittering(rgb: Pixels, *, strength: float, rng: np.random.Generator) -> Pixels:
    """Every frame moved by up to `strength` pixels, at random."""
    moves = rng.integers(-int(strength), int(strength) + 1, size=(len(rgb), 2))
    return np.stack(
        [
            cv2.warpAffine(
                frame,
                np.array([[1, 0, x], [0, 1, y]], dtype=np.float32),
                frame.shape[1::-1],
                borderMode=cv2.BORDER_REPLICATE,
            )
            for frame, (x, y) in zip(rgb, moves, strict=True)
        ]
    )


def faded(rgb: Pixels, *, strength: float, rng: np.random.Generator) -> Pixels:
    """Mixed with mid grey, of which `strength` is the share."""
    del rng
    return _rounded(rgb * (1 - strength) + 127.5 * strength)


SPOILT: Mapping[str, tuple[Callable[..., Pixels], tuple[float, ...]]] = {
    "blur": (blurred, (0.7, 1.4, 2.8)),
    "noise": (noisy, (10.0, 25.0, 50.0)),
    "flicker": (flickering, (10.0, 25.0, 50.0)),
    "jitter": (jittering, (1.0, 2.0, 4.0)),
    "fade": (faded, (0.3, 0.6, 0.9)),
}


def measure_judge(
    judge: Judge, *, world: TinyWorld, codec: VideoCodec, indices: Sequence[int]
) -> JudgeQuality:
    """Errors and reactions of a judge.

    Args:
        judge: Trained.
        world: Size and seed of the clips.
        codec: The tiny one.
        indices: Held-out clips; as many that follow are the references of the distance.
    """
    clips = [world.clip(index) for index in indices]
    coded = [_coded(clip.rgb, codec=codec) for clip in clips]
    rendered = [clip.rgb for clip in clips]
    last = max(indices) + 1
    references = [
        _coded(world.clip(index).rgb, codec=codec) for index in range(last, last + len(clips))
    ]
    eyes = Eyes(judge)
    # The clips are true ones: they have no map that could be judged.
    measures = [measure for measure in single_measures(eyes) if None in measure.tasks]
    measures.append(distance(eyes, settings=FvdSettings(min_videos=2)))
    truth = _features(measures, references)
    return JudgeQuality(
        rendered=_errors(judge, clips, rendered),
        coded=_errors(judge, clips, coded),
        reactions={
            name: _reactions(measures, coded, truth=truth, spoil=spoil, strengths=strengths)
            for name, (spoil, strengths) in SPOILT.items()
        },
        size_bias=_size_bias(judge, world=world, start=last),
        num_clips=len(clips),
    )


def _errors(judge: Judge, clips: Sequence[Sample], pixels: Sequence[Pixels]) -> JudgeErrors:
    each = [_errors_of(judge, clip, rgb) for clip, rgb in zip(clips, pixels, strict=True)]
    names = [field.name for field in fields(JudgeErrors)]
    return JudgeErrors(**{n: float(np.mean([getattr(one, n) for one in each])) for n in names})


def _errors_of(judge: Judge, clip: Sample, rgb: Pixels) -> JudgeErrors:
    assert clip.depth is not None and clip.entity_ids is not None
    true_depth = (clip.depth / 65535.0).astype(np.float32)
    # No ratio is right where the truth is 0.
    depth = depth_errors(true_depth, judge.depth(rgb), valid=true_depth > LEAST)
    guess, truth = judge.entities(rgb), clip.entity_ids.astype(np.int32)
    return JudgeErrors(
        depth_delta1=depth.delta1,
        depth_rmse=depth.rmse,
        segmentation_ari=adjusted_rand_index(truth, guess),
        segmentation_miou=mean_iou(overlaps(truth, guess)),
        entity_count_error=float(abs(len(np.unique(guess)) - len(np.unique(truth)))),
    )


def _reactions(
    measures: Sequence[Measure],
    clips: Sequence[Pixels],
    *,
    truth: Mapping[str, Mapping[str, Features]],
    spoil: Callable[..., Pixels],
    strengths: Sequence[float],
) -> dict[str, list[float]]:
    values: dict[str, list[float]] = {}
    for strength in (0.0, *strengths):
        rng = np.random.default_rng(0)
        spoilt = [spoil(c, strength=strength, rng=rng) if strength else c for c in clips]
        of_clips = _features(measures, spoilt)
        for measure in measures:
            references_of = truth[measure.name]
            for score in measure.scores(of_clips[measure.name], references=references_of):
                values.setdefault(score.name, []).append(round(score.value, 6))
    return values


def _features(
    measures: Sequence[Measure], clips: Sequence[Pixels]
) -> dict[str, dict[str, Features]]:
    """Measure -> clip -> features; clip after clip, for the judge remembers one."""
    found: dict[str, dict[str, Features]] = {measure.name: {} for measure in measures}
    for number, rgb in enumerate(clips):
        video = ArrayVideo(name=str(number), frames=rgb)
        for measure in measures:
            found[measure.name][video.name] = measure.features(video)
    return found


def _size_bias(judge: Judge, *, world: TinyWorld, start: int) -> dict[str, float]:
    most = max(BIAS_SIZES)
    rows = np.stack(
        [judge.clip_features(world.clip(i).rgb) for i in range(start, start + 2 * most)]
    )
    return {
        str(size): round(
            frechet_distance(
                rows[:size], references=rows[most : most + size], covariance="unbiased"
            ),
            4,
        )
        for size in BIAS_SIZES
    }


def _coded(rgb: Pixels, *, codec: VideoCodec) -> Pixels:
    return to_uint8(through_codec(to_network(rgb)[None], codec=codec)[0])


def _rounded(values: np.ndarray) -> Pixels:
    return np.rint(values.clip(0, 255)).astype(np.uint8)


def main() -> None:
    """Measure the judge of a folder, and write quality.json beside its weights."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--judge", type=Path, default=WEIGHTS, help="folder of the weights")
    parser.add_argument("--clips", type=int, default=64)
    args = parser.parse_args()
    codec = VideoCodec.load(load_config([str(CONFIGS / "tiny.yaml")], []).codec, device="cpu")
    indices = range(HELD_OUT_START, HELD_OUT_START + args.clips)
    quality = measure_judge(Judge.load(args.judge), world=TinyWorld(), codec=codec, indices=indices)
    text = json.dumps(asdict(quality), indent=1) + "\n"
    (args.judge / "quality.json").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
