"""I3D features against cd-fvd's network and preprocessing, and what its files may be."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from torch.nn import functional

from sat_udpdiff.evaluation.fvd import frechet_distance
from sat_udpdiff.evaluation.i3d import I3dFeatures, find_i3d, preprocess
from sat_udpdiff.evaluation.i3d_network import InceptionI3d
from sat_udpdiff.evaluation.measure import UnusableError
from tests.evaluation.i3d_reference import (
    CLIPS,
    FOLDER,
    NUMBERS,
    digest_of,
    make_clip,
    random_state,
    reference_modules,
    shapes_of,
)

REAL = os.environ.get("UDPDIFF_I3D", "")
needs_cdfvd = pytest.mark.skipif(not FOLDER, reason="UDPDIFF_CDFVD names no folder with cd-fvd")


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return random_state(shapes_of(InceptionI3d()))


@pytest.fixture(scope="module")
def weights(state, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("i3d") / "i3d_pretrained_400.pt"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def features(weights) -> I3dFeatures:
    return I3dFeatures.load(weights, protocol="cdfvd")


class Means(torch.nn.Module):
    """In the place of StyleGAN-V's file: answers with its arguments and means of the video."""

    def forward(
        self,
        x: torch.Tensor,
        rescale: bool = True,
        resize: bool = True,
        return_features: bool = False,
    ):
        rows = x.mean(dim=(2, 3, 4)).repeat(1, 200)[:, :400]
        rows[:, 0], rows[:, 1], rows[:, 2] = float(rescale), float(resize), float(return_features)
        return rows


def save_script(module: torch.nn.Module, path: Path) -> Path:
    torch.jit.script(module).save(str(path))
    return path


def test_the_files_keys_are_cd_fvds():
    network = InceptionI3d()
    record = json.loads(NUMBERS.read_text())
    assert digest_of(shapes_of(network)) == record["names_and_shapes_sha256"]
    assert sum(value.numel() for value in network.parameters()) == record["parameters"]


@pytest.mark.parametrize("name", CLIPS)
def test_features_are_the_numbers_that_cd_fvd_gave(features, name):
    expected = json.loads(NUMBERS.read_text())["logits"][name]
    found = features(make_clip(CLIPS[name]))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)  # their spread is 7


@needs_cdfvd
def test_features_and_distance_are_cd_fvds_own(features, weights, monkeypatch):
    utils, fvd = reference_modules()
    clips = np.stack([np.roll(make_clip((10, 40, 60)), 7 * i, axis=2) for i in range(2)])
    theirs = utils.load_i3d_model(torch.device("cpu"), str(weights))
    with torch.no_grad():
        expected = theirs(utils.preprocess_i3d(clips)).numpy()
    found = np.stack([features(clip) for clip in clips])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    # Full rank, which two videos lack: more of them, made from theirs.
    rng = np.random.default_rng(0)
    sets = [(rng.standard_normal((500, 400)) + 3 * expected[i]).astype(np.float32) for i in (0, 1)]
    root = scipy.linalg.sqrtm
    # SciPy 1.18 has no `disp`, which cd-fvd gives.
    monkeypatch.setattr(scipy.linalg, "sqrtm", lambda matrix, disp: (root(matrix), 0.0))
    tool = fvd.cdfvd("i3d", ckpt_path=str(weights), device="cpu")
    tool.fake_stats.append(sets[0])
    tool.real_stats.append(sets[1])
    ours = frechet_distance(
        sets[0].astype(np.float64), references=sets[1].astype(np.float64), covariance="biased"
    )
    assert ours == pytest.approx(tool.compute_fvd_from_stats(), rel=1e-6)


