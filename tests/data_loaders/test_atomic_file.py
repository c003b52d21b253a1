"""Files that are whole or not there."""

import os
import stat

import pytest

from data_loaders.atomic_file import atomic_file, partial_of, partials_of, write_atomically
from data_loaders.shard_format import OUR_FILES
from data_loaders.shard_writer import claim_folder


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "manifest.json"
    with atomic_file(path) as ours:
        ours.write(b"ours")
        ours.flush()
        with atomic_file(path) as theirs:
            theirs.write(b"their longer one")
        assert path.read_bytes() == b"their longer one"
    assert path.read_bytes() == b"ours"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_keeps_the_older_file(tmp_path):
    path = tmp_path / "a.tar"
    write_atomically(path, b"old")
    with pytest.raises(KeyError), atomic_file(path) as file:
        file.write(b"new")
        raise KeyError
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_the_new_name_is_flushed_too(tmp_path, monkeypatch):
    synced = []

    def fsync(descriptor):
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        synced.append(sorted(p.name for p in tmp_path.iterdir()) if is_folder else "file")

    monkeypatch.setattr(os, "fsync", fsync)
    write_atomically(tmp_path / "a", b"")
    assert synced == ["file", ["a"]]


@pytest.mark.parametrize("name", ["manifest.json", "shard-000001.tar", "shard-000001.index.json"])
def test_what_killed_writers_left_is_known_as_ours(tmp_path, name):
    path = tmp_path / name
    left = partial_of(path)
    assert left.name.endswith(".partial") and OUR_FILES.fullmatch(left.name)
    left.touch()
    (tmp_path / f"{name}.partial").touch()
    other = tmp_path / f"{name}.mine.partial"
    other.touch()
    assert left in partials_of(path)
    claim_folder(tmp_path, overwrite=True)
    assert list(tmp_path.iterdir()) == [other]
