"""Counting and reading the rows of one file, format by format.

Values come as the source has them. CSV has no types, so every CSV column is text, an empty cell is null,
and whoever reads casts (an id ``007`` stays ``007``). JSON keeps its own types; a date in quotes stays text.

Text that is not UTF-8, and JSON strings with lone surrogates, do not stop a read: the cell is null and the
row is marked in the `problem` array beside the table (`NOT_UTF8`, `LONE_SURROGATE`).
"""

from __future__ import annotations

import csv
import functools
import itertools
import json
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tamis.errors import DataError
from tamis.manifests.canonical import digest, sha256_file
from tamis.pipelines import image_files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOT_UTF8 = 1
LONE_SURROGATE = 2

WINDOW = 65_536  # rows read at a time where the format has no natural block
_STREAMED = 1024  # rows in memory at a time where rows are streamed, however large the row groups are
_STRIDE = 1_024  # rows between two entries of a text file's index
_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"
SURROGATE = re.compile("[\ud800-\udfff]")


def measure(kind: str, location: str) -> tuple[int, str]:
    """Size in bytes and sha256 (hex); where a dataset is many files, that of their listing.

    Raises:
        DataError: It cannot be read.
    """
    with _explained(kind, location):
        if kind not in _PARTS:
            _require_file(Path(location))
            return Path(location).stat().st_size, sha256_file(location)
        parts = _PARTS[kind](location)
        for _, path in parts:
            _require_file(path)
        sizes = [path.stat().st_size for _, path in parts]
        listing = [
            {"name": name, "bytes": size, "sha256": sha256_file(path)}
            for (name, path), size in zip(parts, sizes, strict=True)
        ]
        return sum(sizes), digest(listing)


def count(kind: str, location: str) -> tuple[int, list[str]]:
    """Rows and column names. Arrow, CSV and JSON lines are read through, so that what is wrong is told here.

    Raises:
        DataError: It is not a whole, valid file of its format.
    """
    with _explained(kind, location):
        return _COUNTERS[kind](location)


def read(
    kind: str, location: str, sha256: str, columns: list[str], start: int, stop: int
) -> tuple[pa.Table, np.ndarray]:
    """Rows [start, stop) and their uint8 problem marks; see `tamis.pipelines.sources.read_rows`.

    Raises:
        DataError: A value cannot be read, or rows are missing.
    """
    with _explained(kind, location):
        table, problem = _READERS[kind](location, sha256, columns, start, stop)
        if table.num_rows != stop - start:
            raise DataError(f"{location}: rows [{start}, {stop}) are not all there")
        return table, problem


def blocks(kind: str, location: str, rows: int) -> np.ndarray:
    """int64: the row numbers, from 0 to `rows`, between which reading is cheap (Parquet: row groups; images: files).

    Raises:
        DataError: It is not a whole, valid file of its format.
    """
    if kind == "parquet":
        with _explained(kind, location), pq.ParquetFile(location) as file:
            groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        return np.concatenate([[0], np.cumsum(groups, dtype=np.int64)])
    if kind == "images":
        return np.arange(rows + 1)
    return np.append(np.arange(0, rows, WINDOW), rows)


def stream(kind: str, location: str, sha256: str, columns: list[str], rows: np.ndarray) -> Iterator[pa.Table]:
    """Chosen rows (int64, ascending, each once) in pieces, never more than some thousand rows in memory.

    Raises:
        DataError: A value cannot be read, or rows are missing.
    """
    with _explained(kind, location):
        if kind == "parquet":
            yield from _stream_parquet(location, columns, rows)
            return
    # Opening a mapped file takes longer than looking at many rows of it.
    window = {"images": 1, "arrow": WINDOW, "hf": WINDOW}.get(kind, _STREAMED)
    done = 0
    while done < len(rows):
        start = int(rows[done])
        end = int(np.searchsorted(rows, start + window))
        table, _ = read(kind, location, sha256, columns, start, int(rows[end - 1]) + 1)
        for first in range(done, end, _STREAMED):
            yield table.take(pa.array(rows[first : min(end, first + _STREAMED)] - start))
        done = end


