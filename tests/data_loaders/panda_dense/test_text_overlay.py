import numpy as np
import pytest
import torch

from data_loaders.panda_dense.measuring import Measurer, MeasureSettings
from data_loaders.panda_dense.text_overlay import TextDetector, box_mask
from data_loaders.schema import DataError
from tests.data_loaders.panda_dense.tiny_text import save_tiny_text


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return str(save_tiny_text(tmp_path_factory.mktemp("weights")))


def captioned(*, frames=2, height=128, width=192):
    """Gray with a green bar, 24 x 120 pixels."""
    rgb = np.full((frames, height, width, 3), 128, np.uint8)
    rgb[:, 60:84, 30:150] = (20, 230, 20)
    return rgb


def test_boxes_get_their_margin_back():
    probability = np.zeros((128, 192), np.float32)
    probability[60:84, 30:150] = 0.9
    margin = 23 * 119 * 2.0 / (2 * (23 + 119))
    box = box_mask(probability)
    rows, columns = np.flatnonzero(box.any(axis=1)), np.flatnonzero(box.any(axis=0))
    assert abs(rows[0] - (60 - margin)) <= 1 and abs(rows[-1] - (83 + margin)) <= 1
    assert abs(columns[0] - (30 - margin)) <= 1 and abs(columns[-1] - (149 + margin)) <= 1


def test_weak_and_thin_parts_are_no_text():
    probability = np.zeros((128, 192), np.float32)
    probability[10:30, 10:100] = 0.4  # above the pixel threshold, below that of boxes
    probability[60:62, 10:100] = 0.9
    assert not box_mask(probability).any()


def test_share_of_text_through_the_network(weights):
    detector = TextDetector(weights)
    frames = captioned()
    margin = 23 * 119 / (23 + 119)
    expected = (23 + 2 * margin) * (119 + 2 * margin) / (128 * 192)
    assert detector.share(frames, rows=128) == pytest.approx(expected, rel=0.05)
    assert detector.share(frames, rows=256) == pytest.approx(expected, rel=0.12)
    half = np.concatenate([frames[:1], np.full_like(frames[:1], 128)])
    assert detector.share(half, rows=128) == pytest.approx(expected / 2, rel=0.05)


def test_text_is_measured_where_weights_are_given(weights):
    settings = MeasureSettings(text_weights=weights, text_rows=128)
    scores = Measurer(settings, device=torch.device("cpu")).measure(captioned(), fps=8.0)
    assert scores.text is not None and 0.2 < scores.text < 0.5


def test_weights_that_cannot_be_used_are_named(tmp_path):
    path = tmp_path / "text.onnx"
    for content in (None, b"", b"no network"):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(DataError, match=r"text_weights .*text\.onnx: expected"):
            TextDetector(str(path)).share(captioned(), rows=128)
