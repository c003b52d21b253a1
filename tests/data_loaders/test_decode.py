import io
import subprocess
import sys
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest

from data_loaders import decode as decode_module
from data_loaders.decode import (
    decode_as_vbench,
    decode_frames,
    decode_labels,
    decode_rgb,
    encode_labels,
    encode_rgb,
    frame_to_rgb,
    video_facts,
)
from data_loaders.order import frame_indices
from data_loaders.schema import DataError
from data_loaders.source_video import pick_by_time, read_at_rate


def smooth_video(*, frames=6, height=48, width=64):
    """Slow colour gradients: what a lossy codec keeps well."""
    t, y, x = np.mgrid[:frames, :height, :width]
    channels = (x * 3 + t * 2, y * 4 + 20, 200 - x - y + t)
    return np.stack(channels, axis=-1).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("largest", [1, 255, 256, 65535])
def test_labels_are_exact(largest):
    labels = np.random.default_rng(0).integers(0, largest + 1, (5, 33, 47)).astype(np.uint16)
    labels[0, 0, 0] = largest
    decoded = decode_labels(encode_labels(labels, fps=8.0), name="x")
    assert decoded.dtype == np.uint16
    np.testing.assert_array_equal(decoded, labels)


def test_ids_below_256_take_the_small_format():
    labels = np.random.default_rng(0).integers(0, 256, (5, 32, 48)).astype(np.uint16)
    assert len(encode_labels(labels, fps=8.0)) < 0.6 * len(encode_labels(labels * 200, fps=8.0))


def test_ffv1_rgb_is_exact_at_an_odd_size():
    rgb = np.random.default_rng(0).integers(0, 256, (4, 33, 47, 3), dtype=np.uint8)
    decoded = decode_rgb(encode_rgb(rgb, fps=8.0, codec="ffv1"), name="x")
    np.testing.assert_array_equal(decoded, rgb)


@pytest.mark.parametrize("codec", ["h264", "vp9"])
def test_lossy_rgb_is_near_and_not_darker(codec):
    rgb = smooth_video()
    decoded = decode_rgb(encode_rgb(rgb, fps=8.0, codec=codec), name="x")
    error = decoded.astype(float) - rgb
    assert np.abs(error).mean() < 3.0
    # swscale's default conversion from 4:2:0 is darker by one level on the mean.
    assert abs(error.mean()) < 0.5


def test_equal_input_gives_equal_bytes():
    rgb = smooth_video()
    for codec in ("h264", "vp9", "ffv1"):
        assert encode_rgb(rgb, fps=8.0, codec=codec) == encode_rgb(rgb, fps=8.0, codec=codec)


_ENCODE = """
import hashlib
import numpy as np
from data_loaders.decode import encode_preview, encode_rgb
t, y, x = np.mgrid[:40, :120, :176]
rng = np.random.default_rng(0)
noise = rng.integers(0, 60, (40, 120, 176))
waves = [100 + 60 * np.sin((x + 5 * t) / (7 + c)) * np.cos((y - 3 * t) / (9 + c)) for c in range(3)]
rgb = (np.stack(waves, axis=-1) + noise[..., None]).clip(0, 255).astype(np.uint8)
for data in (encode_rgb(rgb, fps=8.0, codec="h264"), encode_preview(rgb, fps=8.0)):
    print(hashlib.sha256(data).hexdigest())
"""


