import numpy as np
import pytest

from data_loaders.panda_dense.depth_clip import scale_clip
from data_loaders.schema import DataError


def clip_of(*frames):
    return np.array(frames, np.float32)


def test_the_largest_value_of_the_clip_is_the_nearest() -> None:
    clip = scale_clip(clip_of([[1.0, 2.0]], [[3.0, 5.0]]), key="a")
    assert clip.depth.tolist() == [[[0, 16384]], [[32768, 65535]]]
    assert clip.depth.dtype == np.uint16
    assert (clip.raw_min, clip.raw_max) == (1.0, 5.0)
    assert not clip.is_flat


def test_one_scale_for_all_frames() -> None:
    frame = [[0.0, 1.0]]
    clip = scale_clip(clip_of(frame, [[0.0, 4.0]]), key="a")
    assert clip.depth[0].max() == 16384


def test_a_narrow_range_keeps_its_levels() -> None:
    values = np.linspace(1000, 1000.5, 4096, dtype=np.float32).reshape(1, 64, 64)
    clip = scale_clip(values, key="a")
    assert len(np.unique(clip.depth)) == len(np.unique(values))


def test_a_clip_of_one_distance_is_flat() -> None:
    clip = scale_clip(np.full((2, 3, 4), 0.25, np.float32), key="a")
    assert clip.is_flat
    assert not clip.depth.any()
    assert (clip.raw_min, clip.raw_max) == (0.25, 0.25)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_an_error(value) -> None:
    with pytest.raises(DataError, match=r"clip 'k': depth: .*got 1 of 2 that are not.*fp32"):
        scale_clip(clip_of([[0.0, value]]), key="k")