@contextmanager
def _explained(kind: str, location: str) -> Iterator[None]:
    """Turn the readers' errors into one that names the file."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, RecursionError, csv.Error) as error:
        text = str(error).strip().split("\n")[0]
        raise DataError(f"{location}: not a whole, valid {kind} file: {text}; write it again") from error


def _require_file(path: Path) -> None:
    """Refuse a pipe or a device, which could be read for ever."""
    if path.exists() and not path.is_file():
        raise DataError(f"{path} is no regular file; give a file")


def _saved_files(folder: str, key: str = "") -> list[Path]:
    """The data files of a saved Hugging Face dataset, then those of its indices mapping, in order."""
    state = json.loads((Path(folder) / "state.json").read_bytes())
    if not isinstance(state, dict):
        raise ValueError("state.json is not a mapping")
    keys = [key] if key else ["_data_files", "_indices_data_files"]
    names = [entry["filename"] for name in keys for entry in state.get(name) or []]
    for name in names:
        if Path(name).name != name:
            raise ValueError(f"state.json names the file {name!r} outside the folder")
    return [Path(folder) / name for name in names]


def _count_parquet(location: str) -> tuple[int, list[str]]:
    with pq.ParquetFile(location) as file:
        return file.metadata.num_rows, list(file.schema_arrow.names)


def _count_arrow(location: str) -> tuple[int, list[str]]:
    table = _arrow_table(Path(location))
    _checked(table, location, 0)
    return table.num_rows, list(table.column_names)


def _count_hf(location: str) -> tuple[int, list[str]]:
    table, order = _hf_table(location)
    _checked(table, location, 0)
    return table.num_rows if order is None else len(order), list(table.column_names)


def _count_csv(location: str) -> tuple[int, list[str]]:
    header = _csv_header(location)
    return sum(1 for _ in _csv_records(location, header, 0, 0)), header


def _count_jsonl(location: str) -> tuple[int, list[str]]:
    rows = 0
    columns: dict[str, tuple[str, int]] = {}
    for line, record, _ in _json_records(location, 0):
        rows += 1
        for name, value in record.items():
            kind = _json_kind(value)
            seen, first = columns.get(name, ("null", 0))
            if seen == "null":
                columns[name] = (kind, line)
            elif kind not in ("null", seen):
                raise DataError(
                    f"{location}:{line}: column {name!r} is a {kind} here and a {seen} on line {first}; "
                    "one type a column is allowed"
                )
    return rows, list(columns)


# --- columnar formats --------------------------------------------------------------------------------------


def _read_parquet(location: str, sha256: str, columns: list[str], start: int, stop: int) -> tuple[pa.Table, np.ndarray]:
    with pq.ParquetFile(location) as file:
        groups: list[int] = []
        first = before = 0
        for index in range(file.num_row_groups):
            rows = file.metadata.row_group(index).num_rows
            if before < stop and before + rows > start:
                first = before if not groups else first
                groups.append(index)
            before += rows
    table = _row_groups(location, sha256, tuple(groups), tuple(columns))
    return _checked(table.slice(start - first, stop - start), location, start)


@functools.lru_cache(maxsize=1)
def _row_groups(location: str, sha256: str, groups: tuple[int, ...], columns: tuple[str, ...]) -> pa.Table:  # noqa: ARG001
    """Decode row groups; the last ones are kept, since a group often holds many blocks."""
    with pq.ParquetFile(location, page_checksum_verification=True) as file:
        return file.read_row_groups(list(groups), columns=list(columns), use_threads=False).select(list(columns))


def _stream_parquet(location: str, columns: list[str], rows: np.ndarray) -> Iterator[pa.Table]:
    # Without a buffer a row group's columns are read at once, which may be most of the file.
    with pq.ParquetFile(location, page_checksum_verification=True, buffer_size=1 << 20) as file:
        before = 0
        for group in range(file.num_row_groups):
            after = before + file.metadata.row_group(group).num_rows
            first, end = np.searchsorted(rows, (before, after))
            if first < end:
                options = {"columns": columns, "use_threads": False}
                for batch in file.iter_batches(_STREAMED, row_groups=[group], **options):
                    last = first + int(np.searchsorted(rows[first:end], before + batch.num_rows))
                    if first < last:
                        table = pa.Table.from_batches([batch]).select(columns)
                        table, _ = _checked(table, location, before)
                        yield table.take(pa.array(rows[first:last] - before))
                    before, first = before + batch.num_rows, last
                    if first == end:
                        break
            before = after


def _read_arrow(location: str, _sha256: str, columns: list[str], start: int, stop: int) -> tuple[pa.Table, np.ndarray]:
    table = _arrow_table(Path(location)).select(columns).slice(start, stop - start)
    return _checked(table, location, start)


def _read_hf(location: str, _sha256: str, columns: list[str], start: int, stop: int) -> tuple[pa.Table, np.ndarray]:
    table, order = _hf_table(location)
    table = table.select(columns)
    table = table.slice(start, stop - start) if order is None else table.take(order.slice(start, stop - start))
    return _checked(table, location, start)


def _arrow_table(path: Path) -> pa.Table:
    """An IPC file or stream, memory-mapped."""
    content = pa.memory_map(str(path))
    if content.read(6) == b"ARROW1":
        return pa.ipc.open_file(content).read_all()
    # A stream that is cut at a batch's end reads without an error; only its end mark tells.
    content.seek(content.size() - len(_END_OF_STREAM))
    if content.read() != _END_OF_STREAM:
        raise ValueError("the Arrow stream has no end mark: it is truncated")
    content.seek(0)
    return pa.ipc.open_stream(content).read_all()


def _hf_table(folder: str) -> tuple[pa.Table, pa.ChunkedArray | None]:
    """The data of a saved Hugging Face dataset, and its indices mapping if it has one (older versions)."""
    tables = [_arrow_table(path) for path in _saved_files(folder, "_data_files")]
    mapping = [_arrow_table(path) for path in _saved_files(folder, "_indices_data_files")]
    return pa.concat_tables(tables), pa.concat_tables(mapping).column(0) if mapping else None


def _checked(table: pa.Table, location: str, start: int) -> tuple[pa.Table, np.ndarray]:
    """Plain types, memory-safe arrays, and null with a problem mark where text is not UTF-8."""
    problem = np.zeros(table.num_rows, dtype=np.uint8)
    simple = plain(table)
    columns = []
    for name, column in zip(simple.column_names, simple.columns, strict=True):
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as error:
            column, bad = _decoded(column, f"{location}: column {name!r}", start, error)
            problem[bad] = NOT_UTF8
        columns.append(column)
    return pa.table(columns, names=simple.column_names), problem


def plain(table: pa.Table) -> pa.Table:
    """Without dictionaries, extension types, string views and metadata."""
    columns = []
    for column in table.columns:
        while not _is_plain(column.type):
            if isinstance(column.type, pa.BaseExtensionType):
                storage = column.type.storage_type
                column = pa.chunked_array([chunk.storage for chunk in column.chunks], storage)
            elif pa.types.is_dictionary(column.type):
                column.validate(full=True)  # before indices are followed
                column = column.cast(column.type.value_type)
            else:
                column.validate(full=True)
                column = column.cast(pa.string() if column.type == pa.string_view() else pa.binary())
        columns.append(column)
    return pa.table(columns, names=table.column_names)


def _is_plain(kind: pa.DataType) -> bool:
    return not (
        isinstance(kind, pa.BaseExtensionType)
        or pa.types.is_dictionary(kind)
        or kind in (pa.string_view(), pa.binary_view())
    )


def _decoded(column: pa.ChunkedArray, where: str, start: int, error: Exception) -> tuple[pa.ChunkedArray, np.ndarray]:
    """The column with undecodable texts as null, and the positions of these."""
    kind = column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise DataError(f"{where}: damaged or not UTF-8 from row {start} on: {error}") from error
    raw = [chunk.view(pa.binary() if pa.types.is_string(kind) else pa.large_binary()) for chunk in column.chunks]
    for chunk in raw:
        chunk.validate(full=True)  # what is left wrong then is more than the encoding
    values = [value for chunk in raw for value in chunk.to_pylist()]
    texts = [None if value is None else _text(value) for value in values]
    bad = [i for i, (value, text) in enumerate(zip(values, texts, strict=True)) if value is not None and text is None]
    return pa.chunked_array([pa.array(texts, kind)]), np.array(bad, dtype=np.int64)


def _text(value: bytes) -> str | None:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return None


# --- text formats ------------------------------------------------------------------------------------------


def _read_csv(location: str, sha256: str, columns: list[str], start: int, stop: int) -> tuple[pa.Table, np.ndarray]:
    header = _csv_header(location)
    places = [header.index(name) for name in columns]
    skip = start % _STRIDE
    offset = _text_index(location, "csv", sha256)[start // _STRIDE] if stop > start else 0
    records = _csv_records(location, header, int(offset), start - skip)
    problem = np.zeros(stop - start, dtype=np.uint8)
    values: list[list[str | None]] = [[] for _ in columns]
    for row, (_, record) in enumerate(itertools.islice(records, skip, skip + stop - start)):
        for cells, place in zip(values, places, strict=True):
            cell = record[place]
            if SURROGATE.search(cell):
                problem[row] = NOT_UTF8
                cells.append(None)
            else:
                cells.append(cell or None)
    arrays = [pa.chunked_array([pa.array(cells, pa.string())]) for cells in values]
    return pa.table(arrays, names=columns), problem


def _csv_header(location: str) -> list[str]:
    with Path(location).open("rb") as stream:
        header = next(csv.reader(_decoded_lines(stream), strict=True), [])
    if not header:
        raise DataError(f"{location}: the first line is blank; it must name the columns")
    for mark, name in ((";", "semicolons"), ("\t", "tabs")):
        if len(header) == 1 and mark in header[0]:
            raise DataError(
                f"{location}: the header is {header[0][:80]!r}, one column: this looks like CSV with {name}; "
                "only commas separate fields here: write the file again with commas"
            )
    for name in header:
        if SURROGATE.search(name):
            raise DataError(f"{location}: the column name {name!r} is not UTF-8")
    return header


def _csv_records(location: str, header: list[str], offset: int, row: int) -> Iterator[tuple[int, list[str]]]:
    """Each record from a byte offset on with the offset after it; `row` is the first one's number.

    At offset 0 the header is read over. Blank lines are no records. Rows count from 0, without the header.
    """
    csv.field_size_limit(2**31 - 1)  # the default refuses texts over 128 KiB
    with Path(location).open("rb") as stream:
        stream.seek(offset)
        lines = _decoded_lines(stream)
        reader = csv.reader(lines, strict=True)
        if offset == 0:
            next(reader, None)
        while True:
            try:
                record = next(reader, None)
            except csv.Error as error:
                raise DataError(
                    f"{location}: row {row} is not CSV: {error}; quote fields that hold commas or newlines"
                ) from error
            if record is None:
                return
            if not record:
                continue
            if len(record) != len(header):
                raise DataError(
                    f"{location}: row {row} has {len(record)} fields, the header names {len(header)}; "
                    "quote fields that hold commas, quotes or newlines"
                )
            yield stream.tell(), record
            row += 1


def _decoded_lines(stream: BinaryIO) -> Iterator[str]:
    """Lines as text; bytes that are not UTF-8 become lone surrogates, which no valid text has."""
    at_start = stream.tell() == 0
    # Not `for line in stream`: the position after each line must be the stream's.
    while line := stream.readline():
        if at_start:
            line = line.removeprefix(b"\xef\xbb\xbf")
            at_start = False
        yield line.decode("utf-8", "surrogateescape")


def _read_jsonl(location: str, sha256: str, columns: list[str], start: int, stop: int) -> tuple[pa.Table, np.ndarray]:
    skip = start % _STRIDE
    offset = _text_index(location, "jsonl", sha256)[start // _STRIDE] if stop > start else 0
    records = _json_records(location, int(offset))
    problem = np.zeros(stop - start, dtype=np.uint8)
    values: list[list[Any]] = [[] for _ in columns]
    for row, (_, record, is_utf8) in enumerate(itertools.islice(records, skip, skip + stop - start)):
        for cells, name in zip(values, columns, strict=True):
            cell = record.get(name)
            if _has_surrogate(cell):
                problem[row] = LONE_SURROGATE if is_utf8 else NOT_UTF8
                cell = None
            cells.append(cell)
    arrays = []
    for name, cells in zip(columns, values, strict=True):
        try:
            arrays.append(pa.chunked_array([pa.array(cells)]))
        except (pa.ArrowException, OverflowError) as error:
            raise DataError(
                f"{location}: column {name!r} has no one type in rows {start} to {stop - 1}: {error}"
            ) from error
    return pa.table(arrays, names=columns), problem


def _json_records(location: str, offset: int) -> Iterator[tuple[int, dict[str, Any], bool]]:
    """Each line's number (from 1, counted from the offset), its object, and whether it is UTF-8."""
    with Path(location).open("rb") as stream:
        stream.seek(offset)
        for number, line in enumerate(stream, start=1):
            raw = line.removeprefix(b"\xef\xbb\xbf") if number == 1 and offset == 0 else line
            if not raw.strip():
                continue
            text = raw.decode("utf-8", "surrogateescape")
            try:
                record = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
            except (ValueError, RecursionError) as error:
                hint = "; one object a line is read, not an array" if raw.lstrip()[:1] == b"[" else ""
                raise DataError(f"{location}:{number}: not a JSON object: {error}{hint}") from error
            if not isinstance(record, dict):
                raise DataError(f"{location}:{number}: a JSON {_json_kind(record)}; one object a line is read")
            yield number, record, _text(raw) is not None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError("a key is there twice")
    return record


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON; write null")


