import hashlib
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from data_loaders import shard_files, transfer
from data_loaders.atomic_file import partial_of
from data_loaders.schema import DataError
from data_loaders.shard_files import cache_of, files_at
from data_loaders.shard_verify import verify
from data_loaders.shards import ShardIndex, write_shards
from data_loaders.transfer import TransportError


class Server:
    """A folder over HTTP, with faults; `requests` counts what was asked for."""

    def __init__(self, folder: Path) -> None:
        self.requests: list[str] = []
        self.faults: dict[str, list[str]] = {}
        self.pause = 0.0
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                name = self.path.rsplit("/", 1)[-1]
                server.requests.append(name)
                server.answer(self, folder / name, fault=server.next_fault(name))

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}/data"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,))
        self.thread.start()

    def next_fault(self, name):
        left = self.faults.get(name, [])
        return left.pop(0) if left else ""

    def answer(self, handler, path, *, fault):
        time.sleep(self.pause)
        if fault.isdigit() or not path.exists():
            handler.send_error(int(fault or 404))
            return
        content = path.read_bytes()
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        if fault == "cut":
            content = content[: len(content) // 2]
        elif fault == "changed":
            content = content[:-1] + bytes([content[-1] ^ 1])
        handler.wfile.write(content)

    def close(self):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@pytest.fixture
def folder(tmp_path, noise_sample):
    write_shards((noise_sample(i) for i in range(5)), tmp_path / "data", samples_per_shard=2)
    return tmp_path / "data"


@pytest.fixture
def server(folder, monkeypatch):
    monkeypatch.setattr(transfer, "_PAUSES", (0.0, 0.0, 0.0))
    running = Server(folder)
    yield running
    running.close()


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def whole_files(cache):
    return sorted(path.name for path in cache.iterdir() if path.suffix in (".tar", ".json"))


def test_an_address_is_read_like_a_folder(server, folder, cache, noise_sample):
    index = ShardIndex.open(server.address, cache_dir=cache)
    assert index.folder == server.address and len(index) == 5
    # Opening fetches the manifest alone.
    assert server.requests == ["manifest.json"] and not cache.exists()
    for i in (4, 0, 1):
        assert (index.read(i).rgb == noise_sample(i).rgb).all()
    assert sorted(server.requests[1:]) == sorted(
        f"shard-{i:06d}.{suffix}" for i in (0, 2) for suffix in ("tar", "index.json")
    )
    local = ShardIndex.open(folder)
    stored = index.sample(4)
    assert stored.path.read_bytes() == local.sample(4).path.read_bytes()
    # Another open of the same address finds the copies, and asks for the manifest again.
    server.requests.clear()
    ShardIndex.open(server.address, cache_dir=cache).read(4)
    assert server.requests == ["manifest.json"]


@pytest.mark.parametrize("fault", ["500", "503", "429", "cut", "changed"])
@pytest.mark.parametrize("name", ["shard-000000.tar", "shard-000000.index.json"])
def test_a_passing_fault_is_tried_again(server, cache, noise_sample, name, fault):
    index = ShardIndex.open(server.address, cache_dir=cache)
    server.faults = {name: [fault, fault]}
    assert index.read(0).key == "clip-0000"
    assert server.requests.count(name) == 3
    assert not list(cache.glob("*.partial"))


def test_a_manifest_is_tried_again(server, cache):
    server.faults = {"manifest.json": ["500", "cut"]}
    assert len(ShardIndex.open(server.address, cache_dir=cache)) == 5


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("500", "500"), ("cut", ""), ("changed", "expected sha256 [0-9a-f]{64}, got")],
)
def test_a_fault_that_stays_names_the_address_and_leaves_nothing(server, cache, fault, reason):
    index = ShardIndex.open(server.address, cache_dir=cache)
    server.faults = {"shard-000001.tar": [fault] * 9}
    message = rf"{server.address}/shard-000001\.tar: cannot be fetched \(tries: 4\): .*{reason}"
    with pytest.raises(TransportError, match=message):
        index.read(2)
    assert server.requests.count("shard-000001.tar") == 4
    assert [name for name in whole_files(cache) if name.endswith(".tar")] == []
    assert not list(cache.glob("*.partial"))
    # The next use begins anew.
    server.faults = {}
    assert index.read(2).key == "clip-0002"


