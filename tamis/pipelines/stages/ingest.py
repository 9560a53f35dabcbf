"""Ingest: read the sources block by block, check ids, hash every sample, set bad rows aside."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tamis.errors import DataError, DatasetMismatchError
from tamis.manifests.reader import open_manifest
from tamis.pipelines.formats import LONE_SURROGATE, NOT_UTF8
from tamis.pipelines.node import Inputs, Node, Output, Task, version_of
from tamis.pipelines.plan import Add, Flow, Parent
from tamis.pipelines.sources import SourceFile, check_types, read_rows, stamp
from tamis.pipelines.state import KEPT, QUARANTINED, effect

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tamis.pipelines.recipe import Recipe

HASH = pa.binary(16)
CONTENT_ROLES = ("text", "image", "tokens", "vectors", "label")
"""The roles that a content hash is over, in the order hashed, each where the dataset has it."""

_SHOWN = 10


def expand(recipe: Recipe, sources: tuple[SourceFile, ...], rows: int, parent: Parent | None, add: Add) -> Flow:
    """Add one node a block and the index over all of them; `rows` is how many rows of the sources count."""
    blocks: list[Node] = []
    counts: list[int] = []
    left = rows
    # Which images can be decoded is up to the decoder.
    decoder = {"libraries": {"pillow": version_of("pillow")}} if "image" in recipe.dataset.fields else {}
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
                **decoder,
            }
            blocks.append(add("ingest.block", params, {}, part=len(blocks), hints={"source": source}))
    params = {
        "file_rows": counts,
        "has_id": recipe.dataset.id is not None,
        "max_bad_fraction": recipe.max_bad_fraction,
        "label": recipe.dataset.label is not None,
        **({} if recipe.dataset.source is None else {"source": True}),
    }
    hints = {"files": [source.path for source in sources], "id": recipe.dataset.id}
    index = add("ingest.index", params, {"blocks": blocks}, hints=hints)
    total = sum(source.rows for source in sources)
    flow = Flow(rows, total, tuple(blocks), index, index, (index,), dataset=recipe.dataset)
    if parent is None:
        return flow
    # The index of the files that there were then: the same node as in that run.
    old = [number for number, source in enumerate(sources) if source.sha256 in parent.sources]
    old_blocks = [block for block in blocks if block.params["sha256"] in parent.sources]
    old_files = {"files": [sources[number].path for number in old], "id": recipe.dataset.id}
    old_params = {**params, "file_rows": [counts[number] for number in old]}
    then = add("ingest.index", old_params, {"blocks": old_blocks}, part=0, hints=old_files)
    before = add(
        "ingest.before",
        {"subset_id": parent.subset_id},
        {"index": [index]},
        hints={"manifest": str(parent.folder), "version": parent.version},
    )
    return dataclasses.replace(flow, before=before, fitting=(tuple(old_blocks), then))


def content_hashes(table: pa.Table, roles: tuple[str, ...]) -> pa.Array:
    """Hash what each sample is: 128 bits of sha256 over its canonical content.

    Args:
        table: Columns named by role, as `sample_table` makes them.
        roles: The roles that count, in the order hashed: some of `CONTENT_ROLES`, in that order. The id is never
            one of them.

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


def _encoded(column: pa.Array, role: str) -> Iterable[bytes | None]:
    if role == "vectors":
        return _encoded_vectors(column)
    if role == "image":
        return (item.as_py() for item in column)  # one at a time: a block of them can be large
    if role == "tokens":
        return (np.asarray(item.values.fill_null(-1), "<i8").tobytes() if item.is_valid else None for item in column)
    return [None if item is None else item.encode("utf-8") for item in column.to_pylist()]


def _encoded_vectors(column: pa.Array) -> Iterable[bytes | None]:
    """The numbers of each vector as float64."""
    if pa.types.is_fixed_size_list(column.type) and not column.null_count and not column.flatten().null_count:
        matrix = column.flatten().to_numpy(zero_copy_only=False).astype("<f8").reshape(-1, column.type.list_size)
        return (row.tobytes() for row in matrix)
    return (None if item is None else np.asarray(item, np.float64).tobytes() for item in column.to_pylist())


