import errno
import json
import os
import tarfile
from functools import partial

import pytest

from data_loaders import atomic_file
from data_loaders.schema import DataError
from data_loaders.shard_format import Manifest, shard_name, total_of
from data_loaders.shard_writer import Entry, write_manifest, write_shard
from data_loaders.shards import ShardIndex, make_shards, write_shards
from data_loaders.synthetic import make_clip
from data_loaders.synthetic_scene import WorldConfig


def latents(folder, *, extra=None):
    entries = [
        [
            Entry(key="a", members={"latent": b"1234", "text": b"12"}),
            Entry(key="b", members={}, note="its video is truncated"),
        ],
        [Entry(key="c", members={"latent": b"123456"})],
    ]
    shards = [write_shard(folder / shard_name(i), iter(part)) for i, part in enumerate(entries)]
    write_manifest(folder, shards, kind="latents", extra=extra)


def test_shards_of_another_kind_are_read_by_its_name_only(tmp_path):
    latents(tmp_path, extra={"fingerprint": "abc"})
    with pytest.raises(DataError, match="expected a folder of clips, found latents"):
        ShardIndex.open(tmp_path)
    index = ShardIndex.open(tmp_path, kind="latents")
    assert index.manifest.extra == {"fingerprint": "abc"}
    assert [index.sample(i).key for i in range(3)] == ["a", "b", "c"]
    assert index.sample(0).read_bytes("text") == b"12"
    assert index.sample(2).read_bytes("latent") == b"123456"
    totals = index.manifest.totals
    assert (totals.num_samples, totals.num_damaged, totals.stats) == (3, 1, None)
    assert totals.members == {"latent": 2, "text": 1}
    assert totals.member_bytes == {"latent": 10, "text": 2}


def test_a_sample_known_as_damaged_says_why(tmp_path):
    latents(tmp_path)
    stored = ShardIndex.open(tmp_path, kind="latents").sample(1)
    assert (stored.members, stored.note) == ({}, "its video is truncated")
    message = "sample 'b', member 'latent': the sample is damaged: its video is truncated"
    with pytest.raises(DataError, match=message):
        stored.read_bytes("latent")
    # Of clips none may be: training would find out late.
    shard = write_shard(tmp_path / "x.tar", [Entry(key="b", members={})])
    write_manifest(tmp_path, [shard])
    with pytest.raises(DataError, match="sample 'b': expected a caption in member 'txt'"):
        ShardIndex.open(tmp_path)


def test_a_clip_without_video_is_refused(tmp_path):
    members = {"txt": b"a", "long.txt": b"a", "json": b"{}"}
    write_manifest(tmp_path, [write_shard(tmp_path / "x.tar", [Entry(key="k", members=members)])])
    with pytest.raises(DataError, match="sample 'k': expected a video in one of mp4, webm, mkv"):
        ShardIndex.open(tmp_path)


def entries_then(error):
    yield Entry(key="a", members={"x": b"1"})
    raise error


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "expected at least one sample"),
        ([Entry(key="a", members={"x": b""})] * 2, "sample 'a': expected a key .* every one once"),
        ([Entry(key="a/../b", members={})], "'a/../b': expected a key of letters"),
        (entries_then(DataError("no more")), "no more"),
    ],
)
def test_a_shard_that_cannot_be_written_leaves_nothing(tmp_path, entries, message):
    with pytest.raises(DataError, match=message):
        write_shard(tmp_path / "x.tar", entries)
    assert list(tmp_path.iterdir()) == []


# Each of tar, index and manifest is flushed, and its folder after it.
@pytest.mark.parametrize("full_at", [1, 2, 3, 4, 5, 6])
def test_on_a_full_disk_nothing_half_written_claims_to_be_whole(tmp_path, monkeypatch, full_at):
    calls = []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == full_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic_file.os, "fsync", full)
    path = tmp_path / shard_name(0)
    with pytest.raises(OSError, match="No space left"):
        write_manifest(tmp_path, [write_shard(path, [Entry(key="a", members={"x": b"1"})])])
    # The tar and its index, or neither; never a manifest.
    left = {file.name for file in tmp_path.iterdir()}
    assert left == (set() if full_at < 5 else {path.name, "shard-000000.index.json"})


