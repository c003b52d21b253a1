"""Measures of dense maps against what is taken for the truth of their videos."""

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float32, Float64, Int32

from sat_udpdiff.config import Task
from sat_udpdiff.evaluation.contours import region_and_contour
from sat_udpdiff.evaluation.depth import (
    ALIGNMENTS,
    LEAST,
    Align,
    depth_errors,
    error_histogram,
)
from sat_udpdiff.evaluation.identity import id_stability
from sat_udpdiff.evaluation.measure import (
    Fact,
    Features,
    Histogram,
    Measure,
    Score,
    UnusableError,
    Video,
    count_histogram,
    mean_score,
)
from sat_udpdiff.evaluation.overlap import match_entities, mean_iou, overlaps
from sat_udpdiff.evaluation.pseudo_truth import DepthTruth, EntityTruth
from sat_udpdiff.evaluation.segmentation import adjusted_rand_index
from sat_udpdiff.evaluation.video_panoptic import PanopticCounts, panoptic_counts

Scored = Literal["all", "above_least"]


class DepthAgainstTruth(Measure):
    """delta1 and RMSE of a video's depth: `depth_delta1`, `depth_rmse`, `depth_delta1_lstsq`, ...

    Args:
        truth: What says how far everything is.
        align: Alignments, each of which gives two scores; those of 'none' have no ending.
        scored: 'all' pixels, or those where the truth is 'above_least', .001, as DepthCrafter's
            program has it. A sky is 0 in the truth, and no painted map says so: its smallest value
            is 1/512, and of all pixels of the sky the ratio is wrong. Facts tell their share.

    Raises:
        ValueError: An unknown alignment, or none at all; an unknown choice of pixels.
    """

    name = "depth"
    tasks: frozenset[Task | None] = frozenset({"depth"})

    def __init__(
        self,
        truth: DepthTruth,
        *,
        align: Sequence[Align] = ("none",),
        scored: Scored = "all",
    ) -> None:
        if scored not in get_args(Scored):
            raise ValueError(f"depth_scores.scored: expected all or above_least, got {scored!r}")
        if not align or set(align) - set(ALIGNMENTS):
            known, got = ", ".join(ALIGNMENTS), ", ".join(align)
            raise ValueError(f"depth_scores.align: expected some of {known}, got {got}")
        self._truth, self._align, self._scored = truth, tuple(dict.fromkeys(align)), scored

    @property
    def key(self) -> str:
        """Truth, alignments, pixels and version of the features."""
        return f"{self.name} 1 {self._align} {self._scored} {self._truth.key}"

    def features(self, video: Video) -> Features:
        """Scores by alignment, the errors' histogram (unaligned), counts of frames.

        Raises:
            UnusableError: The video has no depth, or another size or length than its frames or its
                truth, or values that are not finite; or there is no truth.
        """
        rgb = video.rgb()
        guess = self._guess(video)
        _check_size(guess, of="depth", shape=rgb.shape[:3], beside="video")
        truth = self._truth.depth(rgb)
        _check_size(guess, of="depth", shape=truth.shape, beside="truth")
        valid = np.isfinite(truth)
        if self._scored == "above_least":
            valid &= truth > LEAST
        if not valid.any():
            raise UnusableError("no value of the true depth can be scored")
        if bad := int((~np.isfinite(guess)).sum()):
            raise UnusableError(f"{bad} of {guess.size} values of the depth are not finite")
        features: Features = {
            "error_histogram": error_histogram(truth, guess),
            # What the truth has at the far end decides how far a ratio can be right.
            "share_below_least": np.asarray((truth < LEAST).mean()),
        }
        for align in self._align:
            errors = depth_errors(truth, guess, align=align, valid=valid)
            features |= {
                f"delta1_{align}": np.asarray(errors.delta1),
                f"rmse_{align}": np.asarray(errors.rmse),
                "num_frames": np.asarray(errors.num_frames),
                "num_dropped": np.asarray(errors.num_dropped),
            }
        return features

    def histograms(
        self, features: Mapping[str, Features], *, references: Mapping[str, Features]
    ) -> list[Histogram]:
        """Of guess - truth, unaligned, -1 (guessed far, truly near) to 1; videos count alike."""
        del references
        shares = np.mean([found["error_histogram"] for found in features.values()], axis=0)
        return [
            Histogram(
                name=f"{self.name}_error",
                axis="disparity, guess - truth; shares of pixels",
                edges=tuple(np.linspace(-1, 1, len(shares) + 1).tolist()),
                shares={"": tuple(shares.tolist())},
            )
        ]

    def _guess(self, video: Video) -> Float32[np.ndarray, "t h w"]:
        if (depth := video.depth()) is None:
            raise UnusableError("no depth")
        return depth

    def _facts(self) -> dict[str, Fact]:
        return {"truth": self._truth.name}

    def scores(
        self, features: Mapping[str, Features], *, references: Mapping[str, Features]
    ) -> list[Score]:
        """Means over videos; see `Measure.scores`."""
        scores = []
        for align in self._align:
            ending = "" if align == "none" else f"_{align}"
            facts: dict[str, Fact] = {
                "align": align,
                **self._facts(),
                "num_videos": len(features),
                "frames": _total(features, "num_frames"),
                "frames_without_truth": _total(features, "num_dropped"),
                "scored": self._scored,
                "truth_below_0.001": _mean(features, "share_below_least"),
            }
            for kind, higher in {"delta1": True, "rmse": False}.items():
                scores.append(
                    mean_score(
                        f"{self.name}_{kind}{ending}",
                        _each(features, f"{kind}_{align}"),
                        higher_is_better=higher,
                        facts=facts,
                    )
                )
        return scores


