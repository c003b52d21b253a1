"""Shards whose checksums are right and whose contents are not: always a DataError, with names."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest

from data_loaders.decode import encode_labels
from data_loaders.schema import DataError, metadata_record
from data_loaders.shard_format import Manifest
from data_loaders.shard_writer import Entry, write_manifest, write_shard
from data_loaders.shards import ShardIndex


def stored(folder, members):
    """A sample of these members, in a shard of its own."""
    shard = write_shard(folder / "shard-000000.tar", [Entry(key="clip-0000", members=members)])
    write_manifest(folder, [shard], kind="anything")
    return ShardIndex.open(folder, kind="anything").sample(0)


def record_of(sample, **changes):
    return json.dumps({**metadata_record(sample), **changes}).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "expected JSON"),
        (b"\xff{}", "expected JSON"),
        (b"[" * 100_000, "expected JSON"),
        (b"[]", "expected an object, came list"),
        (b"null", "expected an object, came NoneType"),
        (b"{}", "schema_version: expected 2, came None"),
    ],
)
def test_what_is_no_record_is_named(tmp_path, content, message):
    with pytest.raises(DataError, match=rf"shard-000000\.tar:clip-0000\.json: .*{message}"):
        stored(tmp_path, {"json": content}).record()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("frames", 0),
        ("frames", "5"),
        ("frames", None),
        ("frames", 5.0),
        ("height", -1),
        ("width", True),
        ("fps", 0),
        ("fps", float("nan")),
        ("fps", float("inf")),
        pytest.param("fps", 10**400, id="fps-huge"),
        ("fps", "8"),
        ("caption_short", None),
        ("caption_long", ["a"]),
        ("caption_long", "half of a pair: \ud800"),
        ("meta", None),
    ],
)
def test_an_impossible_record_is_named(tmp_path, noise_sample, name, value):
    sample = stored(tmp_path, {"json": record_of(noise_sample(0), **{name: value})})
    with pytest.raises(DataError, match=rf"shard-000000\.tar:clip-0000\.json: .*{name}"):
        sample.record()


def test_the_record_of_another_sample_is_refused(tmp_path, noise_sample):
    sample = stored(tmp_path, {"json": record_of(noise_sample(1))})
    with pytest.raises(DataError, match="expected the record of 'clip-0000', got 'clip-0001'"):
        sample.record()


def test_labels_of_another_size_are_refused(tmp_path, noise_sample):
    labels = encode_labels(np.ones((5, 24, 16), np.uint16), fps=8.0)
    members = {"json": record_of(noise_sample(0)), "seg.mkv": labels}
    sample = stored(tmp_path, members)
    message = r"shard-000000\.tar:clip-0000\.seg\.mkv: expected labels of the record's 16x24 pixels"
    for record in (None, sample.record()):
        with pytest.raises(DataError, match=message + ", got 24x16"):
            sample.labels("entity_ids", indices=[0, 4], record=record)


@pytest.mark.parametrize(
    "index",
    [
        b"{",
        b"[]",
        b"{}",
        b'{"samples": [{}]}',
        b'{"samples": [null]}',
        b'{"samples": [{"key": "a", "members": []}]}',
        b'{"samples": [{"key": "a", "members": {"json": [0, 1]}}]}',
        b'{"samples": [{"key": "a", "members": {"json": [0, 1, null]}}]}',
        b'{"samples": [{"key": "a", "members": {"json": [0, -1, 0]}}]}',
        b'{"samples": []}',
    ],
)
def test_an_impossible_index_is_named(tmp_path, index):
    stored(tmp_path, {"json": b"{}"})
    manifest = Manifest.from_json((tmp_path / "manifest.json").read_bytes(), name="it")
    (tmp_path / "shard-000000.index.json").write_bytes(index)
    digest = hashlib.sha256(index).hexdigest()
    write_manifest(tmp_path, [replace(manifest.shards[0], index_sha256=digest)], kind="anything")
    with pytest.raises(DataError, match=r"shard-000000\.index\.json: expected the "):
        ShardIndex.open(tmp_path, kind="anything").sample(0)
