import json

import cv2
import numpy as np
import pytest
import torch

from data_loaders.panda_dense.depth_anything import (
    DepthAnything,
    DepthAnythingSettings,
    check_depth_anything,
    depth_anything_pixels,
    depth_anything_size,
)
from data_loaders.schema import DataError
from tests.data_loaders.panda_dense.tiny_depth import SMALL_DEPTH_ANYTHING, save_tiny_depth_anything

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("depth_anything")
    save_tiny_depth_anything(folder)
    return folder


@pytest.fixture
def model(folder):
    settings = DepthAnythingSettings(
        weights=str(folder), frames_per_batch=4, **SMALL_DEPTH_ANYTHING
    )
    return DepthAnything.load(settings, device=CPU)


def frames(count=3, height=40, width=60):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def test_sizes_are_those_of_the_authors_program() -> None:
    # Of its Resize(518, 518, keep_aspect_ratio, multiple of 14, lower_bound).get_size.
    expected = {
        (480, 720): (518, 784),
        (720, 480): (784, 518),
        (240, 360): (518, 784),
        (1080, 1920): (518, 924),
        (518, 518): (518, 518),
        (100, 1000): (518, 5180),
        (333, 777): (518, 1204),
    }
    assert {size: depth_anything_size(*size, side=518) for size in expected} == expected


def test_pixels_are_those_of_the_authors_program() -> None:
    rgb = frames(2, 48, 72)
    ours = depth_anything_pixels(rgb, side=70).permute(0, 2, 3, 1).numpy()
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    for frame, our in zip(rgb, ours, strict=True):
        large = cv2.resize(frame / 255.0, (112, 70), interpolation=cv2.INTER_CUBIC)
        np.testing.assert_allclose(our, (large - mean) / std, atol=2e-4)


def test_pixels_are_close_to_those_of_the_processor_of_transformers() -> None:
    from PIL import Image
    from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil

    processor = DPTImageProcessorPil(
        size={"height": 70, "width": 70},
        keep_aspect_ratio=True,
        ensure_multiple_of=14,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    # A smooth picture: theirs is another cubic, antialiased and rounded to levels. A large one:
    # it enlarges small ones less than the authors' program.
    y, x = np.mgrid[0:96, 0:144]
    frame = np.stack([x, y * 2, 255 - x - y], axis=-1).astype(np.uint8)
    theirs = processor(images=Image.fromarray(frame), return_tensors="np")["pixel_values"][0]
    ours = depth_anything_pixels(frame[None], side=70)[0].numpy()
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=0.03)


def test_depth_has_the_clips_size_and_the_clips_range(model) -> None:
    clip = model.estimate(frames(), key="a")
    assert clip.depth.shape == (3, 40, 60)
    assert (clip.depth.min(), clip.depth.max()) == (0, 65535)
    assert (clip.depth[1].min(), clip.depth[1].max()) != (0, 65535)
    assert model.facts.version.startswith("transformers ")
    assert len(model.facts.revision) == 12


def test_what_the_model_calls_larger_is_nearer(model) -> None:
    rgb = frames()
    pixels = depth_anything_pixels(rgb, side=70)
    with torch.no_grad():
        raw = model.model(pixel_values=pixels).predicted_depth
    raw = torch.nn.functional.interpolate(
        raw[:, None], size=(40, 60), mode="bilinear", align_corners=True
    )[:, 0].numpy()
    assert raw.std() > 0.01
    depth = model.estimate(rgb, key="a").depth / 65535
    np.testing.assert_allclose(depth, (raw - raw.min()) / (raw.max() - raw.min()), atol=2e-5)


def test_frames_at_once_change_nothing_but_rounding(model) -> None:
    rgb = frames(5)
    together = model.estimate(rgb, key="a").depth.astype(int)
    assert model.pieces.shrink()
    assert model.pieces.shrink()
    assert not model.pieces.shrink()
    alone = model.estimate(rgb, key="a").depth.astype(int)
    assert np.abs(alone - together).max() <= 4
    model.pieces.restore()
    assert (model.estimate(rgb, key="a").depth == together).all()


def test_weights_for_metres_are_refused(folder, tmp_path) -> None:
    save_tiny_depth_anything(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"depth_estimation_type": "metric"}))
    with pytest.raises(ValueError, match=r"d\.weights: expected weights for relative depth"):
        settings = DepthAnythingSettings(weights=str(tmp_path))
        DepthAnything.load(settings, device=CPU, section="d")


def test_weights_that_are_not_there_are_named(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"d\.weights: no folder"):
        settings = DepthAnythingSettings(weights=str(tmp_path / "no"))
        DepthAnything.load(settings, device=CPU, section="d")


def test_wrong_numbers_are_named() -> None:
    check_depth_anything(DepthAnythingSettings(), section="depth")
    with pytest.raises(DataError, match=r"depth\.side: expected a multiple of 14 .*got 520"):
        check_depth_anything(DepthAnythingSettings(side=520), section="depth")
    with pytest.raises(DataError, match=r"depth\.frames_per_batch: expected at least 1, got 0"):
        check_depth_anything(DepthAnythingSettings(frames_per_batch=0), section="depth")
