"""One byte string per value: canonical JSON, canonical Arrow tables, and the digests over them.

Equal Arrow tables can differ in bytes through chunk boundaries, garbage under nulls, sliced offsets,
dictionaries, metadata and negative zeros. `canonical_table` removes every one of those freedoms.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tamis.errors import TamisError

if TYPE_CHECKING:
    from collections.abc import Mapping

BATCH_ROWS = 65_536


def canonical_json(value: Any) -> bytes:
    """Write a value as canonical JSON: sorted keys, no spaces, UTF-8, shortest floats.

    Args:
        value: Built from None, bool, int, str, finite float, list, tuple and dict with str keys. Subclasses
            (numpy scalars, enums) are not taken, so that a value has one meaning only.

    Returns:
        The bytes. Equal values give equal bytes; a tuple equals a list, -0.0 equals 0.0.

    Raises:
        TypeError: Something else is in it; the message names where, as in ``$.stages[2].eps``.

    >>> canonical_json({"b": (1, -0.0), "a": None})
    b'{"a":null,"b":[1,0.0]}'
    """
    plain = _plain(value, "$")
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def digest(value: Any) -> str:
    """The sha256 of a value's canonical JSON, in hex (64 characters).

    Raises:
        TypeError: As `canonical_json`.
    """
    return hashlib.sha256(canonical_json(value)).hexdigest()


def sha256_file(path: str | Path) -> str:
    """The sha256 of a file's bytes, in hex (64 characters); read anew at every call.

    Raises:
        OSError: The file cannot be read.
    """
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def canonical_table(table: pa.Table, schema: pa.Schema, batch_rows: int = BATCH_ROWS) -> pa.Table:
    """Rebuild a table so that equal content has equal buffers.

    Columns are cast to `schema` and put in its order, rows keep theirs. Chunks have `batch_rows` rows (the
    last one fewer) in every column, no offsets, zeros under nulls, no dictionaries, no metadata, no -0.0.

    Args:
        table: Any chunking; its columns are exactly those of `schema`, in any order.
        schema: Boolean, integer, floating, string, binary and fixed-size binary fields.
        batch_rows: Rows in a chunk, at least 1.

    Returns:
        The rebuilt table.

    Raises:
        TamisError: Columns differ from the schema, a value does not fit its type, a null where the field is
            not nullable, or a NaN (a value that was not computed is null).
    """
    wanted = plain_schema(schema)
    if sorted(table.column_names) != sorted(wanted.names):
        raise TamisError(f"columns {table.column_names} were given; exactly {wanted.names} are allowed")
    columns = [_cast(table.column(field.name), field) for field in wanted]
    batches = []
    for start in range(0, table.num_rows, batch_rows):
        arrays = [
            _rebuilt(column.slice(start, batch_rows).combine_chunks(), field)
            for column, field in zip(columns, wanted, strict=True)
        ]
        batches.append(pa.RecordBatch.from_arrays(arrays, schema=wanted))
    return pa.Table.from_batches(batches, schema=wanted)


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """The schema without metadata, and with dictionaries replaced by their values' type."""
    return pa.schema(
        [
            pa.field(
                field.name,
                field.type.value_type if pa.types.is_dictionary(field.type) else field.type,
                nullable=field.nullable,
            )
            for field in schema
        ]
    )


def ipc_bytes(table: pa.Table) -> bytes:
    """The table as an Arrow IPC file (not a stream), uncompressed, canonical: equal tables, equal bytes.

    Raises:
        TamisError: As `canonical_table` with the table's own schema.
    """
    canonical = canonical_table(table, table.schema)
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(metadata_version=pa.ipc.MetadataVersion.V5, compression=None)
    with pa.ipc.new_file(sink, canonical.schema, options=options) as writer:
        writer.write_table(canonical)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def sealed(body: Mapping[str, Any]) -> bytes:
    """A record: the canonical JSON of a body and its sha256."""
    return canonical_json({"body": body, "sha256": digest(body)})


def unsealed(raw: bytes) -> dict[str, Any]:
    """The body of a record that `sealed` made.

    Raises:
        ValueError: The bytes are not what was written.
    """
    try:
        body: dict[str, Any] = json.loads(raw)["body"]
        intact = sealed(body) == raw
    except (TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"it is no sealed record: {error}") from error
    if not intact:
        raise ValueError("its sha256 does not match")
    return body