class DepthComparison(DepthAgainstTruth):
    """Another model's depth of the same frames against the same truth: the other row of table 3.

    Scores are `depth_comparison_delta1`, `depth_comparison_rmse` and so on. Give a truth that keeps
    its results: both measures ask for the same ones.

    Args:
        truth: As in `DepthAgainstTruth`.
        other: The model compared, Depth Anything V2 in the paper.
        align: As in `DepthAgainstTruth`.
        scored: Likewise.
    """

    name = "depth_comparison"

    def __init__(
        self,
        truth: DepthTruth,
        *,
        other: DepthTruth,
        align: Sequence[Align] = ("none",),
        scored: Scored = "all",
    ) -> None:
        super().__init__(truth, align=align, scored=scored)
        self._other = other

    @property
    def key(self) -> str:
        """That of the truth, and of the other model."""
        return f"{super().key} {self._other.key}"

    def _guess(self, video: Video) -> Float32[np.ndarray, "t h w"]:
        return self._other.depth(video.rgb())

    def _facts(self) -> dict[str, Fact]:
        return {"model": self._other.name, "truth": self._truth.name}


class SegmentationAgainstTruth(Measure):
    """Agreement of a video's entities with the true ones; the paper reports none of these.

    Scores: `segmentation_ari`, `segmentation_miou`, `segmentation_jf`, `segmentation_vpq`,
    `entity_count_error`, `id_stability`. Clips of one frame are left out: most of these are about
    time.

    Args:
        truth: What says which pixels belong together.
    """

    name = "segmentation"
    tasks: frozenset[Task | None] = frozenset({"segmentation"})
    # Of a clip without any match there is nothing that could be stable.
    may_be_missing = frozenset({"id_stability"})

    def __init__(self, truth: EntityTruth) -> None:
        self._truth = truth

    @property
    def key(self) -> str:
        """Truth and version of the features."""
        return f"segmentation 1 {self._truth.key}"

    def features(self, video: Video) -> Features:
        """Each score of the video, the counts behind VPQ, and how many entities there are.

        Raises:
            UnusableError: The video has no ids, one frame, or another size or length than its
                frames or its truth; or there is no truth, or nothing in it.
        """
        found = video.entity_ids()
        if found is None:
            raise UnusableError("no entity ids")
        rgb = video.rgb()
        _check_size(found, of="entity map", shape=rgb.shape[:3], beside="video")
        if len(rgb) < 2:
            raise UnusableError("one frame: ids over time need 2 or more")
        truth = self._truth.entities(rgb)
        _check_size(found, of="entity map", shape=truth.shape, beside="truth")
        shared = overlaps(truth, found)
        if not shared.num_true:
            raise UnusableError("the truth has no entity")
        both = region_and_contour(truth, found, shared=shared, match=match_entities(shared))
        stability = id_stability(shared)
        counts = panoptic_counts(shared)
        return {
            "ari": np.asarray(adjusted_rand_index(truth, found)),
            "miou": np.asarray(mean_iou(shared)),
            "region": np.asarray(both.region),
            "contour": np.asarray(both.contour),
            "jf": np.asarray(both.mean),
            "id_stability": np.asarray(np.nan if stability is None else stability),
            "num_true": np.asarray(shared.num_true),
            "num_found": np.asarray(shared.num_found),
            "vpq_windows": np.array(list(counts), np.int64),
            "vpq_counts": np.array(
                [(c.iou, c.matched, c.missed, c.extra) for c in counts.values()], np.float64
            ),
        }

    def scores(
        self, features: Mapping[str, Features], *, references: Mapping[str, Features]
    ) -> list[Score]:
        """Means over videos, but for VPQ, whose counts are summed over them."""
        stability = _each(features, "id_stability")
        stable = {name: value for name, value in stability.items() if np.isfinite(value)}
        facts: dict[str, Fact] = {
            "truth": self._truth.name,
            "num_videos": len(features),
            "found_minus_true": _mean(features, "num_found") - _mean(features, "num_true"),
            "without_id_stability": len(features) - len(stable),
        }
        errors = {
            name: abs(float(found["num_found"] - found["num_true"]))
            for name, found in features.items()
        }
        halves: dict[str, Fact] = {part: _mean(features, part) for part in ("region", "contour")}
        scores = [
            mean_score(
                f"segmentation_{kind}",
                _each(features, kind),
                higher_is_better=True,
                facts={**facts, **halves} if kind == "jf" else facts,
            )
            for kind in ("ari", "miou", "jf")
        ]
        scores.append(self._panoptic(features, facts=facts))
        scores.append(mean_score("entity_count_error", errors, higher_is_better=False, facts=facts))
        if stable:
            scores.append(mean_score("id_stability", stable, higher_is_better=True, facts=facts))
        return scores

    def histograms(
        self, features: Mapping[str, Features], *, references: Mapping[str, Features]
    ) -> list[Histogram]:
        """Videos by the number of their entities, in truth and as found."""
        del references
        counts = {
            of: [int(found[f"num_{of}"]) for found in features.values()] for of in ("true", "found")
        }
        return [count_histogram("segmentation_entities", counts, axis="entities of a clip")]

    def _panoptic(self, features: Mapping[str, Features], *, facts: Mapping[str, Fact]) -> Score:
        per_video = {name: _quality([found]) for name, found in features.items()}
        rng = np.random.default_rng(0)
        each = list(features.values())
        interval = None
        if len(each) > 1:
            draws = [
                _quality([each[i] for i in rng.integers(len(each), size=len(each))])
                for _ in range(1000)
            ]
            low, high = np.quantile(draws, (0.025, 0.975))
            interval = float(low), float(high)
        by_window = {f"vpq_{k}": counts.quality for k, counts in sorted(_summed(each).items())}
        return Score(
            name="segmentation_vpq",
            value=_quality(each),
            higher_is_better=True,
            per_video=per_video,
            interval=interval,
            facts={**facts, **by_window},
        )


