import hashlib
import io
import math
import pickle
import tarfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from data_loaders import source_video
from data_loaders.geometry import fit_rgb
from data_loaders.panda_dense.clip_reader import ClipError, read_clip, read_labels, source_facts
from data_loaders.panda_dense.sidecars import ClipSource
from data_loaders.panda_dense.sources import IngestSettings, list_clips
from data_loaders.source_video import TimeSpan, read_at_rate
from tests.data_loaders.panda_dense.tiny_videos import make_video, number_of, numbered

FPS = Fraction(24)
FAST = {"preset": "ultrafast", "bf": "3", "b-adapt": "0"}
KINDS = {
    "mp4": {"options": FAST},
    "open groups": {"options": {**FAST, "x264-params": "open-gop=1:scenecut=0"}},
    "no key frames": {"options": {**FAST, "x264-params": "intra-refresh=1"}},
    "mkv": {"container": "matroska", "options": FAST},
    "ts": {"container": "mpegts", "options": FAST},
    "webm": {
        "container": "webm",
        "codec": "libvpx-vp9",
        "options": {"deadline": "realtime", "cpu-used": "8"},
    },
    "avi": {"container": "avi", "codec": "mpeg4"},
    "late": {"options": FAST, "offset": Fraction(10)},
}


def source(path, **fields):
    return ClipSource(key="k", dataset="d", video_id="v", path=str(path), **fields)


def read(path, *, frames=9, height=32, width=48, member="", reader=read_clip, **fields):
    limits = {
        name: fields.pop(name) for name in ("max_decode_seconds", "max_pixels") & fields.keys()
    }
    clip = source(path, member=member, **fields)
    return reader(clip, num_frames=frames, fps=8.0, height=height, width=width, **limits)


def expected_numbers(*, start, count, fps=FPS):
    """Frames nearest to start + k / 8 among those that begin at or after the start."""
    first = math.ceil((Fraction(start) - Fraction(1, 1000)) * fps)
    times = [Fraction(start) + Fraction(k, 8) for k in range(count)]
    return [max(first, math.floor(time * fps + Fraction(1, 2))) for time in times]


