import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sat_udpdiff.evaluation import motion_smoothness as module
from sat_udpdiff.evaluation.feature_weights import find_feature_weights
from sat_udpdiff.evaluation.measure import UnusableError
from sat_udpdiff.evaluation.motion_smoothness import (
    AmtMidFrames,
    FlowMidFrames,
    find_vbench,
    load_amt,
    mid_frame_differences,
)


class Earlier:
    """Foretells the frame before: differences can be counted by hand."""

    backend, digest = "flow", "earlier"

    def __init__(self):
        self.pairs = []

    def require_size(self, *, height, width):
        self.size = (height, width)

    def __call__(self, before, after):
        self.pairs.append((int(before[0, 0, 0]), int(after[0, 0, 0])))
        return before


def steps(t, *, height=4, width=6):
    """Frame i is 10 i everywhere."""
    values = np.arange(t, dtype=np.uint8) * 10
    return np.broadcast_to(values[:, None, None, None], (t, height, width, 3)).copy()


@pytest.mark.parametrize(("frames", "pairs"), [(3, 1), (4, 1), (5, 2), (8, 3), (9, 4)])
def test_even_frames_foretell_odd_ones(frames, pairs):
    predict = Earlier()
    differences = mid_frame_differences(steps(frames), predict=predict)
    np.testing.assert_allclose(differences, [10.0] * pairs)
    assert predict.pairs == [(20 * i, 20 * i + 20) for i in range(pairs)]
    assert predict.size == (4, 6)


@pytest.mark.parametrize("frames", [1, 2])
def test_too_few_frames_are_refused(frames):
    with pytest.raises(UnusableError, match=f"expected 3 or more frames, got {frames}"):
        mid_frame_differences(steps(frames), predict=Earlier())