def _json_kind(value: Any) -> str:
    kinds = {type(None): "null", bool: "boolean", int: "number", float: "number", str: "string", list: "list"}
    return kinds.get(type(value), "object")


def _has_surrogate(value: Any) -> bool:
    if isinstance(value, str):
        return SURROGATE.search(value) is not None
    if isinstance(value, list):
        return any(_has_surrogate(item) for item in value)
    if isinstance(value, dict):
        return any(_has_surrogate(key) or _has_surrogate(item) for key, item in value.items())
    return False


@functools.lru_cache(maxsize=64)
def _text_index(location: str, kind: str, sha256: str) -> np.ndarray:  # noqa: ARG001 (sha256 is in the key)
    """int64: the byte offset of every `_STRIDE`-th row; the content's sha256 keeps the cache honest."""
    if kind == "csv":
        ends = (end for end, _ in _csv_records(location, _csv_header(location), 0, 0))
        starts = itertools.chain([0], ends)
        return np.fromiter(itertools.islice(starts, 0, None, _STRIDE), dtype=np.int64)
    offsets, rows, position = [], 0, 0
    with Path(location).open("rb") as stream:
        for line in stream:
            if line.strip():
                if rows % _STRIDE == 0:
                    offsets.append(position)
                rows += 1
            position += len(line)
    return np.array(offsets, dtype=np.int64)


_PARTS: dict[str, Callable[[str], list[tuple[str, Path]]]] = {
    "hf": lambda location: [(path.name, path) for path in _saved_files(location)],
    "idx": image_files.idx_files,
    "images": image_files.folder_files,
}

_COUNTERS: dict[str, Callable[[str], tuple[int, list[str]]]] = {
    "parquet": _count_parquet,
    "arrow": _count_arrow,
    "hf": _count_hf,
    "csv": _count_csv,
    "jsonl": _count_jsonl,
    "idx": image_files.count_idx,
    "images": image_files.count_folder,
}

_READERS: dict[str, Callable[[str, str, list[str], int, int], tuple[pa.Table, np.ndarray]]] = {
    "parquet": _read_parquet,
    "arrow": _read_arrow,
    "hf": _read_hf,
    "csv": _read_csv,
    "jsonl": _read_jsonl,
    "idx": image_files.read_idx,
    "images": image_files.read_folder,
}
