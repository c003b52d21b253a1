"""DALI against PyAV and `geometry`, frame by frame."""

import importlib
import importlib.util
import io
import os
import subprocess
import sys
import time
from dataclasses import replace

import av
import numpy as np
import pytest
import torch
from einops import rearrange

from data_loaders.dali_pipeline import DaliFitter, load_dali
from data_loaders.damage import DamagedClipsError
from data_loaders.decode import decode_rgb, encode_rgb
from data_loaders.geometry import CropBox, crop, crop_box, fit_depth, fit_ids, fit_rgb
from data_loaders.order import frame_indices
from data_loaders.probe import StreamHeader, stream_header
from data_loaders.raw_clip import RawClip, can_decode
from data_loaders.schema import DataError
from data_loaders.synthetic import WorldConfig, make_clip

has_dali = importlib.util.find_spec("nvidia.dali") if importlib.util.find_spec("nvidia") else None
needs_dali = pytest.mark.skipif(
    not has_dali, reason="needs nvidia-dali (pip install 'udpdiff[dali]')"
)
DEVICES = ["cpu", pytest.param("gpu", marks=pytest.mark.gpu)]
FRAMES = 5
INDICES = (0, 3, 3, 7, 8)
SIZES = [
    ((120, 180), (64, 96)),  # 1.875 exactly
    ((97, 151), (64, 96)),
    ((33, 47), (64, 96)),
    ((160, 90), (48, 72)),
    ((64, 96), (64, 96)),
]
ANCHORS = [(0.5, 0.5), (0.0, 1.0), (0.3, 0.8)]


@pytest.fixture(scope="module")
def world():
    """A synthetic clip of 9x120x180 and its VP9 file."""
    clip = make_clip(3, seed=0, config=WorldConfig(frames=9, height=120, width=180))
    return clip, encode_rgb(clip.rgb, fps=8.0, codec="vp9")


@pytest.fixture
def fitter():
    """Factory: fitter(height, width, **options); closed at the end of the test."""
    made = []

    def make(height, width, **options):
        defaults = {"num_frames": FRAMES, "device": "cpu", "max_batch_size": 4, "num_threads": 2}
        made.append(DaliFitter(height=height, width=width, **(defaults | options)))
        return made[-1]

    yield make
    for one in made:
        one.close()


def raw(rgb, *, source, target, key="clip", indices=INDICES, anchor=(0.5, 0.5), **labels):
    """A RawClip; labels: entity_ids=... or depth=..."""
    (kind, array), *_ = [*labels.items(), (None, None)]
    box = crop_box(source=source, target=target, anchor=anchor)
    return RawClip(key=key, rgb=rgb, indices=tuple(indices), labels=array, label_kind=kind, box=box)


def levels(fitted):
    """(t, 3, h, w) in [-1, 1] -> (t, h, w, 3) in 0..255."""
    return rearrange((fitted.cpu().double() + 1) * 127.5, "t c h w -> t h w c").numpy()