def texture(*, height=64, width=96):
    noise = np.random.default_rng(0).random((height // 4, width // 4, 3)).astype(np.float32)
    pixels = torch.from_numpy(noise).permute(2, 0, 1)[None]
    big = torch.nn.functional.interpolate(pixels, size=(height, width), mode="bicubic")
    return (big[0].permute(1, 2, 0).clamp(0, 1) * 255).numpy().astype(np.uint8)


def moving(*, pixels_per_frame, t=5):
    picture = texture(width=96 + 8 * t)
    return np.stack([picture[:, pixels_per_frame * i :][:, :96] for i in range(t)])


def test_flow_foretells_even_motion_and_not_jumps():
    predict = FlowMidFrames()
    smooth = moving(pixels_per_frame=2)
    copied = np.abs(smooth[1:].astype(int) - smooth[:-1]).mean()
    differences = mid_frame_differences(smooth, predict=predict)
    assert differences.max() < 0.25 * copied
    jerky = smooth[[0, 2, 2, 3, 4]]
    assert mid_frame_differences(jerky, predict=predict)[0] > 3 * differences[0]


def test_flow_between_equal_frames_is_the_frame():
    picture = texture()
    np.testing.assert_array_equal(FlowMidFrames()(picture, picture), picture)


@pytest.mark.parametrize("size", [(16, 16), (32, 48), (33, 47)])
def test_flow_works_on_small_frames_and_refuses_smaller_ones(size):
    frames = steps(3, height=size[0], width=size[1])
    assert FlowMidFrames()(frames[0], frames[2]).shape == (*size, 3)
    with pytest.raises(UnusableError, match="needs 16 pixels a side, got 15x40"):
        mid_frame_differences(steps(3, height=15, width=40), predict=FlowMidFrames())


def amt_file(folder: Path, content=None):
    torch.save(content or {"state_dict": {}}, folder / "amt-s.pth")
    return find_feature_weights(str(folder), network="amt", key="evaluation.amt")


STAND_IN = '''
import torch
from vbench.third_party.amt.networks.blocks.part import SHIFT


class Model(torch.nn.Module):
    """The network's interface: the mean of both, brighter by a parameter."""

    def __init__(self, corr_radius, corr_lvls, num_flows):
        super().__init__()
        assert (corr_radius, corr_lvls, num_flows) == (3, 4, 3)
        self.brighter = torch.nn.Parameter(torch.zeros(()))

    def forward(self, first, second, embt, scale_factor, eval):
        assert embt.shape == (1, 1, 1, 1) and float(embt) == 0.5 and scale_factor == 1.0
        assert first.shape[-1] % 16 == first.shape[-2] % 16 == 0
        return {"imgt_pred": (first + second) / 2 + self.brighter + SHIFT}
'''


@pytest.fixture
def stand_in(tmp_path):
    """A package in the shape of vbench, which cannot be imported as a whole."""
    folder = tmp_path / "elsewhere" / "vbench"
    blocks = folder / "third_party" / "amt" / "networks" / "blocks"
    blocks.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('wants torchvision')")
    (blocks.parent / "AMT-S.py").write_text(STAND_IN)
    (blocks / "part.py").write_text("SHIFT = 0.0")
    return folder


def test_the_network_comes_from_the_package_without_its_init(stand_in, tmp_path):
    weights = amt_file(tmp_path, {"state_dict": {"brighter": torch.tensor(0.9 / 255)}})
    predict = AmtMidFrames(weights, package=stand_in)
    frames = np.random.default_rng(0).integers(0, 200, (2, 113, 130, 3), dtype=np.uint8)
    sums = frames.astype(int).sum(axis=0)
    # Truncated: .9 more is one more for odd sums (.5 + .9) and none for even ones.
    expected = np.where(sums % 2, sums // 2 + 1, sums // 2)
    np.testing.assert_array_equal(predict(frames[0], frames[1]), expected)
    assert predict.digest == weights.sha256
    assert not [name for name in sys.modules if name.split(".")[0] == "vbench"]


def test_a_vbench_that_is_imported_already_stays(stand_in, tmp_path, monkeypatch):
    other = type(sys)("vbench")
    monkeypatch.setitem(sys.modules, "vbench", other)
    weights = amt_file(tmp_path, {"state_dict": {"brighter": torch.zeros(())}})
    load_amt(weights, package=stand_in)
    assert sys.modules["vbench"] is other
    assert "vbench.third_party.amt.networks.AMT-S" not in sys.modules


def test_a_prediction_that_is_no_number_is_refused(stand_in, tmp_path):
    weights = amt_file(tmp_path, {"state_dict": {"brighter": torch.tensor(torch.nan)}})
    predict = AmtMidFrames(weights, package=stand_in)
    frames = steps(3, height=113, width=113)
    with pytest.raises(UnusableError, match="AMT's prediction is not finite"):
        mid_frame_differences(frames, predict=predict)


def test_amt_refuses_what_it_divides_by_zero_on(stand_in, tmp_path):
    predict = AmtMidFrames(amt_file(tmp_path), package=stand_in)
    predict.require_size(height=113, width=113)
    with pytest.raises(UnusableError, match="below 113 pixels a side, got 112x200"):
        mid_frame_differences(steps(3, height=112, width=200), predict=predict)


def test_a_missing_package_is_named_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="vbench is not installed; run `pip install --no-deps"):
        AmtMidFrames(amt_file(tmp_path))
    with pytest.raises(ValueError, match=r"no third_party/amt/networks/AMT-S.py in .*--no-deps"):
        find_vbench(tmp_path)


def test_other_weights_are_refused(stand_in, tmp_path):
    frames = steps(2, height=113, width=113)
    for content in ({"state_dict": {"other": torch.zeros(1)}}, {"weights": torch.zeros(1)}):
        predict = AmtMidFrames(amt_file(tmp_path, content), package=stand_in)
        with pytest.raises(ValueError, match=r"^evaluation.amt: .*amt-s.pth is not AMT-S"):
            predict(frames[0], frames[1])


def test_amt_of_vbench_fails_below_113_pixels_and_not_above():
    named = os.environ.get("UDPDIFF_VBENCH")
    if not named:
        pytest.skip("UDPDIFF_VBENCH: no folder of vbench (`sh .ci/install_vbench` makes one)")
    with module._vbench_without_init(find_vbench(Path(named) / "vbench")):
        torch.manual_seed(0)
        network = module.importlib.import_module(module._AMT).Model(**module._PARAMETERS).eval()
    for side, is_finite in ((112, False), (128, True)):
        frames = torch.rand(2, 1, 3, side, 160)
        with torch.no_grad():
            time = torch.full((1, 1, 1, 1), 0.5)
            predicted = network(frames[0], frames[1], time, eval=True)["imgt_pred"]
        assert bool(predicted.isfinite().all()) == is_finite