@pytest.mark.parametrize(("fault", "reason"), [("404", "no such file"), ("403", "403")])
def test_what_is_not_there_is_not_asked_for_again(server, cache, fault, reason):
    server.faults = {"manifest.json": [fault]}
    with pytest.raises(TransportError, match=rf"cannot be fetched \(tries: 1\).*{reason}"):
        ShardIndex.open(server.address, cache_dir=cache)
    assert server.requests == ["manifest.json"]


def test_a_server_that_is_not_there_is_named(server, cache, monkeypatch):
    server.close()
    monkeypatch.setattr(server, "close", lambda: None)
    with pytest.raises(
        TransportError, match=rf"{server.address}/manifest\.json: cannot be fetched"
    ):
        ShardIndex.open(server.address, cache_dir=cache)


def test_a_full_cache_disk_is_not_tried_again(server, cache, monkeypatch):
    index = ShardIndex.open(server.address, cache_dir=cache)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shard_files.os, "fsync", full)
    with pytest.raises(TransportError, match=r"\(tries: 1\).*No space left"):
        index.read(0)
    assert whole_files(cache) == [] and not list(cache.glob("*.partial"))


def test_an_interrupted_download_leaves_nothing_that_counts(server, cache, monkeypatch):
    index = ShardIndex.open(server.address, cache_dir=cache)

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shard_files.os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            index.read(0)
    assert whole_files(cache) == [] and not list(cache.glob("*.partial"))
    # Nor does what a killed process left half done.
    cache.mkdir(exist_ok=True)
    name = f"shard-000000-{index.shards[0].sha256[:32]}.tar"
    left = partial_of(cache / name)
    left.write_bytes(b"half")
    assert index.read(0).key == "clip-0000"
    # It would fill the disk, attempt by attempt.
    assert not left.exists()


def test_changed_files_are_never_mixed_with_old_copies(server, folder, cache, noise_sample):
    old = ShardIndex.open(server.address, cache_dir=cache)
    old.read(0)
    write_shards((noise_sample(i) for i in range(10, 13)), folder, overwrite=True)
    assert ShardIndex.open(server.address, cache_dir=cache).read(0).key == "clip-0010"
    # The folder as it was opened: what is copied stays, what is not there any more is an error.
    assert old.read(0).key == "clip-0000"
    with pytest.raises(TransportError, match=r"shard-000001\..*cannot be fetched"):
        old.read(2)


def test_all_threads_that_want_a_file_wait_for_one_download(server, cache):
    server.pause = 0.1
    index = ShardIndex.open(server.address, cache_dir=cache)
    keys = []
    threads = [
        threading.Thread(target=lambda i=i: keys.append(index.read(i % 2).key)) for i in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) == 6
    assert server.requests.count("shard-000000.tar") == 1


READ_ONE = (
    "import sys; from pathlib import Path; from data_loaders.shards import ShardIndex; "
    "print(ShardIndex.open(sys.argv[1], cache_dir=Path(sys.argv[2])).read(0).key)"
)


def test_all_processes_that_want_a_file_wait_for_one_download(server, cache):
    server.pause = 0.3
    command = [sys.executable, "-c", READ_ONE, server.address, str(cache)]
    root = Path(shard_files.__file__).parents[1]
    readers = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) for _ in range(2)
    ]
    assert [reader.communicate(timeout=60)[0].strip() for reader in readers] == ["clip-0000"] * 2
    # Each asks for the manifest; of the files one copy is made.
    assert sorted(server.requests) == [
        "manifest.json",
        "manifest.json",
        "shard-000000.index.json",
        "shard-000000.tar",
    ]


def tars(cache):
    return {path.name[:12] for path in cache.glob("*.tar")}


