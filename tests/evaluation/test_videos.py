"""Samples and files as videos: what is read, and what is left out with which reason."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_loaders.decode import encode_rgb
from data_loaders.order import ClipSize
from data_loaders.shards import write_shards
from data_loaders.synthetic import HELD_OUT_START, WorldConfig, make_clip
from sat_udpdiff.evaluation.measure import UnusableError, Video
from sat_udpdiff.evaluation.references import ClipFit, ClipVideo, WorldVideo, clips_in
from sat_udpdiff.evaluation.videos import FileVideo, SampleVideo, find_videos, samples_in

RNG = np.random.default_rng(0)


def folder_of(samples: Path, task: str) -> Path:
    return next(samples.glob(f"000_*_{task}_seed0"))


def write_video(path: Path, *, frames: int = 3, fps: float = 8.0) -> None:
    rgb = RNG.integers(0, 255, (frames, 32, 48, 3), np.uint8)
    path.write_bytes(encode_rgb(rgb, fps=fps, codec="h264"))


def test_a_sample_is_what_was_written(tiny_samples: Path) -> None:
    found = samples_in(tiny_samples)
    assert not found.left_out and len(found.videos) == 4
    assert [video.task for video in found.videos] == ["depth", "segmentation"] * 2
    for video in found.videos:
        assert isinstance(video, SampleVideo) and isinstance(video, Video)
        record = json.loads((video.folder / "sample.json").read_text())
        assert (video.prompt, video.task, video.seed) == (
            record["prompt"], record["task"], record["seed"],
        )  # fmt: skip
        assert video.fps == 8.0 and video.rgb().shape == (9, 32, 48, 3)
        dense = video.dense()
        assert dense is not None and dense.shape == video.rgb().shape
        ids, depth = video.entity_ids(), video.depth()
        if video.task == "depth":
            assert ids is None and depth is not None
            assert depth.dtype == np.float32 and 0 < depth.min() <= depth.max() <= 1
        else:
            assert depth is None and ids is not None and ids.dtype == np.int32
    assert len({video.digest for video in found.videos}) == 4


def test_the_digest_follows_the_contents_and_nothing_else(samples: Path) -> None:
    folder = folder_of(samples, "depth")
    before = SampleVideo.open(folder).digest
    moved = folder.rename(samples / "moved")
    assert SampleVideo.open(moved).digest == before
    depth = np.load(moved / "depth.npz")["depth"]
    np.savez_compressed(moved / "depth.npz", depth=np.nextafter(depth, np.float32(0)))
    assert SampleVideo.open(moved).digest != before


@pytest.mark.parametrize(
    ("task", "name", "reason"),
    [
        ("depth", "sample.json", "half written: no sample.json"),
        ("depth", "video.mp4", "half written: no video.mp4"),
        ("depth", "dense.mp4", "half written: no dense.mp4"),
        ("depth", "depth.npz", "half written: no depth.npz"),
        ("segmentation", "ids.npz", "half written: no ids.npz"),
    ],
)
def test_a_folder_that_lacks_a_file_is_left_out(
    samples: Path, task: str, name: str, reason: str
) -> None:
    folder = folder_of(samples, task)
    (folder / name).unlink()
    found = samples_in(samples)
    assert len(found.videos) == 3
    assert found.left_out == {folder.name: reason}


@pytest.mark.parametrize("name", ["video.mp4", "dense.mp4", "depth.npz", "sample.json"])
def test_a_folder_with_half_a_file_is_left_out(samples: Path, name: str) -> None:
    folder = folder_of(samples, "depth")
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    (reason,) = samples_in(samples).left_out.values()
    assert name in reason


def test_other_numbers_of_frames_are_left_out(samples: Path) -> None:
    write_video(folder_of(samples, "depth") / "dense.mp4", frames=8)
    np.savez(folder_of(samples, "segmentation") / "ids.npz", ids=np.zeros((8, 32, 48), np.int32))
    reasons = samples_in(samples).left_out
    assert len(reasons) == 2
    assert any("dense.mp4" in reason and "9" in reason for reason in reasons.values())
    assert any("ids.npz: expected (9, 32, 48), got (8, 32, 48)" in r for r in reasons.values())


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ("[]", "expected an object, got list"),
        ("{}", "record of a sample: KeyError"),
    ],
)
def test_records_that_are_none_are_left_out(samples: Path, record: str, reason: str) -> None:
    folder = folder_of(samples, "depth")
    (folder / "sample.json").write_text(record)
    assert reason in samples_in(samples).left_out[folder.name]


def test_what_is_being_written_is_not_seen(samples: Path) -> None:
    folder = folder_of(samples, "depth")
    shutil.copytree(folder, samples / f".{folder.name}.partial")
    assert len(samples_in(samples).videos) == 4


def test_files_have_prompts_where_vbench_would_read_them(tmp_path: Path) -> None:
    for name in ("a red disc-0", "a red disc-1", "holiday"):
        write_video(tmp_path / f"{name}.mp4", fps=25.0)
    (tmp_path / "text.mp4").write_text("no video")
    found = find_videos(tmp_path)
    assert [video.prompt for video in found.videos] == ["a red disc", "a red disc", ""]
    video = found.videos[0]
    assert isinstance(video, FileVideo) and isinstance(video, Video)
    assert (video.name, video.fps, video.task) == ("a red disc-0", 25.0, None)
    assert video.rgb().shape == (3, 32, 48, 3)
    assert video.dense() is None and video.entity_ids() is None and video.depth() is None
    assert list(found.left_out) == ["text.mp4"] and "text.mp4" in found.left_out["text.mp4"]


def test_folders_of_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected folders that sample\.py wrote, or mp4 files"):
        find_videos(tmp_path)
    with pytest.raises(ValueError, match="expected a folder of samples or of mp4 files"):
        find_videos(tmp_path / "none")


def test_one_sample_is_one_video(tiny_samples: Path) -> None:
    """And its map and its side by side are none."""
    folder = folder_of(tiny_samples, "depth")
    (video,) = find_videos(folder).videos
    assert isinstance(video, SampleVideo) and (video.name, video.task) == (folder.name, "depth")


def test_samples_beside_files_are_refused(samples: Path) -> None:
    write_video(samples / "holiday.mp4")
    with pytest.raises(ValueError, match=r"got both: the sample 000_\S+ and holiday\.mp4"):
        find_videos(samples)


def test_a_frame_that_cannot_be_decoded_is_unusable(samples: Path) -> None:
    folder = folder_of(samples, "depth")
    video = SampleVideo.open(folder)
    content = (folder / "video.mp4").read_bytes()
    (folder / "video.mp4").write_bytes(content[:-200])
    with pytest.raises(UnusableError, match=r"video\.mp4"):
        video.rgb()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "clips"
    world = WorldConfig(frames=9, height=32, width=48, world="simple")
    write_shards((make_clip(i, seed=0, config=world) for i in range(3)), folder, rgb_codec="ffv1")
    return folder


def test_a_clip_of_shards_has_its_labels(shards: Path) -> None:
    world = WorldConfig(frames=9, height=32, width=48, world="simple")
    found = clips_in(shards, count=2)
    assert len(found.videos) == 2
    for i, video in enumerate(found.videos):
        clip = make_clip(i, seed=0, config=world)
        rendered = WorldVideo(index=i, seed=0, config=world)
        for other in (video, rendered):
            assert isinstance(other, Video)
            assert (other.name, other.prompt) == (clip.key, clip.caption_long)
            assert (other.fps, other.task, other.path) == (8.0, None, None)
            np.testing.assert_array_equal(other.rgb(), clip.rgb)
            np.testing.assert_array_equal(other.entity_ids(), clip.entity_ids)
            depth = other.depth()
            assert depth is not None and clip.depth is not None
            np.testing.assert_allclose(depth, clip.depth / 65535.0, atol=1e-6)
    digests = {video.digest for video in clips_in(shards).videos}
    digests |= {WorldVideo(index=i, seed=0, config=world).digest for i in (0, HELD_OUT_START)}
    assert len(digests) == 5


def test_clips_are_brought_to_the_size_of_the_samples(shards: Path) -> None:
    fit = ClipFit(size=ClipSize(num_frames=5, height=16, width=16), fps=4.0)
    (video,) = clips_in(shards, count=1, fit=fit).videos
    (whole,) = clips_in(shards, count=1).videos
    assert video.fps == 4.0 and video.digest != whole.digest
    ids, depth, wholes = video.entity_ids(), video.depth(), whole.entity_ids()
    assert ids is not None and depth is not None and wholes is not None
    assert video.rgb().shape == (5, 16, 16, 3) and ids.shape == depth.shape == (5, 16, 16)
    # Every second frame, the middle of it.
    assert set(np.unique(ids)) <= set(np.unique(wholes[::2]))


def test_clips_that_are_too_short_are_left_out(shards: Path) -> None:
    fit = ClipFit(size=ClipSize(num_frames=49, height=32, width=48), fps=8.0)
    found = clips_in(shards, fit=fit)
    assert not found.videos and len(found.left_out) == 3
    assert "expected 6.12 s or more, got 1.12 s" in next(iter(found.left_out.values()))


def test_clips_are_found_by_their_keys(shards: Path) -> None:
    names = [video.name for video in clips_in(shards).videos]
    chosen = clips_in(shards, keys=[names[2], names[0]])
    assert [video.name for video in chosen.videos] == [names[2], names[0]]
    with pytest.raises(ValueError, match="expected clip 'nothing', found no such key"):
        clips_in(shards, keys=["nothing"])


def test_a_damaged_clip_is_left_out_or_unusable(shards: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(shards, tmp_path / "copy")
    video, record = clips_in(copy).videos[:2]
    assert isinstance(video, ClipVideo) and isinstance(record, ClipVideo)
    with video.stored.path.open("r+b") as file:
        for stored, member in ((video.stored, "seg.mkv"), (record.stored, "json")):
            file.seek(stored.members[member].offset)
            file.write(b"\0\1\2\3")
    assert list(clips_in(copy).left_out) == [record.name]
    with pytest.raises(UnusableError, match=r"seg\.mkv"):
        video.entity_ids()
    assert video.digest != clips_in(shards).videos[0].digest
