import errno
import gc
import hashlib
import json
import os
import tarfile
import warnings
from dataclasses import replace

import numpy as np
import pytest
import webdataset

from data_loaders import atomic_file, clip_writer
from data_loaders.schema import DataError
from data_loaders.shards import ShardIndex, write_shards


def assert_equal_samples(ours, theirs):
    np.testing.assert_array_equal(ours.rgb, theirs.rgb)
    for name in ("entity_ids", "depth"):
        a, b = getattr(ours, name), getattr(theirs, name)
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_array_equal(a, b)
    for name in ("key", "caption_short", "caption_long", "fps", "meta"):
        assert getattr(ours, name) == getattr(theirs, name)


@pytest.fixture
def folder(tmp_path, noise_sample):
    write_shards((noise_sample(i) for i in range(5)), tmp_path / "data", samples_per_shard=2)
    return tmp_path / "data"


def test_samples_come_back_exactly_in_any_order(folder, noise_sample):
    index = ShardIndex.open(folder)
    assert len(index) == 5
    assert [shard.num_samples for shard in index.shards] == [2, 2, 1]
    for i in (4, 0, 3, 1, 2):
        assert_equal_samples(index.read(i), noise_sample(i))
    with pytest.raises(IndexError):
        index.read(5)


def test_labels_may_be_missing(tmp_path, noise_sample):
    write_shards([noise_sample(0, ids=False, depth=False)], tmp_path)
    assert_equal_samples(ShardIndex.open(tmp_path).read(0), noise_sample(0, ids=False, depth=False))


def test_webdataset_reads_the_same_samples(folder, noise_sample, monkeypatch):
    monkeypatch.setenv("WDS_SECURE", "1")
    urls = sorted(str(path) for path in folder.glob("*.tar"))
    with warnings.catch_warnings():
        # webdataset leaves its tars to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        found = list(webdataset.WebDataset(urls, shardshuffle=False))
        gc.collect()
    index = ShardIndex.open(folder)
    assert [sample["__key__"] for sample in found] == [noise_sample(i).key for i in range(5)]
    for i, sample in enumerate(found):
        stored = index.sample(i)
        members = {name: sample[name] for name in sample if not name.startswith("__")}
        assert members == {name: stored.read_bytes(name) for name in stored.members}
        assert members["long.txt"].decode() == noise_sample(i).caption_long


def test_the_metadata_names_the_depth_convention(folder):
    meta = ShardIndex.open(folder).sample(0).record()["meta"]
    assert (meta["depth_polarity"], meta["colormap"]) == ("near_is_one", "Spectral_r")