def long_ago(cache, number, *, seconds):
    (path,) = cache.glob(f"shard-{number:06d}-*.tar")
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_the_least_recently_used_tars_make_room(server, folder, cache):
    limit = sum((folder / f"shard-{i:06d}.tar").stat().st_size for i in (0, 1))
    index = ShardIndex.open(server.address, cache_dir=cache, max_cache_bytes=limit)
    index.read(0)
    index.read(2)
    long_ago(cache, 0, seconds=1000)
    long_ago(cache, 1, seconds=2000)
    index.read(4)
    assert tars(cache) == {"shard-000000", "shard-000002"}
    # Indices are small and stay. What was evicted comes again.
    assert len(list(cache.glob("*.index.json"))) == 3
    long_ago(cache, 0, seconds=1000)
    assert index.read(2).key == "clip-0002"
    assert tars(cache) == {"shard-000001", "shard-000002"}


def test_a_tar_in_use_is_not_evicted(server, cache):
    index = ShardIndex.open(server.address, cache_dir=cache, max_cache_bytes=1)
    for i in (0, 2):
        index.read(i)
    assert tars(cache) == {"shard-000000", "shard-000001"}
    long_ago(cache, 0, seconds=1000)
    index.read(0)  # now it is in use again
    long_ago(cache, 1, seconds=1000)
    index.read(4)
    assert tars(cache) == {"shard-000000", "shard-000002"}


def test_a_tar_evicted_before_it_is_opened_comes_again(server, cache, monkeypatch):
    index = ShardIndex.open(server.address, cache_dir=cache)
    stored = index.sample(0)
    whole = type(index.files).tar
    calls = []

    def evicted_at_first(files, shard):
        path = whole(files, shard)
        calls.append(path)
        if len(calls) == 1:
            path.unlink()
        return path

    monkeypatch.setattr(type(index.files), "tar", evicted_at_first)
    assert stored.read_bytes("txt") == b"short 0"
    assert len(calls) == 2


def test_prefetching_fetches_in_the_background(server, cache, folder):
    index = ShardIndex.open(server.address, cache_dir=cache)
    index.files.prefetch([index.shards[2], index.shards[0], index.shards[0]])
    deadline = time.monotonic() + 20
    while tars(cache) != {"shard-000000", "shard-000002"} if cache.exists() else True:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    server.requests.clear()
    index.read(0)
    index.read(4)
    assert server.requests == []
    local = ShardIndex.open(folder)
    local.files.prefetch(local.shards)


def test_fetching_waits_until_all_is_here(server, cache, folder):
    index = ShardIndex.open(server.address, cache_dir=cache)
    index.files.fetch(index.shards[1:])
    assert tars(cache) == {"shard-000001", "shard-000002"}
    server.requests.clear()
    assert [index.read(i).key for i in (2, 4)] == ["clip-0002", "clip-0004"]
    assert server.requests == []
    server.faults = {"shard-000000.tar": ["404"]}
    with pytest.raises(TransportError, match=r"shard-000000\.tar: cannot be fetched"):
        index.files.fetch(index.shards)
    local = ShardIndex.open(folder)
    local.files.fetch(local.shards)


def test_a_failing_transport_is_no_damaged_clip(server, cache):
    index = ShardIndex.open(server.address, cache_dir=cache)
    stored = index.sample(0)
    server.faults = {"shard-000000.tar": ["500"] * 4}
    with pytest.raises(TransportError) as caught:
        stored.record()
    assert not isinstance(caught.value, DataError)
    cache.rename(cache.with_name("moved"))
    cache.write_text("no folder")
    with pytest.raises(TransportError, match=r"shard-000000\.tar: no copy in"):
        stored.record()


def flip_last_half(path):
    content = path.read_bytes()
    half = len(content) // 2
    path.write_bytes(content[:half] + bytes(byte ^ 1 for byte in content[half:]))


def test_a_copy_that_changed_is_fetched_again(server, cache):
    index = ShardIndex.open(server.address, cache_dir=cache)
    whole = index.sample(1).rgb_file()
    (copy,) = cache.glob("*.tar")
    flip_last_half(copy)
    assert index.sample(1).rgb_file() == whole
    assert server.requests.count("shard-000000.tar") == 2


def test_damage_behind_the_address_is_not_fetched_again(server, cache):
    index = ShardIndex.open(server.address, cache_dir=cache)
    stored = index.sample(0)
    member = replace(stored.members["json"], crc32=1)
    wrong = replace(stored, members={**stored.members, "json": member})
    with pytest.raises(DataError, match=r"sample 'clip-0000', member 'json': damaged"):
        wrong.record()
    assert server.requests.count("shard-000000.tar") == 1


