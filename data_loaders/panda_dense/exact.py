"""Backend `synthetic`: the labels that a synthetic source brings along, which are exact."""

import numpy as np
from jaxtyping import UInt16

from data_loaders.decode import decode_labels
from data_loaders.panda_dense.models import ModelFacts
from data_loaders.panda_dense.stage import Clip
from data_loaders.schema import DataError
from data_loaders.shard_format import LABEL_MEMBERS

BACKEND = "synthetic"


def exact_facts() -> ModelFacts:
    """What made these labels."""
    return ModelFacts(backend=BACKEND)


def read_exact(clip: Clip, label: str) -> UInt16[np.ndarray, "t h w"]:
    """A label of a clip, cut and resized as its video was.

    Args:
        clip: Through `cut`.
        label: 'entity_ids' or 'depth'.

    Raises:
        DataError: The source has none.
    """
    if label not in clip.columns["cut"].get("labels", ()):
        raise DataError(
            f"clip {clip.key!r}: backend synthetic: expected a source with {label}, such as shards "
            "of data_loaders.synthetic; this one has none"
        )
    suffix = f"exact.{LABEL_MEMBERS[label]}"
    return decode_labels(clip.read("cut", suffix), name=f"{clip.key}.{suffix}")
