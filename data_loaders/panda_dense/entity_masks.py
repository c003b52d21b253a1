"""From the scores and soft masks of a query network to entities that do not overlap.

EntitySeg's rule (github.com/qqlu/Entity, Entityv2/CropFormer, mask2former/maskformer_model.py
`instance_inference_nonoverlap` and cropformer_model.py `inference_whole_views`), and the choice of
its demo (demo_cropformer/demo_from_dirs.py).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, UInt16

_INSIDE = 0.5
_MOST_IDS = 65535


@dataclass(frozen=True, kw_only=True, slots=True)
class FirstFrame:
    """Entities of one picture."""

    ids: UInt16[np.ndarray, "h w"]
    """0 = no entity; 1, 2, ... by falling score."""
    scores: tuple[float, ...]
    """Of id 1, 2, ..., 0..1."""


def paint_entities(
    class_scores: Float32[np.ndarray, " n"],
    masks: Float32[np.ndarray, "n h w"],
    *,
    min_score: float,
    min_area: float = 0.0,
    most: int | None = None,
) -> FirstFrame:
    """Paint masks by rising class score, so that the surest lies on top, then keep good ones.

    As published, the score of an entity is its class score times the mean of `sigmoid(p)` over the
    pixels that it is left with, p being the probability in its mask: the published code takes the
    sigmoid twice, so the mean lies in 0.62..0.73, and the demo's threshold of 0.5 was chosen for
    such scores. Entities are dropped after painting, so what they covered stays unlabelled.

    Ids go by falling score and not by area: a limit on their number then drops the least sure.
    Where two scores are equal, the earlier query is painted over the later and comes first.

    Args:
        class_scores: Probability of each query to be an entity, 0..1.
        masks: Probability of each pixel to be in it, 0..1; a pixel is inside above 0.5.
        min_score: Least score that is kept.
        min_area: Least share of the picture, 0..1, that an entity must be left with.
        most: Most entities to keep; None = all.

    Raises:
        ValueError: More queries than ids.
    """
    queries, height, width = masks.shape
    if queries > _MOST_IDS:
        raise ValueError(f"expected at most {_MOST_IDS} masks, got {queries}")
    winner = np.full((height, width), -1, np.int32)
    numbers = np.arange(queries)
    for query in np.lexsort((-numbers, class_scores)):
        winner[masks[query] > _INSIDE] = query
    owned = winner >= 0
    owners = winner[owned]
    areas = np.bincount(owners, minlength=queries)
    probability = masks[owners, *np.nonzero(owned)].astype(np.float64)
    certainty = np.bincount(owners, 1 / (1 + np.exp(-probability)), minlength=queries)
    # 1e-6 as published: it keeps what is fully covered at 0.
    scores = class_scores.astype(np.float64) * certainty / (areas + 1e-6)
    kept = (scores >= min_score) & (areas >= max(1.0, min_area * height * width))
    order = np.lexsort((numbers, -scores))
    chosen = order[kept[order]][:most]
    # One more than the queries: winner -1 finds the 0 at the end.
    table = np.zeros(queries + 1, np.uint16)
    table[chosen] = np.arange(1, len(chosen) + 1)
    return FirstFrame(ids=table[winner], scores=tuple(float(score) for score in scores[chosen]))


def can_be_kept(
    class_scores: Float32[np.ndarray, " n"], *, min_score: float
) -> Bool[np.ndarray, " n"]:
    """Queries that `paint_entities` could keep, whatever their masks.

    To leave the others out changes no result: no mean of `sigmoid(p)` is above sigmoid(1), and
    what cannot be kept only covers queries of a lower class score, which cannot be kept either.

    Args:
        class_scores: Probability of each query to be an entity, 0..1.
        min_score: Least score that is kept.
    """
    # The margin is for means that rounding lifts above sigmoid(1).
    highest = class_scores.astype(np.float64) / (1 + np.exp(-1)) * (1 + 1e-6)
    return highest >= min_score
