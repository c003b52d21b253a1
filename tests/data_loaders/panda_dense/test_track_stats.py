import numpy as np
import pytest

from data_loaders.panda_dense.track_stats import track_stats


def test_statistics_of_a_clip_by_hand():
    ids = np.zeros((4, 2, 5), np.uint16)
    ids[:, 0, :] = 3  # half of every picture
    ids[0, 1, :2] = 9  # 2 pixels, gone after the second frame
    ids[1, 1, :1] = 9
    ids[2:, 1, 4] = 500  # 1 pixel, entered
    ids[3, 0, 0] = 500
    stats = track_stats(ids)
    assert stats.ids.tolist() == [3, 9, 500] and stats.ids.dtype == np.uint16
    assert stats.count == 3
    assert stats.area.tolist() == pytest.approx([(0.5 * 3 + 0.4) / 4, 0.15, 0.15])
    assert stats.lifetime.tolist() == [1.0, 0.5, 0.5]
    assert stats.first_frame.tolist() == [0, 0, 2]
    assert stats.last_frame.tolist() == [3, 1, 3]
    assert stats.coverage.tolist() == pytest.approx([0.7, 0.6, 0.6, 0.6])
    assert stats.lost.tolist() == [9] and stats.entered.tolist() == [500]


def test_an_entity_that_comes_back_is_not_lost():
    ids = np.zeros((3, 1, 2), np.uint16)
    ids[[0, 2], 0, 0] = 1
    stats = track_stats(ids)
    assert stats.lost.tolist() == [] and stats.lifetime.tolist() == pytest.approx([2 / 3])


def test_nothing_labelled_and_one_frame():
    stats = track_stats(np.zeros((3, 4, 5), np.uint16))
    assert stats.count == 0 and stats.coverage.tolist() == [0, 0, 0]
    one = track_stats(np.full((1, 4, 5), 65535, np.uint16))
    assert one.ids.tolist() == [65535] and one.area.tolist() == [1.0] and one.lifetime[0] == 1
