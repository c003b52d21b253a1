"""Rows of clips and the table that joins them."""

from pathlib import Path

import pytest

from data_loaders.panda_dense.manifest import (
    joined_rows,
    read_manifest_table,
    write_manifest_table,
)
from data_loaders.panda_dense.store import Row, Store
from data_loaders.schema import DataError

STAGES = ("ingest", "filter", "depth")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    found = Store(root=tmp_path)
    for part in range(2):
        keys = [f"k{part}{i}" for i in range(3)]
        found.write("ingest", part, [Row(key=k, status="kept", columns={"url": k}) for k in keys],
                    is_whole=True)  # fmt: skip
        rows = [
            Row(key=keys[0], status="kept", seconds=1.5, columns={"motion": 1, "areas": []}),
            Row(key=keys[1], status="dropped", reason="too dark", detail="3 %",
                columns={"motion": 0.5, "areas": [1, 0.5]}),
            Row(key=keys[2], status="failed", reason="error", detail="OSError", attempts=3),
        ]  # fmt: skip
        found.write("filter", part, rows, is_whole=True)
    # Of an earlier run, with other thresholds.
    found.write("depth", 0, [Row(key="k01", status="kept", columns={"low": 0.0})], is_whole=False)
    return found


def test_rows_come_back_and_only_whole_parts_count(store: Store) -> None:
    assert store.whole_parts("filter") == [0, 1]
    assert store.whole_parts("depth") == []
    assert store.whole_parts("caption") == []
    assert store.read("filter", 0)["k01"].detail == "3 %"
    assert list(store.read("filter", 1)) == ["k10", "k11", "k12"]
    assert store.read("depth", 1) == {}


def test_a_part_is_open_or_whole_never_both(store: Store) -> None:
    rows = list(store.read("filter", 0).values())
    store.reopen("filter", 0)
    assert store.whole_parts("filter") == [1]
    assert list(store.read("filter", 0).values()) == rows
    store.write("filter", 0, rows, is_whole=True)
    assert sorted(path.name for path in store.folder("filter").iterdir()) == [
        "part-000000.jsonl",
        "part-000001.jsonl",
    ]


def test_sweeping_removes_what_killed_writers_left(store: Store) -> None:
    store.write_file("filter", 0, "k00.png", b"x")
    for left in (
        store.file("filter", 0, "k00.png.0123456789ab.partial"),
        store.folder("filter") / "part-000000.jsonl.0123456789ab.partial",
    ):
        left.write_bytes(b"half")
    store.sweep("filter", 0)
    assert sorted(path.name for path in store.folder("filter").rglob("*")) == [
        "k00.png",
        "part-000000",
        "part-000000.jsonl",
        "part-000001.jsonl",
    ]


def test_a_damaged_file_is_named(store: Store) -> None:
    path = store.rows_file("filter", 1, is_whole=True)
    path.write_text(path.read_text() + '{"key": 1, "stat\n')
    with pytest.raises(DataError, match=r"part-000001.jsonl line 4: expected a row"):
        store.read("filter", 1)


def test_the_table_joins_the_stages_and_ends_at_a_rejection(store: Store) -> None:
    rows = {row["key"]: row for row in joined_rows(store, STAGES)}
    assert list(rows) == ["k00", "k01", "k02", "k10", "k11", "k12"]
    assert rows["k00"]["keep"] and rows["k00"]["filter.seconds"] == 1.5
    assert not rows["k01"]["keep"] and rows["k01"]["stage"] == "filter"
    assert rows["k01"]["reject_reason"] == "too dark" and not rows["k01"]["failed"]
    assert "depth.low" not in rows["k01"]
    assert rows["k02"]["failed"]


def test_the_table_as_a_file(store: Store) -> None:
    table = read_manifest_table(write_manifest_table(store, STAGES))
    rows = {row["key"]: row for row in table}
    assert len(rows) == 6
    # An integer in one row and a fraction in another: a column has one type.
    assert rows["k00"]["filter.motion"] == 1.0
    assert rows["k00"]["filter.areas"] == []
    assert rows["k01"]["filter.areas"] == [1.0, 0.5]
    assert rows["k02"]["reject_detail"] == "OSError"
    assert "filter.motion" not in rows["k02"]
