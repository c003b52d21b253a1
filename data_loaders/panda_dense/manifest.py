"""The rows of all stages as one table: `manifest.parquet`, one row per clip."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_loaders.atomic_file import atomic_file
from data_loaders.panda_dense.steps import made_by
from data_loaders.panda_dense.store import Row, Store

MANIFEST = "manifest.parquet"

_CLIPS_PER_GROUP = 8192
"""Of a row group of the file: what is in memory at once."""


def joined_rows(store: Store, stages: Sequence[str]) -> Iterator[dict[str, Any]]:
    """One flat record per clip, in the order of ingest.

    Args:
        store: The data set in the making.
        stages: All of them in their order; the first one says which clips there are.

    Yields:
        `key`; `keep` (True: through all stages so far); `stage`, the last one that looked at it;
        `reject_reason` and `reject_detail` of the one that did not keep it; `failed`; then of each
        stage `STAGE.COLUMN`, `STAGE.seconds`, and what made its labels, `STAGE.backend`, `.model`,
        `.revision`, `.version`, `.license`.
    """
    makers = {stage: made_by(store, stage) for stage in stages}
    facts = {stage: maker.as_row() for stage, maker in makers.items() if maker is not None}
    for part in store.whole_parts(stages[0]):
        found = {stage: store.read(stage, part) for stage in stages}
        for key in found[stages[0]]:
            rows = {stage: rows[key] for stage, rows in found.items() if key in rows}
            yield _join(key, rows, facts=facts)


def _join(
    key: str, rows: Mapping[str, Row], *, facts: Mapping[str, Mapping[str, str]]
) -> dict[str, Any]:
    record: dict[str, Any] = {"key": key, "keep": True, "stage": "", "failed": False}
    record |= {"reject_reason": "", "reject_detail": ""}
    for stage, row in rows.items():
        # What lies behind a rejection is of an earlier run, with other thresholds.
        if not record["keep"]:
            break
        record["stage"] = stage
        record["keep"] = row.status == "kept"
        if row.status in ("dropped", "failed"):
            record |= {"reject_reason": row.reason, "reject_detail": row.detail}
            record["failed"] = row.status == "failed"
        record |= {f"{stage}.{name}": value for name, value in row.columns.items()}
        if row.is_final:
            record[f"{stage}.seconds"] = row.seconds
        if row.status == "kept":
            record |= {f"{stage}.{name}": value for name, value in facts.get(stage, {}).items()}
    return record


def write_manifest_table(store: Store, stages: Sequence[str]) -> Path:
    """Write the table, whole or not at all.

    Args:
        store: The data set in the making.
        stages: See `joined_rows`.

    Raises:
        OSError: The disk is full or not writable.
    """
    path = store.root / MANIFEST
    schema = _schema(joined_rows(store, stages))
    with atomic_file(path) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        batch: list[dict[str, Any]] = []
        for record in joined_rows(store, stages):
            batch.append(record)
            if len(batch) == _CLIPS_PER_GROUP:
                writer.write_table(pa.Table.from_pylist(batch, schema=schema))
                batch.clear()
        if batch:
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))
    return path


def read_manifest_table(path: Path) -> list[dict[str, Any]]:
    """The rows of a manifest, without the columns that a row lacks."""
    rows = pq.read_table(path).to_pylist()
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def _schema(records: Iterator[dict[str, Any]]) -> pa.Schema:
    """Types of all columns there are: rows differ, and the first ones need not have them all."""
    kinds: dict[str, pa.DataType] = {}
    for record in records:
        for name, value in record.items():
            kind = _kind(value)
            known = kinds.get(name)
            if known is None or known in (pa.null(), pa.list_(pa.null())):
                kinds[name] = kind
            elif known == pa.int64() and kind == pa.float64():
                kinds[name] = kind
            elif known == pa.list_(pa.int64()) and kind == pa.list_(pa.float64()):
                kinds[name] = kind
    return pa.schema([pa.field(name, kind) for name, kind in kinds.items()])


def _kind(value: Any) -> pa.DataType:
    if isinstance(value, list | tuple):
        kinds = [_kind(item) for item in value]
        return pa.list_(pa.float64() if pa.float64() in kinds else kinds[0] if kinds else pa.null())
    return pa.infer_type([value])