def sample_table(table: pa.Table, fields: Mapping[str, str]) -> pa.Table:
    """Rename the sources' columns to their roles, one type a role.

    Returns:
        Ids, labels and texts as large_string, images as large_binary (of Hugging Face's struct, its bytes), tokens
        as large_list<int64>, and vectors as they are.
    """
    return pa.table({role: _of_role(table[name], role) for role, name in fields.items()})


def _of_role(column: pa.ChunkedArray, role: str) -> pa.Array:
    if role == "vectors":
        return column.combine_chunks()
    if role == "image":
        encoded = pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column
        return encoded.cast(pa.large_binary()).combine_chunks()
    if role == "tokens":  # what int64 cannot hold wraps around to a negative number, and is bad as that
        return column.cast(pa.large_list(pa.int64()), safe=False).combine_chunks()
    return column.combine_chunks().cast(pa.large_string())


def block(params: Mapping[str, Any], inputs: Inputs) -> Output:
    """Read one block of one source file: ids, hashes, content, label, and what is wrong with each row."""
    source: SourceFile = inputs.hints["source"]
    fields: dict[str, str] = params["fields"]
    raw, undecodable = read_rows(source, list(dict.fromkeys(fields.values())), params["start"], params["stop"])
    if stamp(source.location) != source.stamp:
        raise DatasetMismatchError(f"{source.location} has changed since the run began: leave it alone, and run again")
    check_types(source, raw, fields)  # a JSON column has a type in each block
    table = sample_table(raw, fields)
    n = table.num_rows
    roles = tuple(role for role in CONTENT_ROLES if role in fields)
    problem = np.full(n, "", dtype=object)
    if "label" in fields:
        problem[_mask(pc.is_null(table["label"]))] = "label is null"
    if "source" in fields:
        problem[_mask(pc.is_null(table["source"]))] = "source is null"
    if "vectors" in fields:
        problem[_mask(pc.is_null(table["vectors"]))] = "vector is null"
    if "tokens" in fields:
        _mark_tokens(problem, table["tokens"].combine_chunks())
    if "image" in fields:
        _mark_images(problem, table["image"].combine_chunks(), raw[fields["image"]])
    if "text" in fields:
        text = table["text"]
        problem[_mask(pc.equal(pc.utf8_trim_whitespace(text), ""))] = "text is empty"
        problem[_mask(pc.greater(pc.binary_length(text), params["max_text_bytes"]))] = "text is too long"
        problem[_mask(pc.is_null(text))] = "text is null"
    problem[undecodable == NOT_UTF8] = "not valid UTF-8"
    problem[undecodable == LONE_SURROGATE] = "lone surrogate in a JSON string"
    bad = pa.array(problem != "")
    payload = tuple(role for role in roles if role != "label")
    content = content_hashes(table, roles)
    hashes = {"content_hash": content, "payload_hash": content if payload == roles else content_hashes(table, payload)}
    for role, nothing in (("text", ""), ("image", b"")):  # no stage may read a bad row's content, which can be huge
        if role in fields:
            column = table[role].combine_chunks()
            emptied = pc.if_else(bad, pa.scalar(nothing, column.type), column)
            table = table.set_column(table.column_names.index(role), role, emptied)
    data = {
        "source_row": pa.array(np.arange(params["start"], params["start"] + n), pa.int64()),
        **hashes,
        "problem": pc.if_else(bad, pa.array(problem.tolist(), pa.string()), pa.scalar(None, pa.string())),
        **{role: table[role] for role in fields},
    }
    return Output(pa.table(data), {"block_rows": n, "bad": int(np.count_nonzero(problem != ""))})


