"""Whether an entity keeps its id over time."""

import numpy as np

from sat_udpdiff.evaluation.overlap import Overlaps


def id_stability(shared: Overlaps) -> float | None:
    """How constantly true entities are found under one id, 0..1.

    In each frame an entity is found under the id that has most of its pixels; frames in which that
    is 'unlabelled', or in which the entity is not seen, say nothing about ids and do not count.
    The stability of an entity is the share of its frames that have the id which it has most often;
    the result is the mean over the entities that are found in two frames or more. It says nothing
    about where ids are: entities that share one id are stable.

    Returns:
        None where no entity is found in two frames.
    """
    counts = shared.counts[:, 1:]
    carrier = counts.argmax(axis=-1)  # (t, n); of equals the first, which is 'unlabelled'
    found = (counts.sum(axis=-1) > 0) & (carrier > 0)
    shares = []
    for ids, is_found in zip(carrier.T, found.T, strict=True):
        if is_found.sum() > 1:
            shares.append(np.bincount(ids[is_found]).max() / is_found.sum())
    return float(np.mean(shares)) if shares else None