def test_h264_does_not_depend_on_what_lay_in_memory(user_env):
    # glibc fills what it hands out with this byte. libx264's macroblock tree gives three different
    # files here on a processor with AVX-512.
    made = {
        subprocess.run(
            [sys.executable, "-c", _ENCODE],
            env=user_env | {"MALLOC_PERTURB_": fill},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for fill in ("1", "127", "255")
    }
    assert len(made) == 1


def test_odd_sizes_are_refused_where_colour_is_halved():
    rgb = np.zeros((1, 33, 48, 3), np.uint8)
    with pytest.raises(DataError, match="h264: expected an even height and width, got 33x48"):
        encode_rgb(rgb, fps=8.0, codec="h264")


def test_indices_choose_and_repeat_frames():
    labels = np.arange(7, dtype=np.uint16)[:, None, None] * np.ones((1, 16, 16), np.uint16)
    data = encode_labels(labels, fps=8.0)
    assert decode_labels(data, name="x", indices=[0, 2, 2, 6])[:, 0, 0].tolist() == [0, 2, 2, 6]
    with pytest.raises(DataError, match=r"clip\.mkv: expected 8 frame\(s\), decoded 7"):
        decode_labels(data, name="clip.mkv", indices=[7])


@pytest.mark.parametrize("decode", [decode_rgb, decode_labels])
def test_frames_that_change_size_are_named(monkeypatch, decode):
    sizes = [(8, 8), (8, 8), (16, 8)]
    frames = [av.VideoFrame.from_ndarray(np.zeros(size, np.uint8), "gray") for size in sizes]
    monkeypatch.setattr(decode_module, "decode_frames", lambda *_, **__: iter(frames))
    with pytest.raises(DataError, match=r"^x: expected frames of one size, got {'8x8': 2, '16x8'"):
        decode(b"", name="x")
    assert len(decode(b"", name="x", indices=[0, 1, 1])) == 3


def test_a_frame_that_cannot_be_converted_is_named(monkeypatch):
    frame = av.VideoFrame(8, 8, "gray")
    monkeypatch.setattr(decode_module, "decode_frames", lambda *_, **__: iter([frame]))

    def refuse(_):
        raise ValueError("no such conversion")

    monkeypatch.setattr(decode_module, "frame_to_rgb", refuse)
    with pytest.raises(DataError, match=r"^x: a frame cannot be converted: no such"):
        decode_rgb(b"", name="x")


def test_what_is_no_video_is_named():
    with pytest.raises(DataError, match=r"clip\.mp4: cannot be decoded as video"):
        decode_rgb(b"no video at all" * 50, name="clip.mp4")


def test_a_colour_video_is_no_label_map():
    data = encode_rgb(smooth_video(), fps=8.0, codec="ffv1")
    with pytest.raises(DataError, match="expected gray or gray16le, got bgr0"):
        decode_labels(data, name="x")


@pytest.mark.parametrize(
    ("source_fps", "expected"),
    [
        (8.0, [0, 1, 2, 3, 4]),
        (24.0, [0, 3, 6, 9, 12]),
        (30.0, [0, 4, 8, 11, 15]),  # 3.75 frames apart; halves go up
        (24000 / 1001, [0, 3, 6, 9, 12]),
        (30000 / 1001, [0, 4, 7, 11, 15]),  # 2 / 8 s is frame 7.49
        (4.0, [0, 1, 1, 2, 2]),
    ],
)
def test_frames_are_picked_by_time(source_fps, expected):
    timed = ((i / source_fps, i) for i in range(100))
    picked = list(pick_by_time(timed, fps=8.0, num_frames=5, last_duration=1 / source_fps))
    assert picked == expected


def test_variable_rates_follow_the_time_stamps():
    times = [0.0, 0.1, 0.5, 0.55, 1.0]
    timed = zip(times, range(5), strict=True)
    # Targets 0, .25, .5, .75, 1: .25 is nearer to .1 than to .5, .75 nearer to .55 than to 1.
    assert list(pick_by_time(timed, fps=4.0, num_frames=5, last_duration=0.1)) == [0, 1, 2, 3, 4]


def test_a_short_video_ends_where_it_ends():
    timed = ((i / 8.0, i) for i in range(3))
    assert list(pick_by_time(timed, fps=8.0, num_frames=9, last_duration=1 / 8)) == [0, 1, 2]
    assert list(pick_by_time(iter([]), fps=8.0, num_frames=9, last_duration=1 / 8)) == []


def test_a_file_is_read_at_the_rate_asked_for(tmp_path):
    values = np.arange(30) * 8
    rgb = np.broadcast_to(values[:, None, None, None], (30, 32, 48, 3)).astype(np.uint8)
    path = tmp_path / "a.mkv"
    path.write_bytes(encode_rgb(rgb, fps=30000 / 1001, codec="ffv1"))
    video = read_at_rate(path, fps=8.0, num_frames=9, prepare=lambda frames: frames)
    assert video.source_indices == (0, 4, 7, 11, 15, 19, 22, 26)
    assert video.rgb[:, 0, 0, 0].tolist() == [values[i] for i in video.source_indices]
    assert video.source_fps == pytest.approx(30000 / 1001, rel=1e-4)


def timed_file(path, times, *, unit):
    """A lossless H.264 file whose frame k is a gray of level 4 k, shown at times[k] units."""
    with av.open(str(path), "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=30, options={"qp": "0"})
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        stream.codec_context.time_base = unit
        for k, time in enumerate(times):
            array = np.full((32, 48, 3), 4 * k, np.uint8)
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            frame.pts, frame.time_base = time, unit
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


def levels_of(video):
    """The frame numbers that the pixels of a `timed_file` show."""
    return np.rint(video.rgb.mean(axis=(1, 2, 3)) / 4).astype(int).tolist()


def nearest_frames(seconds, *, fps, last):
    """By definition: for each k / fps the frame with the nearest time, the later one of two."""
    picked = []
    for k in range(1000):
        target = k / Fraction(fps)
        if target >= seconds[-1] + last / 2:
            return picked
        picked.append(min(range(len(seconds)), key=lambda i: (abs(seconds[i] - target), -i)))
    raise AssertionError("a video without an end")


@pytest.mark.parametrize("rate", [(30, 1), (24000, 1001), (30000, 1001), (8, 1), (50, 1)])
@pytest.mark.parametrize("start", [0, 7])
def test_files_of_constant_rate_are_picked_exactly(tmp_path, rate, start):
    unit = Fraction(rate[1], rate[0])
    timed_file(tmp_path / "a.mp4", [start + k for k in range(61)], unit=unit)
    video = read_at_rate(tmp_path / "a.mp4", fps=8.0, num_frames=99, prepare=lambda f: f)
    expected = nearest_frames([k * unit for k in range(61)], fps=8, last=unit)
    assert list(video.source_indices) == expected
    assert levels_of(video) == expected
    # What the loader would pick from the same frames by their rate alone.
    loader = frame_indices(
        num_frames=len(expected), fps=8.0, source_frames=61, source_fps=float(1 / unit)
    )
    assert loader == expected


def test_a_file_of_variable_rate_is_picked_exactly(tmp_path):
    # 30 per second, then 10, then 60, a pause, and single steps that make halves of 1 / 8.
    steps = [20] * 10 + [60] * 6 + [10] * 12 + [300] + [75, 75, 150, 20, 20]
    times = np.cumsum([40, *steps]).tolist()
    timed_file(tmp_path / "a.mp4", times, unit=Fraction(1, 600))
    video = read_at_rate(tmp_path / "a.mp4", fps=8.0, num_frames=99, prepare=lambda f: f)
    seconds = [Fraction(time - times[0], 600) for time in times]
    assert len(set(steps)) > 5
    whole = nearest_frames(seconds, fps=8, last=Fraction(0))
    picked = list(video.source_indices)
    assert picked[: len(whole)] == whole
    # How long the last frame lasts the file does not say: one mean frame is taken.
    assert set(picked[len(whole) :]) <= {len(times) - 1}
    assert levels_of(video) == picked


def test_halves_go_to_the_later_frame():
    # 0.25 s lies halfway between frames 7 and 8 of 30 per second, exactly in fractions alone.
    timed = ((Fraction(k, 30), k) for k in range(61))
    picked = list(pick_by_time(timed, fps=8.0, num_frames=17, last_duration=Fraction(1, 30)))
    assert picked[2::4] == [8, 23, 38, 53]


def test_a_rotated_video_is_turned_as_players_do(tmp_path):
    rgb = np.zeros((2, 32, 64, 3), np.uint8)
    rgb[:, :, :32] = 255  # left half white
    path = tmp_path / "a.mp4"
    data = bytearray(encode_rgb(rgb, fps=8.0, codec="h264"))
    # Track header, version 0: the 3x3 matrix starts 40 bytes after the header's version field.
    matrix = data.index(b"tkhd") + 4 + 40
    one = (1 << 16).to_bytes(4, "big")
    minus = (-(1 << 16)).to_bytes(4, "big", signed=True)
    nought = bytes(4)
    # Quarter turn clockwise, as phones write it: x' = -y, y' = x.
    data[matrix : matrix + 16] = nought + one + nought + minus
    data[matrix + 16 : matrix + 20] = nought
    path.write_bytes(bytes(data))
    video = read_at_rate(path, fps=8.0, num_frames=1, prepare=lambda frames: frames)
    assert video.rgb.shape == (1, 64, 32, 3)
    assert video.rgb[0, :24].min() > 200  # the left half is now on top
    assert video.rgb[0, 40:].max() < 50


def test_facts_of_a_file(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(encode_rgb(smooth_video(), fps=24000 / 1001, codec="h264"))
    facts = video_facts(path)
    assert (facts.height, facts.width) == (48, 64)
    assert facts.fps == pytest.approx(24000 / 1001)
    with pytest.raises(DataError, match="cannot be opened as video"):
        video_facts(tmp_path / "missing.mp4")


def test_a_file_without_video_is_named(tmp_path):
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="wav") as output:
        stream = output.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        frame.sample_rate = 8000
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    with pytest.raises(DataError, match="expected a video stream, found none"):
        list(decode_frames(buffer.getvalue(), name="x"))


@pytest.mark.shared
def test_real_clips_decode_in_their_own_colour_space(shared_clips):
    # coffee.mp4 says BT.709: read as BT.601 its blue cup comes out more than 5 levels off.
    path = shared_clips / "coffee.mp4"
    frame = next(iter(decode_frames(path, name="coffee")))
    ours = frame_to_rgb(frame).astype(float)
    wrong = frame.reformat(format="rgb24", src_colorspace="ITU601").to_ndarray().astype(float)
    right = frame.reformat(format="rgb24", src_colorspace="ITU709").to_ndarray().astype(float)
    assert np.abs(ours - right).mean() < 2.0
    assert np.abs(ours - wrong).max() > 5.0


def decode_by_opencv(path, *, most=1000):
    """As VBench's motion smoothness reads a video; `most` frames of it."""
    video, frames = cv2.VideoCapture(str(path)), []
    while len(frames) < most:
        is_there, frame = video.read()
        if not is_there:
            break
        frames.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
    return np.stack(frames)


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv422p", "yuv444p", "yuvj420p"])
@pytest.mark.parametrize("colorspace", [None, 1, 6], ids=["untagged", "bt709", "bt601"])
def test_vbench_decoding_is_that_of_opencv(tmp_path, pixel_format, colorspace):
    noise = np.random.default_rng(0).integers(0, 256, (5, 46, 70, 3), dtype=np.uint8)
    path = tmp_path / "noise.mp4"
    with av.open(path, "w") as output:
        stream = output.add_stream("libx264", rate=8, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 70, 46, pixel_format
        if colorspace:
            stream.codec_context.colorspace = colorspace
        for frame in noise:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode(None))
    expected = decode_by_opencv(path)
    np.testing.assert_array_equal(decode_as_vbench(path, name="x"), expected)
    np.testing.assert_array_equal(decode_as_vbench(path.read_bytes(), name="x"), expected)
    np.testing.assert_array_equal(
        decode_as_vbench(path, name="x", indices=[3, 1, 3]), expected[[3, 1, 3]]
    )


def test_vbench_decoding_is_not_ours(tmp_path):
    # Why there are two: ours is nearer to what was encoded, VBench's numbers come from the other.
    rgb = smooth_video()
    data = encode_rgb(rgb, fps=8.0, codec="h264")
    ours, as_vbench = (
        decode(data, name="x").astype(int) for decode in (decode_rgb, decode_as_vbench)
    )
    assert 0 < np.abs(ours - as_vbench).max() <= 6
    assert np.abs(ours - rgb).mean() < np.abs(as_vbench - rgb).mean()
    with pytest.raises(DataError, match="x: cannot be decoded as video"):
        decode_as_vbench(b"nothing", name="x")


@pytest.mark.shared
def test_real_clips_decode_as_in_opencv(shared_clips):
    for path in sorted(shared_clips.glob("*.mp4")):
        found = decode_as_vbench(path, name=path.name, indices=range(8))
        np.testing.assert_array_equal(found, decode_by_opencv(path, most=8), err_msg=path.name)
