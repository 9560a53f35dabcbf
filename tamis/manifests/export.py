"""The kept rows as a file that other tools read."""

from __future__ import annotations

import base64
import json
import math
import os
import secrets
import shutil
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from tamis.errors import DataError, OutputError, RecipeError
from tamis.manifests.atomic import remove

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np
    import pyarrow as pa

    from tamis.manifests.reader import Manifest

ID = "tamis_id"
WEIGHT = "tamis_weight"
RANK = "tamis_rank"


def export(manifest: Manifest, source_rows: Callable[[np.ndarray], pa.Table], to: str, out: Path) -> Path:
    """Write the kept rows in rank order.

    Args:
        manifest: Which rows, in which order, with which weight.
        source_rows: From int64[k] row numbers of the dataset to these rows of it, in that order.
        to: ``parquet``, ``jsonl`` or ``hf`` (a folder that `datasets.load_from_disk` reads): the source's
            columns and `tamis_id`, `tamis_weight` and `tamis_rank`; or ``ids``: one sample id a line, in UTF-8.
        out: A path where nothing is yet; it appears whole or not at all.

    Returns:
        `out`. In JSON lines times are ISO 8601 text, bytes base64, and NaN and infinities null.

    Raises:
        RecipeError: There is no such format.
        DataError: The source has columns of the added names, or an id has a line break (``ids``).
        OutputError: There is something at `out`, or it cannot be written.
    """
    write = _WRITERS.get(to)
    if write is None:
        raise RecipeError(f"export to {to!r} was asked for; allowed are {', '.join(_WRITERS)}")
    if os.path.lexists(out):
        raise OutputError(f"{out} exists and is not overwritten: choose another path, or remove it first")
    temporary = out.with_name(f".{out.name[:200]}.{secrets.token_hex(8)}.tmp")
    try:
        write(manifest, source_rows, temporary)
        temporary.rename(out)
    except OSError as error:
        raise OutputError(
            f"cannot write {out}: {error.strerror or error}; free space or choose another path, then run again"
        ) from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            remove(temporary)
    return out


def _with_weights(manifest: Manifest, source_rows: Callable[[np.ndarray], pa.Table]) -> pa.Table:
    table = source_rows(manifest.select["row"].to_numpy())
    taken = [name for name in (ID, WEIGHT, RANK) if name in table.column_names]
    if taken:
        raise DataError(f"the source has the columns {taken}, which the export adds: rename them first")
    if table.num_rows != manifest.select.num_rows:
        raise DataError(f"{manifest.select.num_rows} rows were asked of the source, {table.num_rows} came")
    table = table.append_column(ID, manifest.select["sample_id"])
    table = table.append_column(WEIGHT, manifest.select["weight"])
    return table.append_column(RANK, manifest.select["rank"])


def _write_parquet(manifest: Manifest, source_rows: Callable[[np.ndarray], pa.Table], path: Path) -> None:
    pq.write_table(_with_weights(manifest, source_rows), path)


def _write_jsonl(manifest: Manifest, source_rows: Callable[[np.ndarray], pa.Table], path: Path) -> None:
    table = _with_weights(manifest, source_rows)
    with path.open("x", encoding="utf-8", newline="\n") as stream:
        for batch in table.to_batches(max_chunksize=4096):
            for row in batch.to_pylist():
                stream.write(json.dumps(_jsonable(row), ensure_ascii=False, allow_nan=False) + "\n")


def _write_ids(manifest: Manifest, _: Callable[[np.ndarray], pa.Table], path: Path) -> None:
    with path.open("x", encoding="utf-8", newline="\n") as stream:
        for sample_id in manifest.select["sample_id"].to_pylist():
            if "\n" in sample_id or "\r" in sample_id:
                raise DataError(f"the id {sample_id!r} has a line break: export to parquet or jsonl instead")
            stream.write(sample_id + "\n")


def _write_hf(manifest: Manifest, source_rows: Callable[[np.ndarray], pa.Table], path: Path) -> None:
    import datasets

    table = _with_weights(manifest, source_rows)
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        datasets.Dataset(table, fingerprint=manifest.subset_id[:16]).save_to_disk(str(path))
    finally:
        if shown:
            datasets.enable_progress_bars()


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_jsonable(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if value is None or isinstance(value, bool | int | str):
        return value
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


_WRITERS = {"parquet": _write_parquet, "jsonl": _write_jsonl, "ids": _write_ids, "hf": _write_hf}