def _check_size(
    guess: Float32[np.ndarray, "t h w"] | Int32[np.ndarray, "t h w"],
    *,
    of: str,
    shape: tuple[int, ...],
    beside: str,
) -> None:
    if guess.shape != shape:
        ours, theirs = ("x".join(map(str, size)) for size in (guess.shape, shape))
        raise UnusableError(f"the {of} is {ours}, the {beside} {theirs} (frames, height, width)")


def _summed(each: Sequence[Features]) -> dict[int, PanopticCounts]:
    sums: dict[int, PanopticCounts] = {}
    for found in each:
        for k, (iou, *tubes) in zip(found["vpq_windows"], found["vpq_counts"], strict=True):
            matched, missed, extra = map(int, tubes)
            counts = PanopticCounts(iou=float(iou), matched=matched, missed=missed, extra=extra)
            sums[int(k)] = sums.get(int(k), PanopticCounts()) + counts
    return sums


def _quality(each: Sequence[Features]) -> float:
    """Mean over the lengths of windows; each has a tube, for every truth has an entity."""
    return float(np.mean([counts.quality for counts in _summed(each).values()]))


def _each(features: Mapping[str, Features], name: str) -> dict[str, float]:
    return {video: float(found[name]) for video, found in features.items()}


def _mean(features: Mapping[str, Features], name: str) -> float:
    values: Float64[np.ndarray, " n"] = np.array(list(_each(features, name).values()))
    return float(values.mean()) if len(values) else 0.0


def _total(features: Mapping[str, Features], name: str) -> int:
    return sum(int(found[name]) for found in features.values())