@pytest.fixture(scope="module")
def videos():
    """Ten seconds of numbered frames in every container, key frames 2 s apart."""
    return {
        kind: make_video((numbered(i) for i in range(240)), fps=FPS, **options)
        for kind, options in KINDS.items()
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("start", ["0", "0.5", "1.999", "2", "2.001", "4.99", "8.042", "8.8"])
def test_parts_are_exact_by_time(videos, kind, start):
    span = TimeSpan(start=float(start), end=float(start) + 1.2)
    data = io.BytesIO(videos[kind])
    video = read_at_rate(data, fps=8.0, num_frames=9, prepare=lambda f: f, span=span, name=kind)
    assert [number_of(frame) for frame in video.rgb] == expected_numbers(start=start, count=9)
    assert video.source_indices[0] == 0


def test_the_cost_does_not_grow_with_the_position(tmp_path, monkeypatch):
    path = tmp_path / "a.mp4"
    path.write_bytes(make_video((numbered(i) for i in range(960)), options=FAST, key_every=24))
    decoded = []
    real = source_video.decode_frames

    def counted(*arguments, **options):
        for frame in real(*arguments, **options):
            decoded[-1] += 1
            yield frame

    monkeypatch.setattr(source_video, "decode_frames", counted)
    for start in (1.5, 20.5, 38.5):
        decoded.append(0)
        assert number_of(read(path, start=start, end=start + 1.2).rgb[0]) == start * 24
    assert max(decoded) < 75  # 26 of the clip, and of the groups before it


def test_frames_of_the_shots_around_are_left_out(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(make_video((numbered(i) for i in range(96)), fps=Fraction(30000, 1001)))
    # Frame 30 begins at 1.001 s, frame 60 at 2.002 s; lists round to milliseconds, either way.
    for start, end in ((1.001, 2.002), (1.0015, 2.0025), (1.0005, 2.0015)):
        numbers = [number_of(frame) for frame in read(path, frames=8, start=start, end=end).rgb]
        assert numbers[0] == 30 and numbers[-1] <= 59
    # A start between two frames takes the later one: the earlier may be of the shot before.
    assert number_of(read(path, frames=2, start=1.01, end=2.0).rgb[0]) == 31


def test_whole_files_and_cut_files_are_read_from_their_beginning(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(make_video((numbered(i) for i in range(30)), options=FAST))
    whole = read(path)
    assert [number_of(frame) for frame in whole.rgb] == expected_numbers(start=0, count=9)
    # Where in the source video it was does not matter.
    cut = read(path, is_cut=True, start=100.0, end=200.0)
    np.testing.assert_array_equal(cut.rgb, whole.rgb)


def test_cover_and_centre_crop(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(make_video((numbered(i, width=96) for i in range(30)), options=FAST))
    own = read(path, frames=3, height=None, width=None)
    assert own.rgb.shape == (3, 32, 96, 3)
    fitted = read(path, frames=3, height=48, width=48)
    np.testing.assert_array_equal(fitted.rgb, fit_rgb(own.rgb, height=48, width=48))


def test_members_of_tars_are_read_in_place(tmp_path, videos):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name, content in (
            ("x.mp4", b"other"), ("sub/clip.json", b"{}"), ("sub/clip.webm", videos["webm"]),
            ("y.mp4", videos["late"]),
        ):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    before = sorted(tmp_path.iterdir())
    got = read(path, member="sub/clip", start=5.0, end=6.5)
    assert [number_of(frame) for frame in got.rgb] == expected_numbers(start=5, count=9)
    facts = source_facts(source(path, member="sub/clip"))
    assert facts.sha256 == hashlib.sha256(videos["webm"]).hexdigest()
    assert facts.num_bytes == len(videos["webm"]) and facts.fps == 24.0
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(ClipError, match="expected a video of 'gone', found none"):
        read(path, member="gone")
    with pytest.raises(ClipError, match="unreadable"):
        read(path, member="x")


def test_facts_of_a_file(tmp_path, videos):
    path = tmp_path / "a.mp4"
    path.write_bytes(videos["mp4"])
    facts = source_facts(source(path, start=3.0, end=4.0))
    assert (facts.height, facts.width, facts.fps) == (32, 48, 24.0)
    assert (facts.num_frames, facts.seconds) == (240, 10.0)
    assert facts.sha256 == hashlib.sha256(videos["mp4"]).hexdigest()
    assert source_facts(source(path), with_sha256=False).sha256 == ""
    path.write_bytes(videos["late"])  # another file of that name: no old checksum
    assert source_facts(source(path)).sha256 == hashlib.sha256(videos["late"]).hexdigest()


def damaged(path, videos):
    path.write_bytes(b"no video" * 99)
    return {}


def empty(path, videos):
    path.write_bytes(b"")
    return {}


def sound(path, videos):
    import av

    with av.open(str(path), "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate = 8000
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return {}


def short(path, videos):
    path.write_bytes(videos["mp4"])
    return {"frames": 90}


def short_part(path, videos):
    path.write_bytes(videos["mp4"])
    return {"start": 1.0, "end": 1.9}


def behind_the_end(path, videos):
    path.write_bytes(videos["mp4"])
    return {"start": 100.0, "end": 110.0}


def large(path, videos):
    path.write_bytes(videos["mp4"])
    return {"max_pixels": 32 * 48 - 1}


def sparse(path, videos):
    path.write_bytes(make_video((numbered(i) for i in range(240)), options=FAST, key_every=999))
    return {"start": 8.0, "end": 9.9, "max_decode_seconds": 5.0}


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path, videos: {}, "missing video"),
        (damaged, "unreadable"),
        (empty, "unreadable"),
        (sound, "no video stream"),
        (short, "too short"),
        (short_part, "too short"),
        (behind_the_end, "too short"),
        (large, "absurd size"),
        (sparse, "sparse key frames"),
    ],
)
def test_reasons(tmp_path, videos, make, reason):
    path = tmp_path / "a.mp4"
    options = make(path, videos)
    with pytest.raises(ClipError) as caught:
        read(path, **options)
    assert caught.value.reason == reason
    assert "a.mp4" in caught.value.detail
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.reason, again.detail) == (caught.value.reason, caught.value.detail)


def test_a_clip_without_a_path_is_missing():
    with pytest.raises(ClipError, match="missing video"):
        read("")


def test_half_a_size_is_a_fault_of_the_caller(tmp_path):
    with pytest.raises(ValueError, match="expected height and width, or neither"):
        read(tmp_path / "a.mp4", width=None)


def test_labels_of_our_shards_lie_on_the_frames_that_were_read(tmp_path):
    from data_loaders.shards import write_shards
    from data_loaders.synthetic import WorldConfig, make_clip

    world = WorldConfig(frames=9, height=32, width=48, world="simple")
    sample = make_clip(0, seed=0, config=world)
    write_shards([sample], tmp_path / "shards")
    (clip,) = list_clips(IngestSettings(videos=str(tmp_path / "shards")))
    every_other = read_clip(clip, num_frames=5, fps=sample.fps / 2, height=None, width=None)
    assert every_other.source_indices == (0, 2, 4, 6, 8)
    np.testing.assert_array_equal(every_other.rgb, sample.rgb[::2])
    for name in ("entity_ids", "depth"):
        labels = read_labels(clip, name, video=every_other)
        np.testing.assert_array_equal(labels, getattr(sample, name)[::2])
    Path(clip.path).write_bytes(b"")
    with pytest.raises(ClipError, match="unreadable"):
        read_labels(clip, "depth", video=every_other)
