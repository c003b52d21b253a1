"""Files written one tensor at a time, read by the libraries that own the formats."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from sat_udpdiff.weights.pickles import load_pickle
from sat_udpdiff.weights.sources import read_pickle, read_safetensors, read_sharded
from sat_udpdiff.weights.stored import StoredTensor, cast, chunk, join, read_all, store, store_all
from sat_udpdiff.weights.write import write_pickle, write_safetensors, write_sharded


def make_state():
    """Every dtype, odd sizes and a scalar."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"b.weight": (7, 5), "a": (3,), "scalar": (), "c.deep.weight": (2, 3, 1, 4)}
    return {
        f"{name}.{dtype}": torch.randn(shape, generator=generator).to(getattr(torch, dtype))
        for name, shape in shapes.items()
        for dtype in ("float32", "bfloat16", "float16")
    }


def equal(a, b):
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a
    )


def test_safetensors_reads_what_was_streamed(tmp_path):
    state, path = make_state(), tmp_path / "x.safetensors"
    write_safetensors(path, store_all(state), metadata={"step": "7"})
    assert equal(load_file(path), state)
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "pt", "step": "7"}
    assert equal(read_all(read_safetensors(path)), state)
    assert path.stat().st_mode & 0o044


def test_equal_states_make_equal_files(tmp_path):
    state = make_state()
    write_safetensors(tmp_path / "a", store_all(state))
    write_safetensors(tmp_path / "b", store_all(dict(reversed(state.items()))))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("mmap", [True, False])
def test_torch_reads_what_was_streamed(tmp_path, mmap):
    state, path = make_state(), tmp_path / "x.pt"
    write_pickle(path, store_all(state), under="module")
    loaded = torch.load(path, weights_only=True, mmap=mmap, map_location="cpu")
    assert list(loaded) == ["module"]
    assert equal(loaded["module"], state)
    assert equal(read_all(read_pickle(path)), state)


def test_shards_are_those_of_diffusers(tmp_path):
    state = make_state()
    write_sharded(tmp_path, store_all(state), stem="model", max_shard_bytes=150)
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in state.values())
    assert all(path.stat().st_size < 150 + 700 for path in tmp_path.glob("*.safetensors"))
    assert equal(read_all(read_sharded(tmp_path, stem="model")), state)


def test_one_file_needs_no_index(tmp_path):
    write_sharded(tmp_path, store_all(make_state()), stem="model")
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("write", [write_safetensors, lambda p, s: write_pickle(p, s, under="x")])
def test_a_failure_leaves_the_older_file_and_nothing_else(tmp_path, write):
    path = tmp_path / "x"
    path.write_bytes(b"older")

    def fail():
        raise OSError("the disk is gone")

    state = store_all(make_state())
    state["late"] = StoredTensor(shape=(2,), dtype=torch.float32, read=fail)
    with pytest.raises(OSError, match="the disk is gone"):
        write(path, state)
    assert path.read_bytes() == b"older"
    assert [file.name for file in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("write", [write_safetensors, lambda p, s: write_pickle(p, s, under="x")])
def test_a_tensor_that_is_not_what_it_said_is_named(tmp_path, write):
    state = store_all(make_state())
    state["odd.weight"] = StoredTensor(
        shape=(2, 2), dtype=torch.float32, read=lambda: torch.zeros(4)
    )
    with pytest.raises(ValueError, match=r"odd\.weight: expected float32 \(2, 2\), got .* \(4,\)"):
        write(tmp_path / "x", state)
    assert not list(tmp_path.iterdir())


def test_casting_is_that_of_torch_and_late():
    asked = []

    def read():
        asked.append(1)
        return torch.tensor([1.0, 1e-3, 3.14159])

    stored = StoredTensor(shape=(3,), dtype=torch.float32, read=read)
    narrow = cast("x", stored, torch.bfloat16)
    assert not asked
    assert narrow.num_bytes == 6
    assert torch.equal(narrow.read(), read().bfloat16())
    assert cast("x", stored, torch.float32) is stored


def test_a_number_that_leaves_the_range_is_named():
    large = store(torch.tensor([1.0, -7e4]))
    with pytest.raises(ValueError, match=r"time_embed\.0: its largest number 7e\+04 does not fit"):
        cast("time_embed.0", large, torch.float16).read()
    assert cast("x", large, torch.bfloat16).read().isfinite().all()
    # What was infinite before is not ours to refuse.
    cast("x", store(torch.tensor([float("inf")])), torch.float16).read()


def test_parts_and_their_whole():
    whole = torch.arange(24.0).view(6, 4)
    parts = chunk(store(whole), 3)
    assert [part.shape for part in parts] == [(2, 4)] * 3
    assert torch.equal(join(parts).read(), whole)
    assert torch.equal(join([parts[2], parts[0]]).read(), whole[[4, 5, 0, 1]])
    with pytest.raises(ValueError, match="expected a first dim that 4 divides"):
        chunk(store(whole), 4)
    with pytest.raises(ValueError, match="expected tensors of one dtype and width"):
        join([store(whole), store(whole.bfloat16())])


def test_full_disks_are_met_before_the_first_number(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    for write in (write_safetensors, lambda p, s: write_pickle(p, s, under="x")):
        with pytest.raises(OSError, match="No space left"):
            write(tmp_path / "x", store_all(make_state()))
    assert not list(tmp_path.iterdir())


def test_a_pickle_of_older_torch_opens(tmp_path):
    path = tmp_path / "old.pt"
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    assert torch.equal(load_pickle(path)["a"], torch.ones(2))
