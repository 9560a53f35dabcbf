"""Ingest: read the sources block by block, check ids, hash every sample, set bad rows aside."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tamis.errors import DataError, DatasetMismatchError
from tamis.pipelines.formats import LONE_SURROGATE, NOT_UTF8
from tamis.pipelines.node import Inputs, Node, Output, Task
from tamis.pipelines.plan import Add, Flow
from tamis.pipelines.sources import SourceFile, check_types, read_rows, stamp
from tamis.pipelines.state import KEPT, QUARANTINED, effect

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tamis.pipelines.recipe import Recipe

HASH = pa.binary(16)
_SHOWN = 10


def expand(recipe: Recipe, sources: tuple[SourceFile, ...], rows: int, add: Add) -> Flow:
    """Add one node a block and the index over all of them; `rows` is how many rows of the sources count."""
    blocks: list[Node] = []
    counts: list[int] = []
    left = rows
    for source in sources:
        usable = min(source.rows, left)
        left -= usable
        counts.append(usable)
        for start in range(0, usable, recipe.block_rows):
            params = {
                "sha256": source.sha256,
                "format": source.format,
                "start": start,
                "stop": min(start + recipe.block_rows, usable),
                "fields": recipe.dataset.fields,
                "max_text_bytes": recipe.max_text_bytes,
            }
            blocks.append(add("ingest.block", params, {}, part=len(blocks), hints={"source": source}))
    params = {
        "file_rows": counts,
        "has_id": recipe.dataset.id is not None,
        "max_bad_fraction": recipe.max_bad_fraction,
        "label": recipe.dataset.label is not None,
    }
    hints = {"files": [source.path for source in sources], "id": recipe.dataset.id}
    index = add("ingest.index", params, {"blocks": blocks}, hints=hints)
    total = sum(source.rows for source in sources)
    return Flow(rows, total, tuple(blocks), index, index, (index,), dataset=recipe.dataset)


def content_hashes(table: pa.Table, roles: tuple[str, ...]) -> pa.Array:
    """Hash what each sample is: 128 bits of sha256 over its canonical content.

    Args:
        table: Columns named by role: `text` (string), `vectors` (lists of numbers), `label` (string).
        roles: The roles that count, in the order hashed. The id is never one of them.

    Returns:
        fixed_size_binary(16)[rows].
    """
    columns = [_encoded(table[role].combine_chunks(), role) for role in roles]
    out = []
    for parts in zip(*columns, strict=True):
        hasher = hashlib.sha256()
        for part in parts:
            # The length keeps ("ab", "c") apart from ("a", "bc"), and null apart from empty.
            hasher.update(b"-" if part is None else len(part).to_bytes(8, "little") + part)
        out.append(hasher.digest()[:16])
    return pa.array(out, HASH)


def _encoded(column: pa.Array, role: str) -> list[bytes | None]:
    if role == "vectors":
        return [None if item is None else np.asarray(item, np.float64).tobytes() for item in column.to_pylist()]
    return [None if item is None else item.encode("utf-8") for item in column.to_pylist()]


def sample_table(table: pa.Table, fields: Mapping[str, str]) -> pa.Table:
    """Rename the sources' columns to their roles, with ids, labels and texts as strings."""
    columns = {role: table[name].combine_chunks() for role, name in fields.items()}
    return pa.table(
        {role: column if role == "vectors" else column.cast(pa.large_string()) for role, column in columns.items()}
    )


def block(params: Mapping[str, Any], inputs: Inputs) -> Output:
    """Read one block of one source file: ids, hashes, text, label, and what is wrong with each row."""
    source: SourceFile = inputs.hints["source"]
    fields: dict[str, str] = params["fields"]
    raw, undecodable = read_rows(source, list(dict.fromkeys(fields.values())), params["start"], params["stop"])
    if stamp(source.location) != source.stamp:
        raise DatasetMismatchError(f"{source.location} has changed since the run began: leave it alone, and run again")
    check_types(source, raw, fields)  # a JSON column has a type in each block
    table = sample_table(raw, fields)
    n = table.num_rows
    roles = tuple(role for role in ("text", "vectors", "label") if role in fields)
    problem = np.full(n, "", dtype=object)
    if "label" in fields:
        problem[_mask(pc.is_null(table["label"]))] = "label is null"
    if "vectors" in fields:
        problem[_mask(pc.is_null(table["vectors"]))] = "vector is null"
    if "text" in fields:
        text = table["text"]
        problem[_mask(pc.equal(pc.utf8_trim_whitespace(text), ""))] = "text is empty"
        problem[_mask(pc.greater(pc.binary_length(text), params["max_text_bytes"]))] = "text is too long"
        problem[_mask(pc.is_null(text))] = "text is null"
    problem[undecodable == NOT_UTF8] = "not valid UTF-8"
    problem[undecodable == LONE_SURROGATE] = "lone surrogate in a JSON string"
    bad = pa.array(problem != "")
    payload = tuple(role for role in roles if role != "label")
    hashes = {"content_hash": content_hashes(table, roles), "payload_hash": content_hashes(table, payload)}
    if "text" in fields:  # no stage may read a bad row's text, which can be huge
        table = table.set_column(
            table.column_names.index("text"),
            "text",
            pc.if_else(bad, pa.scalar("", pa.large_string()), table["text"].combine_chunks()),
        )
    data = {
        "source_row": pa.array(np.arange(params["start"], params["start"] + n), pa.int64()),
        **hashes,
        "problem": pc.if_else(bad, pa.array(problem.tolist(), pa.string()), pa.scalar(None, pa.string())),
        **{role: table[role] for role in fields},
    }
    return Output(pa.table(data), {"block_rows": n, "bad": int(np.count_nonzero(problem != ""))})


