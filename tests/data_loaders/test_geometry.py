import subprocess
import sys

import numpy as np
import pytest
import torch
from einops import rearrange

from data_loaders.geometry import CropBox, crop, crop_box, fit_depth, fit_ids, fit_rgb

SIZES = [
    ((72, 128), (48, 72)),
    ((49, 71), (32, 48)),
    ((33, 47), (64, 96)),
    ((96, 40), (32, 48)),
    ((16, 24), (33, 51)),
]
ANCHORS = [(0.5, 0.5), (0.0, 1.0), (0.3, 0.8)]


def textured(height, width, *, frames=2):
    """Blobs about 4 pixels wide with some noise, uint8 RGB."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.uniform(0, 255, (frames, 3, height // 4 + 2, width // 4 + 2)))
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").numpy()
    noisy = smooth + rng.normal(0, 4, smooth.shape)
    return rearrange(noisy, "t c h w -> t h w c").clip(0, 255).astype(np.uint8)


def by_torch(frames, *, target, mode):
    """A third opinion on (t, h, w, c): float, antialiased, without repeated border pixels."""
    planes = rearrange(torch.from_numpy(frames.astype(np.float32)), "t h w c -> t c h w")
    fitted = torch.nn.functional.interpolate(planes, size=target, mode=mode, antialias=True)
    return rearrange(fitted, "t c h w -> t h w c").clamp(0, None).numpy()


def test_workers_need_no_torch():
    code = "import sys, data_loaders.geometry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("source", "target", "anchor", "expected"),
    [
        ((720, 1280), (480, 720), (0.5, 0.5), CropBox(top=0, left=100, height=720, width=1080)),
        ((720, 1280), (480, 720), (0.0, 1.0), CropBox(top=0, left=200, height=720, width=1080)),
        ((200, 100), (64, 96), (1.0, 0.0), CropBox(top=133, left=0, height=67, width=100)),
        ((33, 47), (64, 96), (0.5, 0.5), CropBox(top=1, left=0, height=31, width=47)),
        ((1, 9), (3, 2), (0.5, 0.5), CropBox(top=0, left=4, height=1, width=1)),
    ],
)
def test_boxes(source, target, anchor, expected):
    assert crop_box(source=source, target=target, anchor=anchor) == expected


def test_impossible_boxes_are_refused():
    with pytest.raises(ValueError, match=r"anchor in 0\.\.1, got"):
        crop_box(source=(4, 4), target=(2, 2), anchor=(0.5, 1.1))
    with pytest.raises(ValueError, match="sizes >= 1"):
        crop_box(source=(4, 4), target=(0, 2))


@pytest.mark.parametrize(("source", "target"), SIZES)
@pytest.mark.parametrize("anchor", ANCHORS)
def test_rgb_and_depth_agree_with_torch_away_from_the_border(source, target, anchor):
    size = {"height": target[0], "width": target[1]}
    rgb = textured(*source)
    depth = rgb[..., 0].astype(np.uint16) * 257
    box = crop_box(source=source, target=target, anchor=anchor)
    inner = np.s_[:, 4:-4, 4:-4]
    expected = by_torch(crop(rgb, box=box), target=target, mode="bicubic").clip(0, 255)
    error = np.abs(fit_rgb(rgb, **size, anchor=anchor)[inner] - expected[inner])
    # 0.25 is what rounding alone makes; overshoot between the two passes is cut off at 255.
    assert error.mean() < 0.28 and error.max() < 4.0
    expected = by_torch(crop(depth[..., None], box=box), target=target, mode="bilinear")[..., 0]
    error = np.abs(fit_depth(depth, **size, anchor=anchor)[inner] - expected[inner])
    # 0.004 pixels of a slope of up to 257 * 255 / 3 per pixel.
    assert error.max() < 90 and error.mean() < 10


def test_depth_keeps_16_bits():
    ramp = np.arange(40000, 40000 + 96, dtype=np.uint16)
    depth = np.broadcast_to(ramp, (1, 64, 96)).copy()
    small = fit_depth(depth, height=32, width=48)
    np.testing.assert_allclose(small[0, 16, 2:-2], (ramp[::2] + 0.5)[2:-2], atol=1)


@pytest.mark.parametrize(("source", "target"), SIZES)
@pytest.mark.parametrize("anchor", ANCHORS)
def test_ids_are_those_at_pixel_centres(source, target, anchor):
    ids = np.arange(source[0] * source[1], dtype=np.uint16).reshape(1, *source)
    box = crop_box(source=source, target=target, anchor=anchor)
    fitted = fit_ids(ids, height=target[0], width=target[1], anchor=anchor)
    for y, x in ((0, 0), (target[0] // 2, 7), (target[0] - 1, target[1] - 1)):
        row = box.top + (2 * y + 1) * box.height // (2 * target[0])
        column = box.left + (2 * x + 1) * box.width // (2 * target[1])
        assert fitted[0, y, x] == ids[0, row, column]
    assert set(np.unique(fitted)) <= set(np.unique(crop(ids, box=box)))


def test_the_crop_alone_decides():
    rgb = textured(32, 96)
    middle = rgb[:, :, 24:72]
    size = {"height": 16, "width": 24}
    np.testing.assert_array_equal(fit_rgb(rgb, **size), fit_rgb(middle, **size))


def test_a_crop_without_a_resize_is_exact():
    rgb = textured(32, 96)
    np.testing.assert_array_equal(
        fit_rgb(rgb, height=32, width=48, anchor=(0.5, 1.0)), rgb[:, :, 48:]
    )
    depth = rgb[..., 0].astype(np.uint16) * 257
    np.testing.assert_array_equal(
        fit_depth(depth, height=32, width=48, anchor=(0.5, 0.0)), depth[:, :, :48]
    )


def disc_clip(height, width):
    """A disc as a mask (1, h, w), a little up and left of the middle."""
    y, x = np.mgrid[:height, :width]
    radius = 0.2 * min(height, width)
    # + 0.5: positions of pixel centres.
    inside = np.hypot(y + 0.5 - 0.45 * height, x + 0.5 - 0.45 * width) < radius
    return inside[None]


@pytest.mark.parametrize(
    ("source", "target"),
    [((96, 144), (64, 96)), ((40, 60), (64, 96)), ((90, 200), (64, 96)), ((200, 100), (64, 96))],
)
def test_rgb_ids_and_depth_keep_one_geometry(source, target):
    inside = disc_clip(*source)
    size = {"height": target[0], "width": target[1]}
    rgb = fit_rgb(np.repeat(inside[..., None] * np.uint8(255), 3, axis=-1), **size)
    ids = fit_ids(inside.astype(np.uint16) * 300, **size)
    depth = fit_depth(inside.astype(np.uint16) * 60000, **size)
    assert rgb.shape == (1, *target, 3) and ids.shape == depth.shape == (1, *target)
    assert set(np.unique(ids)) == {0, 300}
    masks = [rgb[..., 0] > 127, ids > 0, depth > 30000]
    centres = [np.argwhere(mask[0]).mean(axis=0) for mask in masks]
    for mask, centre in zip(masks[1:], centres[1:], strict=True):
        iou = (mask & masks[0]).sum() / (mask | masks[0]).sum()
        assert iou > 0.95
        # A nearest filter that samples at pixel corners would shift the ids by half a pixel.
        assert np.abs(centre - centres[0]).max() < 0.15


def test_the_crop_is_centred_and_keeps_the_aspect():
    inside = disc_clip(90, 200)  # wider than 3:2: the sides go
    ids = fit_ids(inside.astype(np.uint16), height=60, width=90)
    rows, columns = np.argwhere(ids[0]).T
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert abs(height - width) <= 1
    # The disc is at x = 90 of 200; 32.5 are cut off at the left; scale 2/3.
    assert columns.mean() == pytest.approx((90 - 32.5) * 2 / 3 - 0.5, abs=0.6)
    assert rows.mean() == pytest.approx(0.45 * 60 - 0.5, abs=0.6)


def test_shrinking_averages():
    stripes = np.zeros((1, 64, 96, 3), np.uint8)
    stripes[:, ::2] = 200
    small = fit_rgb(stripes, height=32, width=48)
    # At the border the outermost stripe is repeated.
    assert np.abs(small[:, 2:-2].astype(int) - 100).max() <= 1


def test_what_is_cropped_and_then_enlarged_is_smooth():
    # A portrait: of its 64 rows the crop keeps 16, which become 32.
    ramp = np.linspace(0, 200, 24, dtype=np.uint8)
    rgb = np.broadcast_to(ramp[None, None, :, None], (1, 64, 24, 3))
    wide = fit_rgb(np.ascontiguousarray(rgb), height=32, width=48)
    steps = np.diff(wide[0, 16, 4:-4, 0].astype(int))
    assert (steps > 0).all(), "repeated pixels"


def test_a_clip_of_the_right_size_is_not_touched(noise_sample):
    rgb = noise_sample(0).rgb
    assert fit_rgb(rgb, height=16, width=24) is rgb
