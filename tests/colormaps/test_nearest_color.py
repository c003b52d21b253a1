"""The table of nearest colours is the brute-force search, bit for bit."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from sat_udpdiff.colormaps.nearest_color import NearestColor, coarse_codes, coarse_nearest


def brute(rgb, palette):
    squares = ((rgb[..., None, :].astype(np.int64) - palette.astype(np.int64)) ** 2).sum(-1)
    return squares.argmin(-1)


@pytest.mark.parametrize("size", [1, 2, 40, 256])
def test_equals_brute_force_with_lowest_index_on_ties(size):
    rng = np.random.default_rng(size)
    palette = rng.integers(0, 256, (size, 3), np.uint8)
    palette[size // 2] = palette[0]  # a tie everywhere
    frame = rng.integers(0, 256, (50, 60, 3), np.uint8)
    assert np.array_equal(NearestColor(palette)(frame), brute(frame, palette))


def test_full_table_is_indexed_blue_green_red():
    rng = np.random.default_rng(0)
    palette = rng.integers(0, 256, (7, 3), np.uint8)
    table = NearestColor(palette).full_table()
    colors = rng.integers(0, 256, (200, 3), np.uint8)
    got = table[colors[:, 2], colors[:, 1], colors[:, 0]]
    assert np.array_equal(got, brute(colors, palette))


def test_threads_that_share_a_table_agree():
    rng = np.random.default_rng(1)
    palette = rng.integers(0, 256, (30, 3), np.uint8)
    frame = rng.integers(0, 256, (64, 64, 3), np.uint8)
    nearest = NearestColor(palette)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(nearest, [frame] * 8))
    assert all(np.array_equal(r, brute(frame, palette)) for r in results)


def test_coarse_is_exact_at_bin_centers():
    rng = np.random.default_rng(2)
    palette = rng.integers(0, 256, (20, 3), np.uint8)
    frame = rng.integers(0, 256, (40, 50, 3), np.uint8)
    centers = frame // 4 * 4 + 1.5
    squares = ((centers[..., None, :] - palette) ** 2).sum(-1)
    found = coarse_nearest(palette)[coarse_codes(frame)]
    chosen = np.take_along_axis(squares, found[..., None].astype(np.int64), -1)[..., 0]
    assert np.array_equal(chosen, squares.min(-1))


@pytest.mark.parametrize("count", [0, 8193])
def test_palette_size_is_checked(count):
    with pytest.raises(ValueError, match=r"palette: expected \(n, 3\)"):
        NearestColor(np.zeros((count, 3), np.uint8))