def test_verify_reads_what_the_server_has(server, cache, folder):
    index = ShardIndex.open(server.address, cache_dir=cache)
    index.files.fetch(index.shards)
    kept = sorted(cache.iterdir())
    flip_last_half(folder / "shard-000001.tar")
    reports = list(verify(files_at(server.address, cache_dir=cache, max_cache_bytes=1)))
    assert [report.name for report in reports if report.faults] == ["shard-000001.tar"]
    assert "expected sha256" in reports[1].faults[0]
    assert sorted(cache.iterdir()) == kept


def test_verify_keeps_one_shard_at_a_time(server, cache):
    most = 0
    for _ in verify(files_at(server.address, cache_dir=cache)):
        most = max(most, len(list(cache.glob("verify-*/*.tar"))))
    assert most == 0 and list(cache.iterdir()) == []


def test_a_folder_may_have_a_colon(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    folder.rename("run:1")
    assert ShardIndex.open("run:1").read(0).key == "clip-0000"
    with pytest.raises(DataError, match="expected a folder that exists"):
        ShardIndex.open("run:2")


def test_a_failed_prefetch_is_logged_and_harmless(server, cache, caplog):
    index = ShardIndex.open(server.address, cache_dir=cache)
    server.faults = {"shard-000000.index.json": ["404"]}
    index.files.prefetch(index.shards[:1])
    deadline = time.monotonic() + 20
    while "prefetch: " not in caplog.text:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert index.read(0).key == "clip-0000"


def test_other_file_systems_serve_too(folder, cache, noise_sample):
    memory = fsspec.filesystem("memory")
    for path in folder.iterdir():
        memory.pipe_file(f"/bucket/{path.name}", path.read_bytes())
    index = ShardIndex.open("memory://bucket", cache_dir=cache)
    assert [index.read(i).key for i in range(5)] == [noise_sample(i).key for i in range(5)]
    memory.rm("/bucket", recursive=True)
    with pytest.raises(TransportError, match=r"memory://bucket/manifest\.json.*no such file"):
        ShardIndex.open("memory://bucket", cache_dir=cache)


def test_a_file_address_is_the_folder(folder):
    index = ShardIndex.open(f"file://{folder}")
    assert index.folder == folder and index.read(1).key == "clip-0001"


@pytest.mark.parametrize(
    ("address", "package"),
    [("s3://b/x", "s3fs"), ("gs://b/x", "gcsfs"), ("az://b/x", "adlfs"), ("http://h/x", "aiohttp")],
)
def test_a_missing_package_is_named(address, package, monkeypatch, cache):
    def missing(scheme, **_):
        raise ImportError(f"Install something for {scheme}")

    monkeypatch.setattr(transfer.fsspec, "filesystem", missing)
    with pytest.raises(DataError, match=f"needs {package}: pip install {package}$"):
        ShardIndex.open(address, cache_dir=cache)


@pytest.mark.parametrize("place", ["pipe:rm -rf x", "PIPE://x", "ftp://h/x", "memory://a::pipe:x"])
def test_other_schemes_are_refused_before_anything_is_touched(place, monkeypatch):
    monkeypatch.setattr(transfer.fsspec, "filesystem", lambda *_, **__: pytest.fail("touched"))
    with pytest.raises(
        DataError, match=r"expected a folder that exists or an address of file://, http://"
    ):
        ShardIndex.open(place)


def test_the_cache_lies_where_the_environment_says(monkeypatch):
    address = "https://host/data"
    end = hashlib.sha256(address.encode()).hexdigest()[:16]
    monkeypatch.delenv("UDPDIFF_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_of(address) == Path.home() / ".cache" / "udpdiff" / "shards" / end
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_of(address) == Path("/xdg/udpdiff/shards") / end
    monkeypatch.setenv("UDPDIFF_CACHE", "/own")
    assert cache_of(address) == Path("/own/shards") / end
    assert cache_of(address) != cache_of("https://host/other")


def test_an_impossible_limit_is_refused():
    with pytest.raises(DataError, match="max_cache_bytes: expected None or a number > 0, got 0"):
        files_at("https://host/x", max_cache_bytes=0)