SIZES = [(40, 60), (60, 40), (64, 64), (224, 300), (100, 231), (49, 49)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_styleganv_sees_the_centre(height, width):
    """As the tools made from StyleGAN-V do it: channels first, all frames at once."""
    rgb = make_clip((11, height, width))
    video = torch.from_numpy(rgb).permute(3, 0, 1, 2).contiguous() / 255
    scale = 224 / min(height, width)
    target = (224, math.ceil(width * scale)) if height < width else (math.ceil(height * scale), 224)
    video = functional.interpolate(video, size=target, mode="bilinear", align_corners=False)
    top, left = (target[0] - 224) // 2, (target[1] - 224) // 2
    expected = (video[:, :, top : top + 224, left : left + 224] - 0.5) * 2
    assert torch.equal(preprocess(rgb, protocol="styleganv"), expected)


@needs_cdfvd
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_cdfvd_sees_the_whole_stretched(height, width):
    rgb = make_clip((11, height, width))
    (expected,) = reference_modules()[0].preprocess_i3d(rgb[None])
    assert torch.equal(preprocess(rgb, protocol="cdfvd"), expected)


def test_the_protocols_see_different_things():
    rgb = np.zeros((10, 40, 80, 3), np.uint8)
    rgb[:, :, :10] = 255
    assert preprocess(rgb, protocol="styleganv").max() == -1
    stretched = preprocess(rgb, protocol="cdfvd")
    assert (stretched > 0).float().mean() == pytest.approx(1 / 8, abs=0.01)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_the_torchscript_is_asked_for_features_of_finished_pixels(tmp_path):
    save_script(Means(), tmp_path / "i3d_torchscript.pt")
    features = I3dFeatures.load(tmp_path, protocol="styleganv")
    row = features(np.full((10, 30, 50, 3), (255, 0, 51), np.uint8))
    assert row[:3].tolist() == [0.0, 0.0, 1.0]
    np.testing.assert_allclose(row[3:6], [1.0, -1.0, -0.6], atol=1e-5)
    assert features.dim == len(row) == 400


def test_the_key_names_protocol_and_file(features, weights):
    import hashlib

    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert features.key == f"i3d cdfvd i3d_pretrained_400.pt sha256={digest}"


def test_short_videos_cannot_be_judged(features):
    with pytest.raises(UnusableError, match="needs 10 or more frames, got 9"):
        features(np.zeros((9, 32, 32, 3), np.uint8))


def test_a_missing_file_is_named_with_its_address(tmp_path):
    with pytest.raises(ValueError, match=r"no file .*i3d_torchscript.pt; get .*dropbox.com"):
        find_i3d(tmp_path, protocol="styleganv")
    with pytest.raises(ValueError, match=r"no file .*none.pt; get i3d_pretrained_400.pt .*TATS"):
        find_i3d(tmp_path / "none.pt", protocol="cdfvd")


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_other_files_are_refused(tmp_path, state, weights):
    (tmp_path / "text.pt").write_text("not found")
    for protocol in ("styleganv", "cdfvd"):
        with pytest.raises(ValueError, match=r"text.pt is not the expected i3d_.*; get it from"):
            I3dFeatures.load(tmp_path / "text.pt", protocol=protocol)
    # Each file in the other's place.
    with pytest.raises(ValueError, match="is not the expected i3d_torchscript"):
        I3dFeatures.load(weights, protocol="styleganv")
    script = save_script(Means(), tmp_path / "script.pt")
    with pytest.raises(ValueError, match="is not the expected i3d_pretrained_400"):
        I3dFeatures.load(script, protocol="cdfvd")
    # A state that lacks a tensor is never completed with random numbers.
    lacking = {key: value for key, value in state.items() if key != "logits.conv3d.bias"}
    torch.save(lacking, tmp_path / "lacking.pt")
    with pytest.raises(ValueError, match="is not the expected i3d_pretrained_400"):
        I3dFeatures.load(tmp_path / "lacking.pt", protocol="cdfvd")


def test_a_network_of_other_features_is_refused():
    features = I3dFeatures(lambda video: video.mean((2, 3, 4)), protocol="cdfvd", source="means")
    with pytest.raises(ValueError, match=r"means: expected features \(1, 400\), got \(1, 3\)"):
        features(np.zeros((10, 8, 8, 3), np.uint8))


@pytest.mark.skipif(not REAL, reason="UDPDIFF_I3D names no i3d_torchscript.pt of StyleGAN-V")
def test_black_against_white_is_the_published_distance():
    """Of eight videos of 30 x 64 x 64: 151.26, by common_metrics_on_video_quality's README."""
    features = I3dFeatures.load(REAL, protocol="styleganv")
    rows = [features(np.full((30, 64, 64, 3), level, np.uint8))[None] for level in (0, 255)]
    black, white = (row.repeat(8, axis=0) for row in rows)
    found = frechet_distance(black, references=white, covariance="unbiased")
    assert found == pytest.approx(151.2565, abs=1.0)
