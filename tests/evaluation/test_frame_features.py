import numpy as np
import pytest
import torch

from sat_udpdiff.evaluation.feature_weights import FeatureWeights
from sat_udpdiff.evaluation.frame_features import NetworkFeatures, clip_pixels, dino_pixels


def frames_of(value, *, t=2, height=48, width=72):
    return np.full((t, height, width, 3), value, dtype=np.uint8)


def noise(*, t=3, height=40, width=60):
    return np.random.default_rng(0).integers(0, 256, (t, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 720), (224, 336)),
        ((720, 480), (336, 224)),
        ((480, 854), (224, 398)),
        ((224, 224), (224, 224)),
    ],
)
def test_sizes(size, expected):
    frames = frames_of(9, t=1, height=size[0], width=size[1])
    assert dino_pixels(frames).shape == (1, 3, *expected)
    assert clip_pixels(frames).shape == (1, 3, 224, 224)


def test_means_become_zero():
    # 0.485 * 255 = 123.7: with 124 for all channels DINO's red is at +.0013/.229.
    dino, clip = dino_pixels(frames_of(124)), clip_pixels(frames_of(124))
    value = np.float32(124 / 255)
    for channel in range(3):
        mean, deviation = (0.485, 0.456, 0.406)[channel], (0.229, 0.224, 0.225)[channel]
        np.testing.assert_allclose(dino[:, channel], (value - mean) / deviation, atol=1e-5)
        mean = (0.48145466, 0.4578275, 0.40821073)[channel]
        deviation = (0.26862954, 0.26130258, 0.27577711)[channel]
        np.testing.assert_allclose(clip[:, channel], (value - mean) / deviation, atol=1e-5)


def test_bicubic_values_overshoot_and_stay():
    # A hard edge: rounding to bytes would cut what lies outside 0..255.
    frames = frames_of(0, height=60, width=60)
    frames[:, :, 30:] = 255
    white = (1 - 0.48145466) / 0.26862954
    black = -0.48145466 / 0.26862954
    red = clip_pixels(frames)[:, 0]
    assert red.max() > white + 0.05 and red.min() < black - 0.05


def test_clip_takes_the_centre():
    frames = frames_of(0, t=1, height=224, width=448)
    frames[:, :, 112:336] = 255
    assert torch.unique(clip_pixels(frames)[:, 0]).numel() == 1


class Means(torch.nn.Module):
    """A network in small; counts how many frames come at once."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def forward(self, pixels):
        self.sizes.append(len(pixels))
        return pixels.mean(dim=(2, 3))


def weights(tmp_path):
    return FeatureWeights(network="dino", key="dino", path=tmp_path / "none.pth", sha256="ab")


def test_chunks_change_nothing_and_bound_the_batch(tmp_path):
    frames, features = noise(t=7), []
    for chunk_frames in (1, 3, 7):
        network = Means()
        extract = NetworkFeatures(
            weights(tmp_path),
            prepare=dino_pixels,
            load=lambda _, n=network: n,
            chunk_frames=chunk_frames,
        )
        assert network.sizes == []
        features.append(extract(frames))
        assert max(network.sizes) == chunk_frames and sum(network.sizes) == 7
        assert extract.digest == "ab"
    np.testing.assert_allclose(features[1], features[0], atol=1e-6)
    np.testing.assert_allclose(features[2], features[0], atol=1e-6)


def test_a_chunk_has_at_least_one_frame(tmp_path):
    with pytest.raises(ValueError, match="chunk_frames: expected 1 or more, got 0"):
        NetworkFeatures(
            weights(tmp_path), prepare=dino_pixels, load=lambda _: Means(), chunk_frames=0
        )


def test_the_network_is_loaded_once(tmp_path):
    loads = []
    extract = NetworkFeatures(
        weights(tmp_path), prepare=clip_pixels, load=lambda w: (loads.append(w), Means())[1]
    )
    first, second = extract(noise()), extract(noise())
    assert len(loads) == 1
    np.testing.assert_array_equal(first, second)
