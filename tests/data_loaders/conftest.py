"""Clips of noise: nothing about them is easy for a codec, and every one is different."""

import numpy as np
import pytest

from data_loaders.schema import Sample, SampleMeta


def _noise_sample(i, *, frames=5, height=16, width=24, fps=8.0, entities=7, depth=True, ids=True):
    rng = np.random.default_rng(i)
    shape = (frames, height, width)
    # Every id appears, so that num_entities is true.
    entity_ids = rng.permuted(np.arange(np.prod(shape)) % (entities + 1)).reshape(shape)
    return Sample(
        key=f"clip-{i:04d}",
        rgb=rng.integers(0, 256, (*shape, 3), dtype=np.uint8),
        entity_ids=entity_ids.astype(np.uint16) if ids else None,
        depth=rng.integers(0, 65536, shape).astype(np.uint16) if depth else None,
        caption_short=f"short {i}",
        caption_long=f"a long caption of clip {i}",
        fps=fps,
        meta=SampleMeta(
            source="noise",
            segmentation_backend="noise" if ids else "",
            depth_backend="noise" if depth else "",
            num_entities=entities if ids else 0,
            extra={"number": i},
        ),
    )


@pytest.fixture
def noise_sample():
    """Factory: noise_sample(i, **size)."""
    return _noise_sample