def _mark_tokens(problem: np.ndarray[Any, Any], tokens: pa.Array) -> None:
    """Say which rows hold no block of tokens, and why."""
    values, owners = pc.list_flatten(tokens), pc.list_parent_indices(tokens)
    problem[owners.filter(pc.less(values, 0)).to_numpy()] = "a token is below 0"
    problem[owners.filter(pc.is_null(values)).to_numpy()] = "a token is null"
    problem[_mask(pc.equal(pc.list_value_length(tokens), 0))] = "tokens are empty"
    problem[_mask(pc.is_null(tokens))] = "tokens are null"


def _mark_images(problem: np.ndarray[Any, Any], images: pa.Array, source: pa.ChunkedArray) -> None:
    """Say which rows hold no image that can be decoded, and why; `source` is the column as it was read."""
    from tamis.embeddings.images import problems

    found = np.array(problems(item.as_py() or b"" for item in images), dtype=object)
    undecodable = found != None  # noqa: E711 (element by element)
    problem[undecodable] = found[undecodable]
    absent = _mask(pc.is_null(images))
    problem[absent] = "image is null"
    if pa.types.is_struct(source.type) and source.type.get_field_index("path") >= 0:
        named = _mask(pc.is_valid(pc.struct_field(source, "path")))
        problem[absent & named] = "image is a path without bytes: store the files' bytes in the column"


def _mask(condition: pa.Array | pa.ChunkedArray) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """A boolean column as numpy; null counts as false."""
    return np.asarray(pc.fill_null(condition, False), dtype=bool)


def index(params: Mapping[str, Any], inputs: Inputs) -> Output:
    """Put the blocks' ids together, prove them unique, and set the bad rows aside."""
    tables = [
        inputs.open(item).select(
            [
                c
                for c in ("id", "source_row", "content_hash", "payload_hash", "problem", "label", "source")
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
        columns["label"], facts["classes"] = _coded(table["label"], bad)
    if params.get("source"):
        columns["origin"], facts["origins"] = _coded(table["source"], bad)
    decision = np.where(bad, QUARANTINED, KEPT).astype(np.int8)
    return Output(effect(np.arange(n), decision, table["problem"].to_pylist(), **columns), facts)


def _coded(column: pa.ChunkedArray, bad: np.ndarray[Any, np.dtype[np.bool_]]) -> tuple[pa.Array, list[str]]:
    """A column's values as places in the sorted list of all, null in bad rows; and that list."""
    names = pc.if_else(pa.array(bad), pa.scalar(None, pa.large_string()), column.combine_chunks())
    known = sorted(pc.unique(names).drop_null().to_pylist())
    return pc.index_in(names, pa.array(known, pa.large_string())).cast(pa.int32()), known


def before(params: Mapping[str, Any], inputs: Inputs) -> Output:
    """Find the rows that the manifest which is continued has kept: their row now and their rank then."""
    manifest = open_manifest(inputs.hints["manifest"], inputs.hints["version"])
    if manifest.subset_id != params["subset_id"]:
        raise DataError(f"the manifest in {inputs.hints['manifest']} has changed since the run began: run again")
    index, kept = inputs.table("index"), manifest.select
    at = pc.index_in(kept["sample_id"], index["sample_id"].cast(pa.string()).combine_chunks())
    same = pc.equal(index["content_hash"].take(at.combine_chunks()), kept["content_hash"])
    lost = kept["sample_id"].filter(pc.invert(pc.fill_null(same, False))).to_pylist()
    if lost:
        raise DataError(
            f"select.continue_from: {len(lost)} of the {kept.num_rows} rows kept then are not in the dataset, or have "
            f"another content: {', '.join(lost[:_SHOWN])}; add to the dataset without changing what is there"
        )
    table = pa.table({"row": at.cast(pa.int64()), "rank": kept["rank"]}).sort_by("row")
    return Output(table.combine_chunks())


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


TASKS = {"block": Task(block), "index": Task(index), "before": Task(before)}
