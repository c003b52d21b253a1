import json
import logging

import cv2
import numpy as np
import pytest

from data_loaders import ingest
from data_loaders.classical_segmentation import merge_alike, segment_clip
from data_loaders.decode import encode_rgb
from data_loaders.schema import validate_sample
from data_loaders.shards import ShardIndex


def moving_disc(*, frames=9, height=64, width=96, speed=3, texture=10):
    """A textured red disc on textured green, and its mask."""
    rng = np.random.default_rng(0)
    noise = cv2.GaussianBlur(rng.normal(0, 60, (height, 3 * width)), (0, 0), 2)
    y, x = np.mgrid[:height, :width]
    rgb, masks = [], []
    for t in range(frames):
        inside = (y - height / 2) ** 2 + (x - width / 3 - speed * t) ** 2 < (height / 4) ** 2
        moved = noise[:, width - speed * t : 2 * width - speed * t] * texture / 10
        back = noise[:, :width] * texture / 10
        picture = np.stack([np.where(inside, 200, 40), np.where(inside, 40, 150)], axis=-1)
        picture = np.concatenate([picture, np.full((height, width, 1), 60)], axis=-1)
        picture = picture + np.where(inside, moved, back)[..., None]
        rgb.append(picture.clip(0, 255).astype(np.uint8))
        masks.append(inside)
    return np.stack(rgb), np.stack(masks)


@pytest.fixture
def videos(tmp_path):
    folder = tmp_path / "videos"
    (folder / "sub").mkdir(parents=True)
    for i, name in enumerate(("a.mp4", "b c.mp4", "sub/a.mp4")):
        rgb, _ = moving_disc(speed=i)
        (folder / name).write_bytes(encode_rgb(rgb, fps=8.0, codec="h264"))
    return folder


def captions_of(folder, *, names=("a.mp4", "b c.mp4", "sub/a.mp4"), extra=()):
    path = folder.parent / "captions.jsonl"
    lines = [json.dumps({"path": f"videos/{name}", "caption": f"of {name}"}) for name in names]
    path.write_text("\n".join([*lines, *extra]) + "\n")
    return path


def run(videos, captions, *options, segmentation="none"):
    arguments = [str(videos), str(videos.parent / "out"), "--captions", str(captions)]
    fixed = ["--segmentation", segmentation, "--frames", "9", "--size", "64x96"]
    return ingest.main([*arguments, *fixed, *options])


def test_a_folder_becomes_shards(videos, capsys):
    assert run(videos, captions_of(videos), segmentation="classical") == 0
    assert "3 clips in 1 shard(s)" in capsys.readouterr().out
    index = ShardIndex.open(videos.parent / "out")
    samples = [index.read(i) for i in range(3)]
    keys = [sample.key for sample in samples]
    assert keys == ["a", "b_c", "sub_a"]
    for sample in samples:
        validate_sample(sample)
        assert sample.rgb.shape == (9, 64, 96, 3)
        assert sample.depth is None
        assert sample.meta.segmentation_backend == "classical"
        assert sample.meta.num_entities == len(np.unique(sample.entity_ids[sample.entity_ids > 0]))
    assert samples[1].caption_short == samples[1].caption_long == "of b c.mp4"


def test_both_captions_and_paths_relative_to_the_videos(videos):
    lines = [
        json.dumps({"path": name, "caption_short": "short", "caption_long": "long"})
        for name in ("a.mp4", "b c.mp4", "sub/a.mp4")
    ]
    captions = captions_of(videos, names=(), extra=lines)
    assert run(videos, captions) == 0
    sample = ShardIndex.open(videos.parent / "out").read(0)
    assert (sample.caption_short, sample.caption_long) == ("short", "long")
    assert sample.entity_ids is None and sample.meta.segmentation_backend == ""


def refused(videos, captions, capsys, *options):
    assert run(videos, captions, *options) == 1
    assert not (videos.parent / "out").exists()
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 4: expected JSON"),
        ("[1]", "line 4: expected an object, got list"),
        ('{"path": "videos/x.mp4"}', "line 4: caption_short or caption: expected text, got None"),
        ('{"path": "videos/x.mp4", "caption": " "}', "line 4: caption_short or caption: expected"),
        ('{"caption": "x"}', "line 4: path: expected text, got None"),
        ('{"path": "a.mp4", "caption": "x"}', "line 4: 'a.mp4' has captions on an earlier line"),
    ],
)
def test_faulty_captions_are_named_before_anything_is_written(videos, capsys, line, message):
    error = refused(videos, captions_of(videos, extra=[line]), capsys)
    assert "captions.jsonl" in error and message in error


def test_videos_without_captions_are_named(videos, capsys):
    error = refused(videos, captions_of(videos, names=("a.mp4",)), capsys)
    assert "2 video(s) without captions" in error
    assert "b c.mp4" in error and "sub/a.mp4" in error


def test_captions_without_video_are_counted(videos, caplog):
    extra = [json.dumps({"path": "videos/gone.mp4", "caption": "x"})]
    with caplog.at_level(logging.WARNING):
        assert run(videos, captions_of(videos, extra=extra)) == 0
    assert "captions of 1 video(s) that are not in" in caplog.text
    assert "gone.mp4" in caplog.text