def _plain(value: Any, where: str) -> Any:
    kind = type(value)
    if value is None or kind is bool or kind is int:
        return value
    if kind is str:
        _check_text(value, where)
        return value
    if kind is float:
        if not math.isfinite(value):
            raise TypeError(f"{where} is {value}; only finite numbers are allowed: use None for 'not computed'")
        return value + 0.0  # -0.0 becomes 0.0
    if kind is list or kind is tuple:
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if kind is dict:
        for key in value:
            if type(key) is not str:
                raise TypeError(f"{where} has the key {key!r} of {type(key).__name__}; only str keys are allowed")
            _check_text(key, f"a key of {where}")
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    raise TypeError(
        f"{where} is a {kind.__module__}.{kind.__qualname__}; allowed are None, bool, int, str, finite "
        "float, list, tuple and dict with str keys: convert it first"
    )


def _check_text(text: str, where: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise TypeError(f"{where} holds a lone surrogate and is not text: {text!r}") from None


def _cast(column: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray:
    try:
        return column.cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise TamisError(f"column {field.name!r} has {column.type}, {field.type} is allowed: {error}") from error


def _rebuilt(array: pa.Array, field: pa.Field) -> pa.Array:
    """The same values in fresh buffers: no offset, no slack, zeros under nulls."""
    rows, nulls, kind = len(array), array.null_count, array.type
    if nulls and not field.nullable:
        raise TamisError(f"column {field.name!r} has {nulls} nulls; it is not nullable")
    valid = array.is_valid().to_numpy(zero_copy_only=False)
    validity = pa.py_buffer(np.packbits(valid, bitorder="little").tobytes()) if nulls else None
    if pa.types.is_boolean(kind):
        values = pc.fill_null(array, False).to_numpy(zero_copy_only=False)
        buffers = [np.packbits(values, bitorder="little")]
    elif pa.types.is_integer(kind):
        buffers = [pc.fill_null(array, 0).to_numpy(zero_copy_only=False)]
    elif pa.types.is_floating(kind):
        values = pc.fill_null(array, pa.scalar(0.0, kind)).to_numpy(zero_copy_only=False)
        if np.isnan(values).any():
            raise TamisError(f"column {field.name!r} has a NaN; write null where a value was not computed")
        buffers = [values + values.dtype.type(0)]  # -0.0 becomes 0.0
    elif pa.types.is_fixed_size_binary(kind):
        width = kind.byte_width
        raw = np.frombuffer(array.buffers()[1] or b"", dtype=np.uint8)
        cells = raw[array.offset * width : (array.offset + rows) * width].reshape(rows, width).copy()
        cells[~valid] = 0
        buffers = [cells.ravel()]
    elif pa.types.is_string(kind) or pa.types.is_binary(kind):
        buffers = _offsets_and_data(array, np.dtype(np.int32))
    elif pa.types.is_large_string(kind) or pa.types.is_large_binary(kind):
        buffers = _offsets_and_data(array, np.dtype(np.int64))
    elif pa.types.is_fixed_size_list(kind) and not array.flatten().null_count:
        cells = array.values.slice(array.offset * kind.list_size, rows * kind.list_size)
        filled = np.where(np.repeat(valid, kind.list_size), cells.fill_null(0).to_numpy(), 0)
        child = _rebuilt(pa.array(filled, kind.value_type), kind.value_field)
        return pa.Array.from_buffers(kind, rows, [validity], null_count=nulls, children=[child])
    else:
        raise TamisError(f"column {field.name!r} has type {kind}, for which there are no canonical bytes")
    parts = [validity, *(pa.py_buffer(np.ascontiguousarray(buffer).tobytes()) for buffer in buffers)]
    return pa.Array.from_buffers(kind, rows, parts, null_count=nulls)


def _offsets_and_data(array: pa.Array, offset_type: np.dtype[Any]) -> list[np.ndarray]:
    # With nulls filled by the empty value, the data between the first and the last offset are exactly the
    # values, one after the other: nothing can hide between them.
    empty = "" if pa.types.is_string(array.type) or pa.types.is_large_string(array.type) else b""
    filled = pc.fill_null(array, pa.scalar(empty, array.type))
    _, offset_buffer, data_buffer = filled.buffers()
    offsets = np.frombuffer(offset_buffer, offset_type)[filled.offset : filled.offset + len(filled) + 1]
    data = np.frombuffer(data_buffer or b"", np.uint8)[offsets[0] : offsets[-1]]
    return [offsets - offsets[0], data]