def test_a_manifest_is_not_replaced_by_half_of_another(tmp_path, monkeypatch):
    latents(tmp_path)
    before = (tmp_path / "manifest.json").read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic_file.os, "fsync", full)
    shards = Manifest.from_json(before, name="it").shards
    with pytest.raises(OSError, match="No space left"):
        write_manifest(tmp_path, shards[:1], kind="latents")
    assert (tmp_path / "manifest.json").read_bytes() == before


def test_impossible_manifests_are_refused(tmp_path):
    shard = write_shard(tmp_path / "x.tar", [Entry(key="a", members={"x": b"1"})])
    with pytest.raises(DataError, match="expected at least one shard"):
        write_manifest(tmp_path, [])
    with pytest.raises(DataError, match=r"shard 'x\.tar': impossible name"):
        write_manifest(tmp_path, [shard, shard])
    with pytest.raises(DataError, match="extra: expected JSON values"):
        write_manifest(tmp_path, [shard], extra={"x": object()})
    path = write_manifest(tmp_path, [shard])
    # A manifest of a server must not lead out of the folder.
    path.write_text(path.read_text().replace('"x.tar"', '"../x.tar"'))
    with pytest.raises(DataError, match=r"shard '\.\./x\.tar': impossible name"):
        ShardIndex.open(tmp_path)


def test_the_figures_are_those_of_the_clips(tmp_path, noise_sample):
    samples = [
        noise_sample(0, frames=5, fps=8.0, entities=3),
        noise_sample(1, frames=9, fps=30000 / 1001, ids=False),
        noise_sample(2, frames=5, fps=8.0, height=32, depth=False),
    ]
    write_shards(samples, tmp_path, samples_per_shard=2)
    manifest = ShardIndex.open(tmp_path).manifest
    stats = manifest.totals.stats
    assert stats is not None
    assert (stats.clips, stats.frames, stats.with_ids, stats.with_depth) == (3, 19, 2, 2)
    assert stats.seconds == pytest.approx(10 / 8 + 9 * 1001 / 30000)
    assert stats.sizes == {"16x24": 2, "32x24": 1}
    assert stats.rates == {"8": 2, "29.97": 1}
    assert stats.lengths == {"5": 2, "9": 1}
    assert stats.entities == {"3": 1, "7": 1}
    assert (stats.short_words.fewest, stats.short_words.most, stats.short_words.mean) == (2, 2, 2)
    assert stats.long_words.mean == 6
    # They add up, and the sums are what the file says.
    assert manifest.totals == total_of(manifest.shards)
    assert json.loads((tmp_path / "manifest.json").read_text())["num_samples"] == 3
    with tarfile.open(tmp_path / "shard-000000.tar") as tar:
        size = sum(info.size for info in tar if info.name.endswith(".depth.mkv"))
    assert manifest.shards[0].member_bytes["depth.mkv"] == size


def test_any_number_of_workers_writes_the_same_bytes(tmp_path):
    make = partial(make_clip, seed=3, config=WorldConfig(world="simple", frames=5))
    for workers in (0, 2):
        make_shards(make, range(5), tmp_path / str(workers), samples_per_shard=2, workers=workers)
    files = sorted(path.name for path in (tmp_path / "0").iterdir())
    assert len(files) == 7
    for name in files:
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name


def test_samples_in_hand_are_encoded_by_workers_too(tmp_path, noise_sample):
    samples = [noise_sample(i) for i in range(3)]
    for workers in (0, 1):
        write_shards(samples, tmp_path / str(workers), workers=workers)
    tars = [(tmp_path / str(workers) / "shard-000000.tar").read_bytes() for workers in (0, 1)]
    assert tars[0] == tars[1]


def test_an_error_in_a_worker_names_the_sample_and_leaves_nothing(tmp_path, noise_sample):
    samples = [noise_sample(0), noise_sample(1, height=17), noise_sample(2)]
    with pytest.raises(DataError, match="sample 'clip-0001': rgb_codec h264: expected an even"):
        write_shards(samples, tmp_path, rgb_codec="h264", workers=1)
    assert list(tmp_path.iterdir()) == []


def test_items_may_be_left_out(tmp_path, noise_sample):
    def make(i):
        return None if i % 2 else noise_sample(i)

    make_shards(make, range(5), tmp_path, samples_per_shard=2)
    index = ShardIndex.open(tmp_path)
    assert [index.sample(i).key for i in range(3)] == ["clip-0000", "clip-0002", "clip-0004"]
