"""The location-aware colormap: grid, first frame, collisions, and back."""

import numpy as np
import pytest
import torch

from sat_udpdiff.colormaps import location_aware, tensors


def two_movers():
    """Id 1 from the first frame on, moving right; id 5 appears in frame 1, same start cell."""
    ids = np.zeros((3, 22, 33), np.uint16)
    for t in range(3):
        ids[t, 0:2, 6 * t : 6 * t + 3] = 1
    ids[1, 0:2, 0:3] = 5
    ids[2, 10:12, 15:18] = 5
    return ids


def test_palette_is_124_colours_row_by_row():
    palette = location_aware.PALETTE
    assert palette.shape == (124, 3) and len(np.unique(palette, axis=0)) == 124
    assert palette[:5].tolist() == [[0, 0, 64], [0, 0, 128], [0, 0, 192], [0, 0, 255], [0, 64, 0]]
    assert palette[-1].tolist() == [255, 255, 255]


def test_cell_of_the_centroid_in_the_first_visible_frame():
    ids = np.zeros((2, 22, 33), np.uint16)
    ids[0, 20:22, 30:33] = 7  # last cell of 11 x 11
    ids[1, 0:2, 0:3] = 7
    ids[1, 10:12, 15:18] = 2  # the middle cell, row 5 column 5
    assert location_aware.color_index(ids) == {7: 120, 2: 5 * 11 + 5}
    assert location_aware.color_index(ids, grid=1) == {7: 0, 2: 0}


def test_colour_is_kept_and_shared():
    ids = two_movers()
    rgb = location_aware.encode(ids)
    assert (rgb[ids > 0] == location_aware.PALETTE[0]).all()
    assert not rgb[ids == 0].any()


def test_next_free_separates_them():
    ids = two_movers()
    assert location_aware.color_index(ids, collisions="next_free") == {1: 0, 5: 1}
    rgb = location_aware.encode(ids, collisions="next_free")
    found = location_aware.decode(rgb, collisions="next_free")
    assert np.array_equal(found, np.where(ids == 5, 2, ids))


def test_next_free_wraps_and_ends():
    ids = np.zeros((1, 1, 125), np.uint16)
    ids[0, 0, :124] = np.arange(1, 125)
    assert sorted(location_aware.color_index(ids, collisions="next_free").values()) == list(
        range(124)
    )
    ids[0, 0, 124] = 125
    with pytest.raises(ValueError, match="at most 124 entities, got 125"):
        location_aware.color_index(ids, collisions="next_free")


def test_noisy_clip_decodes_to_cells(noisy):
    rng = np.random.default_rng(0)
    ids = noisy.make_ids(num_entities=8, shape=(5, 120, 180), rng=rng, radius=(0.1, 0.3))
    cells = location_aware.color_index(ids)
    expected = np.zeros_like(ids)
    for entity, cell in cells.items():
        expected[ids == entity] = cell + 1
    rgb = noisy.degrade(location_aware.encode(ids), sigma=8, rng=rng)
    assert np.mean(location_aware.decode(rgb) == expected) > 0.95


@pytest.mark.parametrize("grid", [0, 12, -3])
def test_grid_is_checked(grid):
    with pytest.raises(ValueError, match=r"grid: expected 1..11"):
        location_aware.encode(two_movers(), grid=grid)


def test_torch_equals_numpy_for_each_clip_of_a_batch():
    clips = [two_movers(), np.flip(two_movers(), axis=2).copy()]
    ids = torch.from_numpy(np.stack(clips).astype(np.int32))
    painted = tensors.encode_location_aware(ids)
    assert painted.shape == (2, 3, 3, 22, 33) and painted.dtype == torch.float32
    decoded = tensors.decode_location_aware(painted)
    for clip, rgb, found in zip(clips, painted, decoded, strict=True):
        expected = location_aware.encode(clip)
        levels = ((rgb + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        np.testing.assert_array_equal(levels, expected)
        np.testing.assert_array_equal(found.numpy(), location_aware.decode(expected))
