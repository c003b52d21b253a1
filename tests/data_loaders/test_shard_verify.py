import json
from dataclasses import replace

import pytest

from data_loaders.clip_writer import sample_members
from data_loaders.schema import DataError
from data_loaders.shard_cli import main
from data_loaders.shard_files import files_at
from data_loaders.shard_format import shard_name
from data_loaders.shard_stats import ClipStats
from data_loaders.shard_verify import verify
from data_loaders.shard_writer import Entry, write_manifest, write_shard
from data_loaders.shards import ShardIndex, write_shards

KEYS = [f"clip-{i:04d}" for i in range(5)]


@pytest.fixture
def folder(tmp_path, noise_sample):
    write_shards((noise_sample(i) for i in range(5)), tmp_path / "data", samples_per_shard=2)
    return tmp_path / "data"


def faults_of(folder, **options):
    return [fault for report in verify(files_at(folder), **options) for fault in report.faults]


def keys_named(faults):
    return {key for key in KEYS if any(f"'{key}'" in fault for fault in faults)}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_whole_folder_has_no_faults(folder, workers, capsys):
    assert faults_of(folder, decode=True, workers=workers) == []
    assert main(["verify", str(folder), "--decode", "--workers", str(workers)]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "whole: 5 samples in 3 shard(s)" in out


def write_over(path, *, at, content):
    with path.open("r+b") as file:
        file.seek(at)
        file.write(content)


def members_of(folder, i):
    stored = ShardIndex.open(folder).sample(i)
    return stored.path, stored.members


# The four kinds that webdataset reads over, most of them without a word: of samples 2 and 3, which
# share a shard, sample 2 is whole and sample 3 is not.
def test_a_tar_cut_in_a_member_is_named(folder):
    path, members = members_of(folder, 3)
    path.write_bytes(path.read_bytes()[: members["depth.mkv"].offset + 10])
    faults = faults_of(folder)
    assert keys_named(faults) == {"clip-0003"}
    text = "\n".join(faults)
    assert "shard-000001.tar: truncated: expected" in text
    assert "sample 'clip-0003', member 'depth.mkv': truncated: expected" in text
    assert "sample 'clip-0003', member 'json': missing: the tar ends before its header" in text


def test_a_tar_cut_at_a_boundary_is_named(folder):
    path, members = members_of(folder, 3)
    # All of sample 2, nothing of sample 3.
    path.write_bytes(path.read_bytes()[: min(m.offset for m in members.values()) - 512])
    faults = faults_of(folder)
    assert keys_named(faults) == {"clip-0003"}
    for member in members:
        assert any(f"'clip-0003', member '{member}': missing" in fault for fault in faults)


def test_a_tar_cut_in_a_header_is_named(folder):
    path, members = members_of(folder, 3)
    path.write_bytes(path.read_bytes()[: members["txt"].offset - 200])
    faults = faults_of(folder)
    assert keys_named(faults) == {"clip-0003"}
    assert any("member 'txt': missing: the tar ends" in f for f in faults)
    assert not any("member 'seg.mkv'" in fault for fault in faults)


def test_an_overwritten_header_is_named(folder):
    path, members = members_of(folder, 2)
    write_over(path, at=members["seg.mkv"].offset - 512, content=b"\xff" * 512)
    sha256, fault = faults_of(folder)
    assert "shard-000001.tar: sha256: expected" in sha256
    assert "sample 'clip-0002', member 'seg.mkv': damaged tar header: " in fault


def test_a_header_of_another_name_is_named(folder):
    path, members = members_of(folder, 2)
    with path.open("rb") as file:
        file.seek(members["txt"].offset - 512)
        header = file.read(512)
    write_over(path, at=members["seg.mkv"].offset - 512, content=header)
    _, fault = faults_of(folder)
    assert "member 'seg.mkv': tar header: expected 'clip-0002.seg.mkv' of" in fault
    assert "got 'clip-0002.txt'" in fault


def test_faults_of_all_shards_are_named_in_one_go(folder, capsys):
    for i, member in ((0, "mkv"), (3, "json"), (4, "depth.mkv")):
        path, members = members_of(folder, i)
        at = members[member].offset + members[member].size // 2
        byte = path.read_bytes()[at]
        write_over(path, at=at, content=bytes([byte ^ 1]))
    assert main(["verify", str(folder)]) == 1
    lines = capsys.readouterr().out.splitlines()
    for number, key, member in (
        (0, "clip-0000", "mkv"),
        (1, "clip-0003", "json"),
        (2, "clip-0004", "depth.mkv"),
    ):
        where = f"shard-{number:06d}.tar: sample '{key}', member '{member}': damaged: expected crc"
        assert sum(line.startswith(where) for line in lines) == 1
        assert sum(line.startswith(f"shard-{number:06d}.tar: sha256") for line in lines) == 1
    assert len(lines) == 7
    assert "6 fault(s), 3 file(s) damaged: 5 samples in 3 shard(s)" in lines[-1]


def test_a_missing_shard_is_named_and_the_others_are_read(folder):
    (folder / "shard-000000.tar").unlink()
    path, members = members_of_unopened(folder)
    write_over(path, at=members, content=b"\0\0\0\0")
    faults = faults_of(folder)
    assert "shard-000000.tar: manifest.json names this shard, but it cannot be read" in faults[0]
    assert {"clip-0000", "clip-0001", "clip-0004"} <= keys_named(faults)


def members_of_unopened(folder):
    """Where the video of sample 4 lies, of a folder that does not open."""
    entry = json.loads((folder / "shard-000002.index.json").read_text())["samples"][0]
    return folder / "shard-000002.tar", entry["members"]["mkv"][0]


def test_a_changed_index_is_named_and_still_used(folder):
    path = folder / "shard-000001.index.json"
    path.write_text(path.read_text().replace("clip-0003", "clip-0009"))
    text = "\n".join(faults_of(folder))
    assert "shard-000001.index.json: sha256 is not that of manifest.json" in text
    assert "sample 'clip-0009', member 'json': tar header: expected 'clip-0009.json'" in text


@pytest.mark.parametrize("content", ["{", '{"samples": [{"key": "k", "members": {"a": 1}}]}', "[]"])
def test_an_index_that_is_none_is_named(folder, content):
    (folder / "shard-000001.index.json").write_text(content)
    text = "\n".join(faults_of(folder))
    assert "shard-000001.index.json: no index, so that its samples are not verified" in text
    (folder / "shard-000001.index.json").unlink()
    assert "shard-000001.index.json: cannot be read" in "\n".join(faults_of(folder))


def test_strays_are_named(folder):
    (folder / "shard-000007.tar").write_bytes(b"")
    (folder / "shard-000008.tar.partial").write_bytes(b"")
    assert faults_of(folder) == [
        "shard-000007.tar: a tar that manifest.json does not name",
        "shard-000008.tar.partial: left by a run that did not end",
    ]


def test_sums_that_do_not_fit_are_named(folder):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["num_samples"] = 6
    manifest["shards"][1]["stats"]["frames"] = 11
    manifest["shards"][2]["member_bytes"]["mkv"] += 1
    path.write_text(json.dumps(manifest))
    faults = faults_of(folder)
    assert any(f.startswith("shard-000001.tar: stats: expected ") for f in faults)
    assert any(f.startswith("shard-000002.tar: member_bytes: expected ") for f in faults)
    assert (
        "manifest.json: the sum over its shards: num_samples: expected 5, manifest.json says 6"
        in faults
    )


def test_without_a_manifest_there_is_nothing_to_verify(folder, capsys):
    (folder / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="expected a manifest of shards"):
        list(verify(files_at(folder)))
    assert main(["verify", str(folder)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


def write_changed(folder, sample, *, change, record=None):
    """One clip whose files were changed before they were written: all checksums are right."""
    members = sample_members(sample, rgb_codec="ffv1")
    if record:
        members["json"] = json.dumps({**json.loads(members["json"]), **record}).encode()
    change(members)
    folder.mkdir(exist_ok=True)
    shard = write_shard(folder / shard_name(0), [Entry(key=sample.key, members=members)])
    try:
        stats = ClipStats.of(json.loads(members["json"]))
    except (ArithmeticError, ValueError, KeyError, TypeError):
        stats = None
    write_manifest(folder, [replace(shard, stats=stats)])


def keep(_):
    pass


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"key": "other"}, "key: expected 'clip-0000', the record says 'other'"),
        ({"schema_version": 1}, "schema_version: expected 2, came 1"),
        ({"frames": "5"}, "frames: expected int, not empty, came '5'"),
        ({"fps": 0}, "fps: expected int or float, not empty, came 0"),
        ({"caption_short": " "}, "caption_short: expected str, not empty"),
        ({"caption_long": "else"}, "member 'long.txt': not the caption_long of the record"),
        ({"has_depth": False}, "has_depth: expected True, the record says False"),
        ({"meta": {"source": "x", "more": 1}}, "meta: "),
        ({"meta": {"source": ""}}, "meta.source: expected a name"),
    ],
)
def test_a_record_that_does_not_fit_is_named(tmp_path, noise_sample, record, message):
    write_changed(tmp_path, noise_sample(0), change=keep, record=record)
    text = "\n".join(faults_of(tmp_path))
    assert message in text and "'clip-0000'" in text


