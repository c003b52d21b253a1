"""Damage ends in a count and a name, or in a clear stop; never in a silent loss.

What each case does is done to the files after they were written, or by a writer that is wrong.
Faults of processes, disks and latents are in test_loader.py, test_reader_pool.py, test_latents.py;
the fault that a folder of shards is read in full for is in test_shard_verify.py.
"""

import json
import logging
import shutil
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from data_loaders import clip_writer
from data_loaders.decode import encode_rgb
from data_loaders.loader import Batches
from data_loaders.schema import DataError
from data_loaders.shard_writer import Entry, write_manifest, write_shard
from data_loaders.shards import ShardIndex, write_shards
from data_loaders.synthetic import WorldConfig, make_clip
from sat_udpdiff.config import Config, DataConfig, TrainConfig

NUM_CLIPS = 6
BAD = "full-0000-00000002"
WORLD = WorldConfig(frames=9, height=32, width=48)


@pytest.fixture(scope="module")
def clips():
    return [make_clip(i, seed=0, config=WORLD) for i in range(NUM_CLIPS)]


@pytest.fixture(scope="module", params=["h264", "vp9", "ffv1"])
def codec(request):
    return request.param


@pytest.fixture
def folder(tmp_path, clips, codec):
    write_shards(clips, tmp_path / "shards", samples_per_shard=4, rgb_codec=codec)
    return tmp_path / "shards"


def config_of(folder, **data):
    settings = {"num_frames": 9, "height": 32, "width": 48, "num_workers": 0, "max_bad_share": 0.2}
    return Config(
        data=DataConfig(shards=str(folder), **(settings | data)),
        train=TrainConfig(micro_batch_size=1),
    )


def drawn_keys(config, count=2 * NUM_CLIPS):
    with Batches(config) as stream:
        keys = [batch.keys[0] for batch in islice(stream, count)]
        return keys, stream.damage.reasons


def assert_replaced(config, caplog, *, reason):
    """Every epoch is full, the bad clip's place is taken by the next one, and it is named once."""
    with caplog.at_level(logging.WARNING):
        keys, damaged = drawn_keys(config)
    assert len(keys) == 2 * NUM_CLIPS and BAD not in keys
    assert keys.count("full-0000-00000003") == 4
    assert list(damaged) == [BAD] and reason in damaged[BAD]
    named = [record for record in caplog.records if "skipped damaged clip" in record.message]
    assert len(named) == 1 and BAD in named[0].message
    strict = replace(config, data=replace(config.data, max_bad_share=0.0))
    with pytest.raises(DataError, match=rf"1 of {NUM_CLIPS} clips are damaged .*{BAD}: "):
        drawn_keys(strict)


