"""The kept rows as one table: Parquet, JSON lines, or a saved Hugging Face dataset."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from tamis.exports.values import jsonable

if TYPE_CHECKING:
    from pathlib import Path

    from tamis.exports.rows import KeptRows


def write_parquet(rows: KeptRows, path: Path) -> None:
    """A Parquet file; each batch is a row group."""
    with path.open("xb") as stream, pq.ParquetWriter(stream, rows.schema) as writer:
        for batch in rows.batches():
            writer.write_table(batch)


def write_jsonl(rows: KeptRows, path: Path) -> None:
    """One JSON object a line, in UTF-8, with values as `jsonable` makes them."""
    with path.open("x", encoding="utf-8", newline="\n") as stream:
        for row in rows.each():
            stream.write(json.dumps(jsonable(row), ensure_ascii=False, allow_nan=False) + "\n")


def write_hf(rows: KeptRows, path: Path, fingerprint: str) -> None:
    """A folder that `datasets.load_from_disk` reads; its writer is given the rows mapped from a file beside it."""
    import datasets

    ordered = path.with_name("ordered.arrow")
    with ordered.open("xb") as stream, pa.ipc.new_stream(stream, rows.schema) as writer:
        for batch in rows.batches():
            writer.write_table(batch)
    table = pa.ipc.open_stream(pa.memory_map(str(ordered))).read_all()
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        datasets.Dataset(table, fingerprint=fingerprint).save_to_disk(str(path))
    finally:
        if shown:
            datasets.enable_progress_bars()