def textured(height, width, *, frames=FRAMES):
    """Blobs about 4 pixels wide with some noise, uint8 RGB."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.uniform(0, 255, (frames, 3, height // 4 + 2, width // 4 + 2)))
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").numpy()
    noisy = smooth + rng.normal(0, 4, smooth.shape)
    return rearrange(noisy, "t c h w -> t h w c").clip(0, 255).astype(np.uint8)


def assert_near(ours, reference, *, mean=0.05, most=8.0):
    """Two resizes that round to 8 bits: mostly equal, apart where overshoot is cut off.

    DALI cuts off after both passes, libswscale after each: up to several levels on hard edges.
    """
    error = np.abs(ours - reference)
    assert error.mean() < mean and error.max() < most, (error.mean(), error.max())


def encode_709(rgb, *, codec="libvpx-vp9", container="webm"):
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=8, options={"crf": "10", "b:v": "0"})
        stream.height, stream.width, stream.pix_fmt = *rgb.shape[1:3], "yuv420p"
        stream.codec_context.colorspace = 1
        for array in rgb:
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            output.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace="ITU709")))
        output.mux(stream.encode(None))
    return buffer.getvalue()


@needs_dali
@pytest.mark.parametrize("anchor", ANCHORS)
@pytest.mark.parametrize(("source", "target"), SIZES)
@pytest.mark.parametrize("device", DEVICES)
def test_frames_ids_and_depth_are_fitted_alike(fitter, source, target, anchor, device):
    rgb = textured(*source)
    ids = np.random.default_rng(1).integers(0, 65536, rgb.shape[:3]).astype(np.uint16)
    depth = rgb[..., 0].astype(np.uint16) * 257
    place = {"source": source, "target": target, "anchor": anchor}
    batch = fitter(*target, device=device)(
        [raw(rgb, **place, entity_ids=ids), raw(rgb, **place, depth=depth)]
    )
    size = {"height": target[0], "width": target[1], "anchor": anchor}
    assert batch.rgb.shape == (2, FRAMES, 3, *target) and batch.rgb.dtype == torch.float32
    assert batch.rgb.min() >= -1 and batch.rgb.max() <= 1
    assert_near(levels(batch.rgb[0]), fit_rgb(rgb, **size))
    assert torch.equal(batch.rgb[0], batch.rgb[1])
    assert [one.dtype for one in batch.labels] == [torch.int32] * 2
    np.testing.assert_array_equal(batch.labels[0].cpu(), fit_ids(ids, **size))
    error = np.abs(batch.labels[1].cpu().numpy() - fit_depth(depth, **size).astype(int))
    # Of 65535, on noise: libswscale's positions are true to 0.004 pixels, and it leaves out the
    # last 0.2 % of a filter's weight, which shows at the border.
    assert error.mean() < 5 and error[:, 2:-2, 2:-2].max() < 30 and error.max() < 500


@needs_dali
@pytest.mark.parametrize(("source", "target"), SIZES)
def test_smooth_depth_keeps_16_bits(fitter, source, target):
    y, x = np.mgrid[: source[0], : source[1]]
    slope = 20000 + 100 * y + 150 * x + 3000 * np.sin(x / 9)
    depth = np.repeat(slope[None], FRAMES, axis=0).astype(np.uint16)
    clip = raw(textured(*source), source=source, target=target, depth=depth)
    ours = fitter(*target)([clip]).labels[0].numpy()
    reference = fit_depth(depth, height=target[0], width=target[1])
    error = np.abs(ours - reference.astype(int))
    assert error[:, 2:-2, 2:-2].max() <= 4 and error.max() <= 16
    # Not one value in 256 at most, as from a detour through 8 bits.
    assert len(np.unique(ours % 256)) > 200


@needs_dali
@pytest.mark.parametrize(("source", "target"), SIZES)
def test_torch_agrees_with_both_away_from_the_border(fitter, source, target):
    rgb = textured(*source)
    ours = levels(fitter(*target)([raw(rgb, source=source, target=target)]).rgb[0])
    area = crop(rgb, box=crop_box(source=source, target=target)).astype(np.float32)
    planes = rearrange(torch.from_numpy(area), "t h w c -> t c h w")
    third = torch.nn.functional.interpolate(planes, size=target, mode="bicubic", antialias=True)
    third = rearrange(third.clamp(0, 255), "t c h w -> t h w c").numpy()
    inner = np.s_[:, 4:-4, 4:-4]
    # Rounding alone makes 0.25 on the mean and 0.5 at most.
    assert_near(ours[inner], third[inner], mean=0.27, most=1.5)


@needs_dali
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("target", [(120, 180), (64, 96)])
def test_files_are_decoded_as_pyav_does(fitter, world, device, target):
    clip, data = world
    if device == "gpu":  # too small for NVDEC otherwise
        data = encode_rgb(np.tile(clip.rgb, (1, 2, 1, 1)), fps=8.0, codec="vp9")
    frames = decode_rgb(data, name="x", indices=INDICES)
    place = {"source": frames.shape[1:3], "target": target, "anchor": (0.2, 0.9)}
    assert can_decode(stream_header(data, name="x"), device=device)
    ours = levels(fitter(*target, device=device)([raw(data, **place)]).rgb[0])
    reference = fit_rgb(frames, height=target[0], width=target[1], anchor=(0.2, 0.9))
    if device == "gpu":  # its chroma is upsampled linearly and sits elsewhere
        assert_near(ours, reference, mean=2.5, most=80.0)
    elif target == (120, 180):
        # The same library converts the colours: not a level between them.
        np.testing.assert_allclose(ours, reference, atol=1e-4)
    else:
        assert_near(ours, reference)


@needs_dali
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("fps", [8.0, 24000 / 1001, 24.0, 30000 / 1001, 30.0])
def test_the_very_frames_are_taken(fitter, device, fps):
    numbers = np.arange(30)
    shown = np.broadcast_to((numbers * 8)[:, None, None, None], (30, 144, 192, 3))
    data = encode_rgb(shown.astype(np.uint8), fps=fps, codec="vp9")
    indices = frame_indices(num_frames=9, fps=8.0, source_frames=30, source_fps=fps)
    for wanted in (indices, [29, 0, 17, 17, 3, 28, 1, 29, 29], [7] * 9):
        clip = raw(data, source=(144, 192), target=(48, 64), indices=wanted)
        batch = fitter(48, 64, num_frames=9, device=device)([clip])
        found = levels(batch.rgb[0]).mean(axis=(1, 2, 3)) / 8
        assert np.rint(found).astype(int).tolist() == list(wanted)
        assert np.abs(found - wanted).max() < 0.4


@needs_dali
@pytest.mark.shared
def test_real_clips_come_out_as_by_geometry(fitter, shared_clips):
    size = (128, 192)
    fit = fitter(*size, max_batch_size=8)
    for names in (["hiker", "coffee"], ["panda_scene_001", "rollercoaster", "juggle"]):
        clips, expected = [], []
        for name in names:
            data = (shared_clips / f"{name}.mp4").read_bytes()
            header = stream_header(data, name=name)
            assert not can_decode(header, device="cpu")
            indices = frame_indices(
                num_frames=FRAMES, fps=8.0, source_frames=40, source_fps=header.fps
            )
            frames = decode_rgb(data, name=name, indices=indices)
            place = {"source": frames.shape[1:3], "target": size, "anchor": (0.5, 0.7)}
            clips.append(raw(frames, key=name, **place, indices=indices))
            expected.append(fit_rgb(frames, height=size[0], width=size[1], anchor=(0.5, 0.7)))
        for ours, reference in zip(fit(clips).rgb, expected, strict=True):
            assert_near(levels(ours), reference)


@needs_dali
@pytest.mark.gpu
@pytest.mark.shared
def test_real_clips_are_decoded_on_a_gpu(fitter, shared_clips):
    fit = fitter(256, 384, device="gpu")
    for name in ("hiker", "panda_scene_001", "rollercoaster"):
        data = (shared_clips / f"{name}.mp4").read_bytes()
        assert can_decode(stream_header(data, name=name), device="gpu")
        frames = decode_rgb(data, name=name, indices=(0, 3, 3, 31, 40))
        clip = raw(data, source=frames.shape[1:3], target=(256, 384), indices=(0, 3, 3, 31, 40))
        reference = fit_rgb(frames, height=256, width=384)
        assert_near(levels(fit([clip]).rgb[0]), reference, mean=2.0, most=80.0)


@needs_dali
def test_clips_of_any_kind_and_size_keep_their_order(fitter, world):
    clip, data = world
    small = textured(50, 64)
    tall = textured(90, 60)
    kinds = [
        raw(small, key="a", source=(50, 64), target=(32, 48)),
        raw(data, key="b", source=(120, 180), target=(32, 48), anchor=(0.5, 0.0)),
        raw(tall, key="c", source=(90, 60), target=(32, 48)),
        raw(textured(32, 90), key="e", source=(32, 90), target=(32, 48)),  # cropped alone
        raw(data, key="d", source=(120, 180), target=(32, 48), depth=clip.depth[list(INDICES)]),
    ]
    fit = fitter(32, 48, max_batch_size=8)
    batch = fit(kinds)
    assert [one is not None for one in batch.labels] == [False, False, False, False, True]
    for i, one in enumerate(kinds):
        alone = fit([one])  # smaller than max_batch_size too
        assert torch.equal(alone.rgb[0], batch.rgb[i])
    assert torch.equal(batch.labels[4], fit([kinds[4]]).labels[0])


@needs_dali
def test_the_number_of_threads_and_earlier_calls_change_nothing(fitter, world):
    _, data = world
    clips = [
        raw(data, key=str(k), source=(120, 180), target=(32, 48), anchor=(0.5, k / 3))
        for k in range(4)
    ]
    first = fitter(32, 48, num_threads=1)(clips).rgb
    fit = fitter(32, 48, num_threads=3)
    fit(clips[::-1])
    assert torch.equal(fit(clips).rgb, first)


@needs_dali
def test_a_batch_is_the_callers_own(fitter):
    one, other = textured(40, 60), 255 - textured(40, 60)
    fit = fitter(32, 48)
    first = fit([raw(one, source=(40, 60), target=(32, 48))]).rgb
    kept = first.clone()
    fit([raw(other, source=(40, 60), target=(32, 48))])
    assert torch.equal(first, kept)


@needs_dali
def test_damaged_clips_are_named_and_the_next_batch_is_whole(fitter, world):
    _, data = world
    good = raw(data, key="good", source=(120, 180), target=(32, 48))
    cut = replace(good, key="cut", rgb=data[: len(data) // 2])
    zero = replace(good, key="zero", rgb=bytes(1000))
    short = replace(good, key="short", indices=(0, 1, 2, 3, 9))
    fit = fitter(32, 48)
    expected = fit([good]).rgb
    with pytest.raises(DamagedClipsError, match=r"^sample 'cut': DALI: [^\n]*$") as caught:
        fit([good, cut])
    assert set(caught.value.reasons) == {"cut"}
    with pytest.raises(DamagedClipsError, match="frame index 9") as caught:
        fit([zero, good, short])
    assert set(caught.value.reasons) == {"zero", "short"}
    assert torch.equal(fit([good]).rgb, expected)


@needs_dali
def test_an_error_that_is_no_clips_fault_is_passed_on(fitter, monkeypatch):
    fit = fitter(32, 48)
    clip = raw(textured(40, 60), source=(40, 60), target=(32, 48))
    whole, calls = DaliFitter._run, []

    def run(self, clips, *, route):
        calls.append(len(clips))
        if len(calls) == 1:
            raise RuntimeError("out of memory")
        return whole(self, clips, route=route)

    monkeypatch.setattr(DaliFitter, "_run", run)
    with pytest.raises(RuntimeError, match="out of memory"):
        fit([clip, clip])
    assert calls == [2, 1, 1]


@needs_dali
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rgb": textured(40, 60, frames=4)}, "'clip': expected 5 frames, got 4"),
        ({"rgb": b"x", "indices": (0, 1)}, "'clip': expected 5 frames, got 2"),
        ({"rgb": b""}, "'clip': expected a video file, got 0 bytes"),
        ({"label_kind": "depth"}, "labels and their kind together, got none of kind 'depth'"),
        (
            {"label_kind": "depth", "labels": np.zeros((4, 40, 60), np.uint16), "rgb": b"x"},
            "labels of 5 frames, got 4",
        ),
        ({"box": CropBox(top=9, left=0, height=32, width=48)}, "a crop within 40x60, got CropBox"),
        ({"box": CropBox(top=0, left=-1, height=32, width=48)}, "a crop within 40x60, got CropBox"),
    ],
)
def test_a_clip_that_contradicts_itself_is_named(fitter, change, message):
    clip = raw(textured(40, 60), source=(40, 60), target=(32, 48))
    whole = replace(clip, key="whole")
    with pytest.raises(DamagedClipsError, match=message) as caught:
        fitter(32, 48)([whole, replace(clip, **change)])
    # The loader replaces these alone.
    assert list(caught.value.reasons) == ["clip"]


@needs_dali
def test_labels_of_another_size_are_named(fitter):
    clip = raw(b"x", source=(40, 60), target=(32, 48), depth=np.zeros((FRAMES, 39, 60), np.uint16))
    # Past the annotations, which are checked under pytest alone.
    object.__setattr__(clip, "rgb", textured(40, 60))
    with pytest.raises(
        DamagedClipsError, match="'clip': expected labels of 40x60 pixels, got 39x60"
    ):
        fitter(32, 48)([clip])


@needs_dali
def test_too_many_clips_are_refused(fitter):
    clip = raw(textured(40, 60), source=(40, 60), target=(32, 48))
    for clips in ([], [clip] * 3):
        with pytest.raises(ValueError, match=f"expected 1 to 2 clips, got {len(clips)}"):
            fitter(32, 48, max_batch_size=2)(clips)


@needs_dali
def test_a_closed_fitter_leaves_no_thread(fitter):
    # The system's: DALI's are none of Python's. The first fitter starts what stays in the process.
    for _ in range(2):
        fit = fitter(32, 48)
        before = len(os.listdir("/proc/self/task"))
        fit([raw(textured(40, 60), source=(40, 60), target=(32, 48))])
        during = len(os.listdir("/proc/self/task"))
        fit.close()
    assert during > before
    deadline = time.monotonic() + 10
    while len(os.listdir("/proc/self/task")) > before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(os.listdir("/proc/self/task")) <= before
    assert not fit._pipelines


@pytest.mark.parametrize(
    ("codec", "cpu", "gpu"),
    [
        ("vp9", True, True),
        ("vp8", True, True),
        ("mjpeg", True, True),
        ("h264", False, True),
        ("hevc", False, True),
        ("av1", False, False),
        ("mpeg4", False, True),
        ("ffv1", False, False),
        ("prores", False, False),
    ],
)
def test_what_dali_decodes_where(codec, cpu, gpu):
    header = StreamHeader(
        codec=codec, pixel_format="yuv420p", height=480, width=720, fps=8.0, is_bt601=True
    )
    assert [can_decode(header, device=device) for device in ("cpu", "gpu")] == [cpu, gpu]
    for change in ({"height": 100}, {"width": 721}, {"pixel_format": "yuv444p"}):
        changed = replace(header, **change)
        assert [can_decode(changed, device=device) for device in ("cpu", "gpu")] == [cpu, False]
    for device in ("cpu", "gpu"):
        assert not can_decode(replace(header, is_bt601=False), device=device)


@pytest.mark.parametrize(
    ("height", "width", "gpu"),
    [
        (144, 4096, True),
        (4096, 144, True),
        (142, 720, False),
        (480, 4098, False),
        (4098, 480, False),
    ],
)
def test_nvdec_has_limits(height, width, gpu):
    header = StreamHeader(
        codec="vp9", pixel_format="yuv420p", height=height, width=width, fps=8.0, is_bt601=True
    )
    assert can_decode(header, device="gpu") == gpu
    assert can_decode(header, device="cpu")


@needs_dali
@pytest.mark.parametrize("codec", ["h264", "vp9"])
def test_what_is_said_to_be_refused_is_refused(fitter, world, codec):
    data = encode_rgb(world[0].rgb, fps=8.0, codec=codec)
    clip = raw(data, source=(120, 180), target=(32, 48))
    if can_decode(stream_header(data, name="x"), device="cpu"):
        assert fitter(32, 48)([clip]).rgb.shape == (1, FRAMES, 3, 32, 48)
    else:
        with pytest.raises(DamagedClipsError, match="sample 'clip'"):
            fitter(32, 48)([clip])


@needs_dali
def test_dali_is_wrong_about_other_colours(fitter, world):
    # Why `can_decode` says no: if this fails, DALI has learned BT.709.
    data = encode_709(world[0].rgb)
    header = stream_header(data, name="x")
    assert header.codec == "vp9" and not can_decode(header, device="cpu")
    ours = fitter(120, 180)([raw(data, source=(120, 180), target=(120, 180))])
    error = np.abs(levels(ours.rgb[0]) - decode_rgb(data, name="x", indices=INDICES))
    assert error.max() > 10


def test_without_dali_the_remedy_is_named(monkeypatch):
    whole = importlib.import_module

    def missing(name, *args):
        if name.startswith("nvidia"):
            raise ModuleNotFoundError("No module named 'nvidia'")
        return whole(name, *args)

    monkeypatch.setattr(importlib, "import_module", missing)
    load_dali.cache_clear()
    with pytest.raises(DataError, match=r"pip install 'udpdiff\[dali\]'"):
        DaliFitter(num_frames=5, height=8, width=8, device="cpu", max_batch_size=1, num_threads=1)
    load_dali.cache_clear()


def test_dali_is_imported_when_it_is_used_and_not_before():
    code = "import sys, data_loaders.dali_pipeline; sys.exit('nvidia.dali' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@needs_dali
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_gpu_is_named(fitter):
    with pytest.raises(DataError, match="expected a CUDA device for device 'gpu', found none"):
        fitter(8, 8, device="gpu")