def overwrite(folder, member, *, content=None):
    """Garbage in place of the middle half of a member of the bad clip."""
    stored = ShardIndex.open(folder).sample(2)
    name = member or next(name for name in stored.members if name in ("mp4", "webm", "mkv"))
    at = stored.members[name]
    with stored.path.open("r+b") as file:
        file.seek(at.offset + at.size // 4)
        file.write(content or bytes(at.size // 2))


@pytest.mark.parametrize("member", [None, "json"])
def test_zeroed_bytes_are_noticed_though_decoders_would_conceal_them(folder, member, caplog):
    overwrite(folder, member)
    assert_replaced(config_of(folder), caplog, reason="damaged (expected crc32")


def test_damaged_labels_matter_where_they_are_used(folder, caplog):
    overwrite(folder, "depth.mkv")
    depth = {"tasks": ("depth",), "task_weights": (1.0,)}
    assert_replaced(config_of(folder, **depth), caplog, reason="'depth.mkv': damaged")
    other = {"tasks": ("segmentation",), "task_weights": (1.0,)}
    keys, damaged = drawn_keys(config_of(folder, **other), NUM_CLIPS)
    assert BAD in keys and not damaged


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda video, clip: bytes(1000), "cannot be read as video"),
        (lambda video, clip: video[: len(video) // 3], ""),
        (lambda video, clip: encode_rgb(clip.rgb, fps=12.0, codec="h264"), "12 in the header"),
        (lambda video, clip: encode_rgb(clip.rgb[:5], fps=8.0, codec="h264"), "9 frames, got 5"),
        (lambda video, clip: encode_rgb(clip.rgb[:, :16], fps=8.0, codec="h264"), "32x48 pixels"),
    ],
    ids=["garbage", "cut", "wrong rate", "too short", "wrong size"],
)
def test_videos_that_were_stored_wrong_are_noticed(
    tmp_path, clips, codec, caplog, monkeypatch, spoil, reason
):
    """The checksum is right, for the bytes were wrong before they were written."""
    whole = clip_writer.encode_rgb

    def encode(rgb, *, fps, codec):
        video = whole(rgb, fps=fps, codec=codec)
        return spoil(video, clips[2]) if np.array_equal(rgb, clips[2].rgb) else video

    monkeypatch.setattr(clip_writer, "encode_rgb", encode)
    write_shards(clips, tmp_path / "shards", samples_per_shard=4, rgb_codec=codec)
    for decoder in ("pyav", "dali"):
        if decoder == "dali":
            pytest.importorskip("nvidia.dali", reason="nvidia-dali is not installed (extra: dali)")
        caplog.clear()
        assert_replaced(config_of(tmp_path / "shards", decoder=decoder), caplog, reason=reason)


@pytest.mark.parametrize("codec", ["ffv1"], indirect=True)
class TestShards:
    def cut_to(self, folder, size):
        path = folder / "shard-000000.tar"
        path.write_bytes(path.read_bytes()[:size])

    def test_a_tar_that_is_cut_stops_the_run_before_it_starts(self, folder):
        members = ShardIndex.open(folder).sample(2).members
        first = min(member.offset for member in members.values())
        # In a member, at a boundary, in a header: three of the four that webdataset reads over.
        for size in (members["mkv"].offset + 100, first - 512, members["txt"].offset - 200):
            self.cut_to(folder, size)
            with pytest.raises(DataError, match=r"shard-000000\.tar: truncated: expected"):
                Batches(config_of(folder))

    def test_an_overwritten_header_does_no_harm(self, folder, clips):
        stored = ShardIndex.open(folder).sample(2)
        with stored.path.open("r+b") as file:
            file.seek(stored.members["txt"].offset - 512)
            file.write(bytes(512))
        keys, damaged = drawn_keys(config_of(folder))
        assert keys.count(BAD) == 2 and not damaged

    def test_a_vanished_shard_stops_the_run_before_it_starts(self, folder):
        (folder / "shard-000001.tar").unlink()
        with pytest.raises(DataError, match=r"shard-000001\.tar: manifest\.json names this shard"):
            Batches(config_of(folder))

    def test_a_vanished_index_names_itself(self, folder):
        (folder / "shard-000001.index.json").unlink()
        with pytest.raises(DataError, match=r"shard-000001\.index\.json: expected the index"):
            drawn_keys(config_of(folder))

    def test_a_clip_without_a_member_stops_the_run_before_it_starts(self, folder, tmp_path):
        index = ShardIndex.open(folder)
        entries = []
        for i in range(NUM_CLIPS):
            stored = index.sample(i)
            members = {name: stored.read_bytes(name) for name in stored.members}
            if stored.key == BAD:
                del members["depth.mkv"]
            entries.append(Entry(key=stored.key, members=members))
        (tmp_path / "other").mkdir()
        info = write_shard(tmp_path / "other" / "shard-000000.tar", entries)
        write_manifest(tmp_path / "other", [replace(info, stats=index.manifest.totals.stats)])
        with pytest.raises(DataError, match=rf"depth needs depth, but .*{BAD}.* 'depth\.mkv'"):
            Batches(config_of(tmp_path / "other"))

    def test_an_empty_shard_is_refused_by_name(self, folder):
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["shards"][1]["num_samples"] = 0
        (folder / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(DataError, match=r"shard-000001\.tar': impossible num_samples 0"):
            Batches(config_of(folder))
        (folder / "shard-000001.tar").write_bytes(b"")
        manifest["shards"][1]["num_samples"] = 2
        (folder / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(DataError, match=r"shard-000001\.tar: truncated: .* found 0"):
            Batches(config_of(folder))

    def test_a_whole_shard_of_damage_ends_in_a_report(self, folder, tmp_path):
        shutil.copy(folder / "shard-000000.tar", tmp_path / "kept.tar")
        path = folder / "shard-000000.tar"
        size = path.stat().st_size
        path.write_bytes(bytes(size))
        with pytest.raises(DataError, match=r"2 of 6 clips are damaged \(33\.3%.* allows 20\.0%\)"):
            drawn_keys(config_of(folder))