@pytest.mark.parametrize("member", ["mkv", "txt", "long.txt", "json"])
def test_a_required_member_that_lacks_is_named(tmp_path, noise_sample, member):
    write_changed(tmp_path, noise_sample(0), change=lambda members: members.pop(member))
    expected = "expected a video" if member == "mkv" else f"expected a member '{member}'"
    assert any(f"sample 'clip-0000': {expected}" in fault for fault in faults_of(tmp_path))


@pytest.mark.parametrize(
    ("record", "member", "message"),
    [
        ({"frames": 6}, "mkv", "expected (6, 16, 24), got (5, 16, 24)"),
        ({"width": 26}, "depth.mkv", "expected (5, 16, 26), got (5, 16, 24)"),
        ({"fps": 9.0}, "seg.mkv", "frames per second: expected 9, got 8"),
    ],
)
def test_decoding_finds_what_the_record_does_not_say(
    tmp_path, noise_sample, record, member, message
):
    write_changed(tmp_path, noise_sample(0), change=keep, record=record)
    assert faults_of(tmp_path) == []
    where = f"shard-000000.tar: sample 'clip-0000', member '{member}': "
    assert any(f.startswith(where) and message in f for f in faults_of(tmp_path, decode=True))


@pytest.mark.parametrize("member", ["mkv", "seg.mkv", "depth.mkv"])
def test_decoding_finds_what_is_no_video(tmp_path, noise_sample, member):
    write_changed(
        tmp_path, noise_sample(0), change=lambda members: members.update({member: b"no video" * 99})
    )
    assert faults_of(tmp_path) == []
    (fault,) = faults_of(tmp_path, decode=True)
    assert f"sample 'clip-0000', member '{member}': " in fault and "cannot be decoded" in fault


def test_a_key_in_two_shards_is_named(tmp_path, noise_sample):
    members = sample_members(noise_sample(0), rgb_codec="ffv1")
    stats = ClipStats.of(json.loads(members["json"]))
    entry = Entry(key="clip-0000", members=members)
    shards = [
        replace(write_shard(tmp_path / shard_name(i), [entry]), stats=stats) for i in range(2)
    ]
    write_manifest(tmp_path, shards)
    assert faults_of(tmp_path) == [
        "shard-000001.tar: sample 'clip-0000': expected every key once, it is in shard-000000.tar "
        "too"
    ]


def test_other_kinds_are_verified_without_the_rules_of_clips(tmp_path):
    entries = [Entry(key="a", members={"latent": b"1" * 1000}), Entry(key="b", members={})]
    shard = write_shard(tmp_path / shard_name(0), entries)
    write_manifest(tmp_path, [shard], kind="latents")
    assert faults_of(tmp_path, decode=True) == []
    write_over(tmp_path / shard_name(0), at=700, content=b"2")
    assert any("sample 'a', member 'latent': damaged" in fault for fault in faults_of(tmp_path))