def _mask(condition: pa.Array | pa.ChunkedArray) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """A boolean column as numpy; null counts as false."""
    return np.asarray(pc.fill_null(condition, False), dtype=bool)


def index(params: Mapping[str, Any], inputs: Inputs) -> Output:
    """Put the blocks' ids together, prove them unique, and set the bad rows aside."""
    tables = [
        inputs.open(item).select(
            [
                c
                for c in ("id", "source_row", "content_hash", "payload_hash", "problem", "label")
                if c in _names(inputs, item)
            ]
        )
        for item in inputs.all("blocks")
    ]
    if not tables:
        raise DataError(f"the dataset has 0 rows (files: {', '.join(inputs.hints['files'])}); give at least one row")
    table = pa.concat_tables(tables).combine_chunks()
    n = table.num_rows
    source = np.repeat(np.arange(len(params["file_rows"]), dtype=np.int32), params["file_rows"])
    places = _Places(inputs.hints["files"], source, table["source_row"].to_numpy())
    hashes = table["content_hash"].combine_chunks()
    ids = _checked_ids(table["id"], places, str(inputs.hints["id"])) if params["has_id"] else _ids_from_hashes(hashes)
    order = np.empty(n, np.int64)
    order[
        pc.sort_indices(pa.table({"hash": hashes, "id": ids}), [("hash", "ascending"), ("id", "ascending")]).to_numpy()
    ] = np.arange(n)
    bad = _mask(pc.is_valid(table["problem"]))
    if np.count_nonzero(bad) > params["max_bad_fraction"] * n:
        problems = table["problem"].to_pylist()
        shown = "; ".join(f"{places(row)}: {problems[row]}" for row in np.flatnonzero(bad)[:_SHOWN])
        raise DataError(
            f"{np.count_nonzero(bad)} of {n} rows are bad, more than max_bad_fraction "
            f"{params['max_bad_fraction']} allows: "
            f"{shown}. Mend them, or raise max_bad_fraction to have them quarantined"
        )
    columns = {
        "source": pa.array(source, pa.int32()),
        "source_row": table["source_row"].combine_chunks(),
        "sample_id": ids,
        "content_hash": hashes,
        "payload_hash": table["payload_hash"].combine_chunks(),
        "order": pa.array(order, pa.int64()),
    }
    facts: dict[str, Any] = {"rows": n, "quarantined": int(np.count_nonzero(bad))}
    if params["label"]:
        labels = pc.if_else(pa.array(bad), pa.scalar(None, pa.large_string()), table["label"].combine_chunks())
        classes = sorted(pc.unique(labels).drop_null().to_pylist())
        columns["label"] = pc.index_in(labels, pa.array(classes, pa.large_string())).cast(pa.int32())
        facts["classes"] = classes
    decision = np.where(bad, QUARANTINED, KEPT).astype(np.int8)
    return Output(effect(np.arange(n), decision, table["problem"].to_pylist(), **columns), facts)


def _names(inputs: Inputs, item: Any) -> list[str]:
    return list(inputs.open(item).column_names)


class _Places:
    """Says where a row of the dataset lies in its file."""

    def __init__(self, files: list[str], source: Any, source_row: Any) -> None:
        self.files, self.source, self.source_row = files, source, source_row

    def __call__(self, row: int) -> str:
        return f"{self.files[self.source[row]]} row {self.source_row[row]}"


def _checked_ids(column: pa.ChunkedArray, places: _Places, name: str) -> pa.Array:
    ids = column.combine_chunks()
    nulls = np.flatnonzero(_mask(pc.is_null(ids)))
    if len(nulls):
        shown = "; ".join(places(row) for row in nulls[:_SHOWN])
        raise DataError(
            f"{len(nulls)} rows have no id in column {name!r}: {shown}. Every row needs one; without an id "
            "column the content hash is the id"
        )
    if pc.count_distinct(ids).as_py() < len(ids):
        order = pc.sort_indices(ids).to_numpy()
        ranked = ids.take(pa.array(order))
        same = np.flatnonzero(_mask(pc.equal(ranked[1:], ranked[:-1])))
        shown = "; ".join(
            f"{ranked[int(i)].as_py()!r} at {places(order[i])} and {places(order[i + 1])}" for i in same[:_SHOWN]
        )
        raise DataError(f"{len(same)} ids in column {name!r} are duplicates: {shown}. Ids must be unique")
    return ids.cast(pa.string()) if ids.nbytes < 2**31 else ids


def _ids_from_hashes(hashes: pa.Array) -> pa.Array:
    """Content hash as id; the second and later rows of equal content get a counter."""
    seen: dict[bytes, int] = {}
    ids = []
    for value in hashes.to_pylist():
        count = seen.get(value, 0)
        seen[value] = count + 1
        ids.append(value.hex() + (f"-{count}" if count else ""))
    return pa.array(ids, pa.string())


TASKS = {"block": Task(block), "index": Task(index)}
