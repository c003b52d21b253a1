"""The spectral depth map: matplotlib's colours, the inverse and its bounds, noise, refill."""

import inspect

import cv2
import matplotlib
import numpy as np
import pytest
import torch

from sat_udpdiff.colormaps import depth as depth_map
from sat_udpdiff.colormaps import tensors


def all_depths():
    return np.linspace(0, 1, 40_001, dtype=np.float32)[None, None]


def test_colours_and_pictures_are_matplotlibs():
    spectral = matplotlib.colormaps["Spectral_r"]
    table = spectral(np.arange(256), bytes=True)[:, :3]
    assert np.array_equal(depth_map.COLORS, table)
    # Spectral on depth is the same map; matplotlib's own tables differ by one level in one entry.
    flipped = matplotlib.colormaps["Spectral"](np.arange(256), bytes=True)[::-1, :3]
    assert np.abs(table.astype(int) - flipped).max() <= 1
    depths = all_depths()
    assert np.array_equal(depth_map.encode(depths), spectral(depths, bytes=True)[..., :3])


def test_near_is_red():
    ends = depth_map.encode(np.array([[[0.0, 1.0]]], np.float32))[0, 0]
    assert ends.tolist() == [[94, 79, 162], [158, 1, 66]]


def test_paper_samples_255_and_256_share_a_colour():
    k = (np.arange(254, 257) / 256).astype(np.float32)[None, None]
    colors = depth_map.encode(k)[0, 0]
    assert np.array_equal(colors[1], colors[2]) and not np.array_equal(colors[0], colors[1])
    samples = depth_map.encode((np.arange(1, 257) / 256).astype(np.float32)[None, None])[0, 0]
    assert len(np.unique(samples, axis=0)) == 255


@pytest.mark.parametrize(("inverse", "bound", "mean"), [("midbin", 512, 1024), ("paper", 256, 512)])
def test_error_bound_without_noise(inverse, bound, mean):
    depths = all_depths()
    error = np.abs(depth_map.decode(depth_map.encode(depths), inverse=inverse) - depths)
    assert error.max() <= 1 / bound + 1e-7
    assert error.mean() == pytest.approx(1 / mean, rel=0.01)


def test_paper_inverse_is_the_nearest_of_its_own_samples():
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (1, 40, 50, 3), np.uint8)
    rgb[0, 0] = depth_map.COLORS[0]  # a colour that the paper's samples lack
    samples = depth_map.COLORS[1:].astype(np.int64)
    nearest = ((rgb[..., None, :] - samples) ** 2).sum(-1).argmin(-1)
    expected = ((nearest + 1) / 256).astype(np.float32)
    assert np.array_equal(depth_map.decode(rgb, inverse="paper"), expected)


@pytest.mark.parametrize(
    ("sigma", "mae"), [(0, 0.0020), (2, 0.0034), (5, 0.0072), (10, 0.0152), (20, 0.0314)]
)
def test_mean_error_under_noise(sigma, mae):
    """Measured table for iid 8-bit noise, paper's inverse; 5 % for another draw."""
    rng = np.random.default_rng(sigma)
    depths = rng.random((2, 250, 400), dtype=np.float32)
    noisy = depth_map.encode(depths) + rng.normal(0, sigma, (2, 250, 400, 3))
    noisy = np.clip(np.round(noisy), 0, 255).astype(np.uint8)
    error = np.abs(depth_map.decode(noisy, inverse="paper") - depths)
    assert error.mean() <= 1.05 * mae


def test_distance_to_map():
    rgb = depth_map.encode(np.full((1, 2, 2), 0.3, np.float32))
    assert (depth_map.distance_to_map(rgb) == 0).all()
    black = depth_map.distance_to_map(np.zeros((1, 1, 1, 3), np.uint8))
    squares = (depth_map.COLORS.astype(float) ** 2).sum(1)
    assert black[0, 0, 0] == pytest.approx(np.sqrt(squares.min()))


def test_far_pixels_take_the_median_of_their_neighbours():
    depths = np.full((1, 9, 9), 0.9, np.float32)
    rgb = depth_map.encode(depths)
    rgb[0, 3:6, 3:6] = [0, 255, 0]  # far from the map; the middle one has no trusted neighbour
    kept = depth_map.decode(rgb)
    refilled = depth_map.decode(rgb, reject_distance=25.0)
    assert np.abs(kept - depths).max() > 0.2
    assert np.abs(refilled - depths).max() <= 1 / 512


def test_refill_leaves_a_frame_without_trusted_pixels():
    rgb = np.full((1, 3, 3, 3), [0, 255, 0], np.uint8)
    assert np.array_equal(depth_map.decode(rgb, reject_distance=25.0), depth_map.decode(rgb))


def test_refill_mends_chroma_subsampled_edges():
    depths = np.full((1, 64, 64), 0.2, np.float32)
    cv2.circle(depths[0], (32, 32), 17, 0.95, -1)
    rgb = depth_map.encode(depths)
    small = cv2.resize(cv2.cvtColor(rgb[0], cv2.COLOR_RGB2YCrCb), (32, 32), interpolation=3)
    chroma = cv2.resize(small, (64, 64), interpolation=cv2.INTER_NEAREST)
    mixed = np.dstack([cv2.cvtColor(rgb[0], cv2.COLOR_RGB2YCrCb)[..., :1], chroma[..., 1:]])
    carried = cv2.cvtColor(mixed, cv2.COLOR_YCrCb2RGB)[None]
    errors = [
        np.abs(depth_map.decode(carried, reject_distance=reject) - depths).mean()
        for reject in (None, 25.0)
    ]
    assert errors[0] > 0.01 and errors[1] < 0.7 * errors[0]


def test_torch_equals_numpy():
    rng = np.random.default_rng(3)
    depths = rng.random((3, 20, 30), dtype=np.float32)
    depths[0, 0, :2] = 0, 1
    rgb = depth_map.encode(depths)
    painted = tensors.encode_depth(torch.from_numpy(depths)[None])
    assert painted.shape == (1, 3, 3, 20, 30)
    as_bytes = ((painted[0].permute(0, 2, 3, 1) + 1) * 127.5).round().byte().numpy()
    assert np.array_equal(as_bytes, rgb)
    noisy = np.clip(rgb + rng.normal(0, 15, rgb.shape), 0, 255).astype(np.uint8)
    tensor = torch.from_numpy(noisy).permute(0, 3, 1, 2) / 127.5 - 1
    for inverse in ("paper", "midbin"):
        got = tensors.decode_depth(tensor[None], inverse=inverse)[0].numpy()
        assert np.array_equal(got, depth_map.decode(noisy, inverse=inverse))


def test_user_errors():
    clip = np.zeros((1, 2, 2, 3), np.uint8)
    with pytest.raises(ValueError, match="inverse: expected 'paper' or 'midbin', got 'exact'"):
        # Without the type check of the tests, as users call it.
        inspect.unwrap(depth_map.sample_values)("exact")
    with pytest.raises(ValueError, match="got nan or infinity"):
        depth_map.encode(np.full((1, 2, 2), np.nan, np.float32))
    with pytest.raises(ValueError, match=r"rgb: expected uint8 \(t, h, w, 3\)"):
        depth_map.decode(clip[:0])