def test_the_manifest_holds_the_checksums(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["num_samples"] == 5
    for shard in manifest["shards"]:
        content = (folder / shard["name"]).read_bytes()
        assert shard["sha256"] == hashlib.sha256(content).hexdigest()
        assert shard["num_bytes"] == len(content)


def test_equal_samples_give_equal_bytes(tmp_path, noise_sample):
    for name in ("a", "b"):
        write_shards((noise_sample(i) for i in range(3)), tmp_path / name, rgb_codec="ffv1")
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["manifest.json", "shard-000000.index.json", "shard-000000.tar"]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_large_pictures_take_h264_unasked_and_small_ones_are_exact(tmp_path, noise_sample):
    write_shards(
        [noise_sample(0, frames=1), noise_sample(1, frames=1, height=272, width=256)], tmp_path
    )
    index = ShardIndex.open(tmp_path)
    assert "mkv" in index.sample(0).members
    assert "mp4" in index.sample(1).members


def test_shards_are_not_overwritten_unasked(folder, noise_sample):
    before = (folder / "manifest.json").read_bytes()
    with pytest.raises(DataError, match="expected no shards, found a data set"):
        write_shards([noise_sample(9)], folder)
    assert (folder / "manifest.json").read_bytes() == before
    (folder / "notes.md").write_text("mine")
    write_shards([noise_sample(9)], folder, overwrite=True)
    assert sorted(path.name for path in folder.iterdir()) == [
        "manifest.json",
        "notes.md",
        "shard-000000.index.json",
        "shard-000000.tar",
    ]
    assert ShardIndex.open(folder).read(0).key == "clip-0009"


def test_what_an_interrupted_run_left_is_named(folder, noise_sample):
    (folder / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"3 tar\(s\) without one \(writing did not end\?\)"):
        ShardIndex.open(folder)
    with pytest.raises(DataError, match="shards of a run that did not end"):
        write_shards([noise_sample(9)], folder)


def fail_after(samples, error):
    yield from samples
    raise error


def test_an_error_leaves_nothing_behind(tmp_path, noise_sample):
    samples = [noise_sample(i) for i in range(3)]
    with pytest.raises(KeyboardInterrupt):
        write_shards(fail_after(samples, KeyboardInterrupt()), tmp_path, samples_per_shard=2)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing_behind(tmp_path, noise_sample, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic_file.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_shards([noise_sample(0)], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_faulty_input_is_named(tmp_path, noise_sample):
    with pytest.raises(DataError, match="expected at least one sample"):
        write_shards([], tmp_path)
    with pytest.raises(DataError, match="'clip-0001': expected every key once"):
        write_shards([noise_sample(1), noise_sample(1)], tmp_path)
    with pytest.raises(DataError, match="expected one of h264, vp9, ffv1, auto, got 'mpeg2'"):
        write_shards([noise_sample(1)], tmp_path, rgb_codec="mpeg2")
    with pytest.raises(DataError, match="'clip-0001': rgb_codec h264: expected an even height"):
        write_shards([noise_sample(1, height=17)], tmp_path, rgb_codec="h264")
    with pytest.raises(DataError, match="samples_per_shard: expected an integer >= 1, got 0"):
        write_shards([noise_sample(1)], tmp_path, samples_per_shard=0)


def test_a_folder_without_shards_says_how_to_make_them(tmp_path):
    with pytest.raises(DataError, match=r"no shards; make shards with `python -m data_loaders.syn"):
        ShardIndex.open(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        ShardIndex.open(tmp_path / "missing")


@pytest.mark.parametrize(
    "address",
    [
        "pipe:cat x.tar",
        "zip://x.zip",
        "simplecache::s3://b/x",
        "https://a/b::file://c",
        "http:/host/x",
        "file://host/x",
    ],
)
def test_addresses_are_refused(address):
    with pytest.raises(DataError, match=r"^shards: expected "):
        ShardIndex.open(address)


def test_a_broken_manifest_is_named(folder):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for content, message in (
        ("{", "expected a manifest of shards"),
        (json.dumps({**manifest, "schema_version": 99}), "schema_version: expected 2, got 99"),
        (json.dumps({**manifest, "shards": []}), "expected at least one shard"),
    ):
        path.write_text(content)
        with pytest.raises(DataError, match=message):
            ShardIndex.open(folder)


def test_missing_and_truncated_shards_are_named(folder):
    path = folder / "shard-000001.tar"
    content = path.read_bytes()
    path.write_bytes(content[:-1000])
    with pytest.raises(DataError, match=r"shard-000001\.tar: truncated: expected \d+ bytes"):
        ShardIndex.open(folder)
    path.unlink()
    with pytest.raises(DataError, match=r"shard-000001\.tar: manifest\.json names this shard, but"):
        ShardIndex.open(folder)


def test_an_index_of_another_run_is_refused(folder):
    path = folder / "shard-000002.index.json"
    path.write_text(path.read_text().replace("clip-0004", "clip-0005"))
    with pytest.raises(DataError, match=r"shard-000002\.index\.json: expected the index that"):
        ShardIndex.open(folder).sample(4)


@pytest.mark.parametrize("member", ["mkv", "seg.mkv", "depth.mkv", "json"])
def test_one_damaged_byte_is_found(folder, member):
    index = ShardIndex.open(folder)
    stored = index.sample(2)
    where = stored.members[member]
    with stored.path.open("r+b") as file:
        file.seek(where.offset + where.size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(DataError, match=f"sample 'clip-0002', member '{member}': damaged"):
        index.read(2)
    index.read(3)


@pytest.mark.parametrize(
    ("member", "what"), [("txt", "a caption"), ("long.txt", "a caption"), ("json", "metadata")]
)
def test_a_shard_without_captions_is_named(tmp_path, noise_sample, monkeypatch, member, what):
    whole = clip_writer.sample_members

    def without(sample, *, rgb_codec):
        files = whole(sample, rgb_codec=rgb_codec)
        if sample.key == "clip-0001":
            del files[member]
        return files

    monkeypatch.setattr(clip_writer, "sample_members", without)
    write_shards((noise_sample(i) for i in range(3)), tmp_path)
    message = rf"shard-000000\.tar, sample 'clip-0001': expected {what} in member '{member}'"
    with pytest.raises(DataError, match=message):
        ShardIndex.open(tmp_path)


def test_required_labels_are_checked_without_decoding(tmp_path, noise_sample):
    write_shards([noise_sample(0), noise_sample(1, depth=False)], tmp_path)
    index = ShardIndex.open(tmp_path)
    index.require_labels("entity_ids", reason="task segmentation")
    with pytest.raises(DataError, match=r"task depth needs depth, but .* sample 'clip-0001'"):
        index.require_labels("depth", reason="task depth")


def test_names_too_long_for_the_tar_are_refused(tmp_path, noise_sample):
    with pytest.raises(DataError, match="at most 100 characters"):
        write_shards([replace(noise_sample(0), key="k" * 95)], tmp_path)
    # The longest that fits is read back by its offset.
    key = "k" * (100 - len(".depth.mkv"))
    write_shards([replace(noise_sample(0), key=key)], tmp_path)
    assert ShardIndex.open(tmp_path).read(0).key == key
    with tarfile.open(tmp_path / "shard-000000.tar") as tar:
        assert f"{key}.depth.mkv" in tar.getnames()
