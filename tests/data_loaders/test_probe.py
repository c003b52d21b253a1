import io
from fractions import Fraction

import av
import numpy as np
import pytest

from data_loaders.decode import decode_rgb, encode_rgb
from data_loaders.probe import probe, stream_header
from data_loaders.schema import DataError

NTSC = 30000 / 1001


def ramp(frames=12):
    levels = np.arange(frames, dtype=np.uint8)[:, None, None, None] * 8
    return np.broadcast_to(levels, (frames, 32, 48, 3)).copy()


def check(data, **record):
    facts = {"record_frames": 12, "record_fps": 8.0, "height": 32, "width": 48}
    return probe(data, name="shard a.tar: clip", **(facts | record))


def encode_at(ticks):
    """H.264 with a time stamp, in milliseconds, per frame."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=8)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for array, tick in zip(ramp(len(ticks)), ticks, strict=True):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return buffer.getvalue()


@pytest.mark.parametrize("codec", ["h264", "vp9", "ffv1"])
def test_the_codec_is_named(codec):
    data = encode_rgb(ramp(2), fps=8.0, codec=codec)
    header = stream_header(data, name="x")
    assert header.codec == codec
    assert (header.height, header.width, header.fps) == (32, 48, 8.0)
    assert header.is_bt601


def test_an_unknown_codec_is_no_sound_clip():
    data = encode_rgb(ramp(2), fps=8.0, codec="ffv1").replace(b"V_FFV1", b"V_XXXX")
    with pytest.raises(DataError, match=r"^x: expected a codec that libav knows"):
        stream_header(data, name="x")
    with pytest.raises(DataError, match=r"^x: expected a codec that libav knows"):
        decode_rgb(data, name="x")


def test_a_title_in_another_encoding_is_no_fault():
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as output:
        output.metadata["title"] = "caption"
        stream = output.add_stream("ffv1", rate=8)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "bgr0"
        output.mux(stream.encode(av.VideoFrame.from_ndarray(ramp(1)[0], format="rgb24")))
        output.mux(stream.encode(None))
    data = buffer.getvalue().replace(b"caption", b"capti\xf6n")
    assert data != buffer.getvalue()
    check(data, record_frames=1)
    assert decode_rgb(data, name="x").shape == (1, 32, 48, 3)


@pytest.mark.parametrize("codec", ["h264", "vp9", "ffv1"])
@pytest.mark.parametrize("fps", [8.0, 24000 / 1001, 24.0, NTSC, 30.0])
@pytest.mark.parametrize("frames", [1, 2, 12])
def test_what_we_write_is_sound(codec, fps, frames):
    data = encode_rgb(ramp(frames), fps=fps, codec=codec)
    check(data, record_frames=frames, record_fps=fps)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"height": 64}, r"expected the record's 64x48 pixels, got 32x48"),
        ({"record_frames": 13}, r"expected the record's 13 frames, got 12: cut short"),
        ({"record_fps": 24.0}, r"the record's 24 frames per second, got 8 in the header"),
        ({"record_fps": 8.2}, r"the record's 8.2 frames per second, got 8 in the header"),
    ],
)
def test_what_the_record_gets_wrong_is_named(record, message):
    with pytest.raises(DataError, match=rf"shard a\.tar: clip: .*{message}"):
        check(encode_rgb(ramp(), fps=8.0, codec="vp9"), **record)


@pytest.mark.parametrize(
    ("codec", "message"),
    [("vp9", "12 frames, got [0-9]+: cut short"), ("h264", "cannot be read as video")],
)
def test_a_file_cut_short_is_found(codec, message):
    noise = np.random.default_rng(0).integers(0, 256, (12, 32, 48, 3), dtype=np.uint8)
    data = encode_rgb(noise, fps=8.0, codec=codec)
    with pytest.raises(DataError, match=message):
        check(data[: len(data) // 2])


def test_what_is_no_video_is_named():
    for data in (bytes(1000), b"", b"no video at all" * 50):
        with pytest.raises(DataError, match="clip: cannot be read as video"):
            check(data)


def test_a_variable_rate_is_found():
    steady = [125 * k for k in range(12)]
    assert check(encode_at(steady)).codec == "h264"
    # One frame 60 ms late, the mean rate as before.
    late = [*steady[:5], steady[5] + 60, *steady[6:]]
    with pytest.raises(DataError, match=r"frame 5 at 0\.625 s .* got 0\.685 s by its time stamp"):
        check(encode_at(late))
