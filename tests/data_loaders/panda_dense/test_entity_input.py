"""Frames as the networks were tested on them."""

import numpy as np
import pytest
import torch

from data_loaders.panda_dense.entity_input import (
    PIXEL_MEAN,
    PIXEL_STD,
    input_size,
    network_input,
    network_input_size,
    resize_frame,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        ((480, 720), (800, 1200)),
        ((720, 1280), (750, 1333)),  # the longer side decides
        ((1280, 720), (1333, 750)),
        ((512, 512), (800, 800)),
        ((336, 503), (800, 1198)),  # a crop of 480x720: 1197.6 columns
        ((1, 2000), (1, 1333)),
    ],
)
def test_sizes_of_the_published_test(frame: tuple[int, int], expected: tuple[int, int]) -> None:
    height, width = frame
    assert input_size(height=height, width=width, short_side=800, long_side=1333) == expected


def test_colours_stay_in_their_channels_and_are_normalised() -> None:
    frame = np.empty((32, 64, 3), np.uint8)
    frame[:] = (10, 100, 200)
    batch = network_input([frame], device=CPU)
    expected = (torch.tensor([10.0, 100.0, 200.0]) - torch.tensor(PIXEL_MEAN)) / torch.tensor(
        PIXEL_STD
    )
    assert batch.shape == (1, 3, 32, 64)
    assert torch.equal(batch[0, :, 5, 7], expected)


def test_views_of_unlike_size_are_padded_below_and_right_with_the_mean() -> None:
    frames = [np.full(size, 255, np.uint8) for size in ((33, 40, 3), (30, 70, 3))]
    batch = network_input(frames, device=CPU)
    assert batch.shape == (2, 3, 64, 96)
    assert network_input_size([(33, 40), (30, 70)]) == (64, 96)
    for view, frame in zip(batch, frames, strict=True):
        height, width = frame.shape[:2]
        assert (view[:, :height, :width] > 2).all()
        assert not view[:, height:].any() and not view[:, :, width:].any()


def test_shrinking_is_antialiased_and_rounds() -> None:
    frame = np.zeros((8, 8, 3), np.uint8)
    frame[:, ::2] = 255  # stripes that a bilinear sample without antialiasing would pick out
    small = resize_frame(frame, size=(4, 2))
    assert small.shape == (4, 2, 3) and small.dtype == np.uint8
    assert abs(small.astype(int) - 128).max() <= 20


def test_an_edge_keeps_its_place_when_enlarged() -> None:
    frame = np.zeros((4, 4, 3), np.uint8)
    frame[:, 2:] = 200
    large = resize_frame(frame, size=(8, 8))[0, :, 0]
    assert large.tolist() == [0, 0, 0, 50, 150, 200, 200, 200]