def test_unreadable_videos_are_named_or_left_out(videos, capsys, caplog):
    (videos / "b c.mp4").write_bytes(b"not a video" * 100)
    captions = captions_of(videos)
    error = refused(videos, captions, capsys)
    assert "1 video(s) that cannot be read (--skip-bad leaves them out)" in error
    assert "b c.mp4" in error
    with caplog.at_level(logging.WARNING):
        assert run(videos, captions, "--skip-bad") == 0
    assert "left out 1 video(s)" in caplog.text
    assert len(ShardIndex.open(videos.parent / "out")) == 2


@pytest.mark.parametrize("option", [["--depth"], ["--depth", "midas"]])
def test_depth_is_refused(videos, capsys, option):
    error = refused(videos, captions_of(videos), capsys, *option)
    assert "depth needs a depth model" in error and "data.tasks=[segmentation]" in error


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--frames", "10"], "expected 4k + 1 frames"),
        (["--size", "64"], "expected HEIGHTxWIDTH"),
        (["--size", "64x90"], "expected multiples of 16, got '64x90'"),
        (["--fps", "0"], r"expected frames per second in"),
    ],
)
def test_impossible_formats_are_refused(videos, capsys, option, message):
    with pytest.raises(SystemExit):
        run(videos, captions_of(videos), *option)
    assert message in capsys.readouterr().err


def test_missing_folders_and_files_are_named(tmp_path, videos, capsys):
    captions = captions_of(videos)
    assert run(tmp_path / "missing", captions) == 1
    assert "VIDEOS" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "empty", captions) == 1
    assert "expected videos (.mp4" in capsys.readouterr().err
    assert run(videos, tmp_path / "missing.jsonl") == 1
    assert "missing.jsonl: cannot be read" in capsys.readouterr().err


def test_an_existing_data_set_is_kept_unless_asked(videos, capsys):
    captions = captions_of(videos)
    assert run(videos, captions) == 0
    assert run(videos, captions) == 1
    assert "found a data set" in capsys.readouterr().err
    assert run(videos, captions, "--overwrite") == 0


def test_names_that_collide_stay_apart():
    from pathlib import Path

    from data_loaders.ingest_sources import _keys

    keys = _keys([Path("a b.mp4"), Path("a_b.mp4"), Path("c.mov")])
    assert len(set(keys)) == 3 and keys[2] == "c"
    assert all(key.startswith("a_b-") for key in keys[:2])


def test_short_videos_are_kept_short_and_named(videos, caplog):
    with caplog.at_level(logging.WARNING):
        assert run(videos, captions_of(videos), "--frames", "13") == 0
    assert "a.mp4: 9 of 13 frames" in caplog.text
    assert len(ShardIndex.open(videos.parent / "out").read(0).rgb) == 9


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def test_classical_ids_follow_the_disc():
    rgb, mask = moving_disc(height=120, width=180, speed=4)
    ids = segment_clip(rgb)
    assert ids.shape == mask.shape and ids.dtype == np.uint16
    disc = np.bincount(ids[0][mask[0]]).argmax()
    assert disc > 0
    for t, least in ((0, 0.8), (4, 0.65), (8, 0.55)):
        assert iou(ids[t] == disc, mask[t]) > least, t
    # Standing still would not do.
    assert iou(mask[0], mask[8]) < 0.35


def test_what_comes_into_the_picture_is_labelled():
    rng = np.random.default_rng(0)
    wide = cv2.GaussianBlur(rng.integers(0, 256, (120, 500, 3), dtype=np.uint8), (0, 0), 2)
    wide[:, 250:, 0] //= 4
    pan = np.stack([wide[:, 12 * t : 12 * t + 180] for t in range(12)])
    ids = segment_clip(pan)
    assert (ids == 0).mean(axis=(1, 2)).max() < 0.1


def test_a_plain_picture_is_one_region():
    ids = segment_clip(np.full((3, 64, 96, 3), 90, np.uint8))
    assert set(np.unique(ids)) == {1}


def test_neighbours_of_like_colour_are_merged_in_chains():
    frame = np.zeros((30, 40, 3), np.uint8)
    for i, level in enumerate((100, 108, 116, 200)):  # 8 levels of gray are about 3 in L
        frame[:, 10 * i : 10 * i + 10] = level
    regions = np.repeat(np.arange(1, 5, dtype=np.int32), 10)[None].repeat(30, axis=0)
    merged = merge_alike(regions, frame=frame, distance=9.0)
    assert merged[0, [0, 10, 20]].tolist() == [merged[0, 0]] * 3
    assert merged[0, 30] != merged[0, 0]
    assert len(np.unique(merge_alike(regions, frame=frame, distance=1.0))) == 4


@pytest.mark.shared
def test_real_clips_are_ingested(tmp_path, shared_clips):
    out = tmp_path / "out"
    captions = shared_clips.parent / "captions.jsonl"
    options = ["--segmentation", "classical", "--frames", "5", "--size", "64x96"]
    assert ingest.main([str(shared_clips), str(out), "--captions", str(captions), *options]) == 0
    index = ShardIndex.open(out)
    assert len(index) == len(list(shared_clips.glob("*.mp4")))
    for i in range(len(index)):
        sample = index.read(i)
        assert sample.caption_long != sample.caption_short
        assert 2 <= sample.meta.num_entities <= 60
        assert (sample.entity_ids == 0).mean() < 0.1
