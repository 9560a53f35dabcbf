"""Datasets in: finding their files, hashing and counting them, and reading any rows of them."""

from __future__ import annotations

import difflib
import glob
import itertools
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tamis.errors import DataError, DatasetMismatchError, OutputError
from tamis.manifests.atomic import remove
from tamis.manifests.canonical import sha256_file
from tamis.pipelines import formats, image_files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

FORMATS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}
"""File name extensions that are read, and as what; IDX files are known by the whole of their names."""

_LARGE_BYTES = 2**31 - 1  # beyond, the 32-bit offsets of a string column overflow


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file (or a folder that is read as one) that belongs to a dataset, not looked into yet.

    Attributes:
        path: Relative to the dataset, with forward slashes; part of the fingerprint.
        location: Where it is on this machine; part of nothing.
        format: parquet, jsonl, csv, arrow, hf (a saved Hugging Face dataset), idx or images (a folder of them).
    """

    path: str
    location: str
    format: str


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of a dataset, hashed and counted.

    Attributes:
        path: Relative to the dataset, with forward slashes.
        location: Where it is on this machine.
        format: As of the `FoundFile`.
        bytes: Its size; where it is many files (hf, idx with labels, images), that of all together.
        sha256: Of its bytes; where it is many files, of their listing.
        rows: How many.
        columns: Their names, in the file's order; in JSON lines, in order of first appearance.
        stamp: `stamp` of the location before it was hashed; part of nothing.
    """

    path: str
    location: str
    format: str
    bytes: int
    sha256: str
    rows: int
    columns: tuple[str, ...]
    stamp: tuple[int, ...] = ()


def resolve(data: Any, spool: Path | None = None) -> list[FoundFile]:
    """Find the files of a dataset.

    Args:
        data: A file, a glob (``data/**/*.parquet``), a folder (its files by extension, at any depth, but not
            those whose name starts with a dot), the folder of a saved Hugging Face `datasets.Dataset`, a folder
            of class folders of image files (where no file of another kind is read), or a `datasets.Dataset` in
            memory.
        spool: Where a dataset in memory is written, under a name made of its content; not needed otherwise.

    Returns:
        The files, sorted by relative path.

    Raises:
        DataError: Nothing is there, or nothing that can be read.
        OutputError: The spool folder cannot be written.
    """
    if not isinstance(data, str | os.PathLike):
        return [_spooled(data, spool)]
    name = os.fspath(data)
    if "://" in name:
        # No more of it is shown: a user name, a token or a signed query may be in it.
        scheme = name.partition("://")[0]
        raise DataError(f"{scheme}://... is a remote address; files on this machine are read: copy it here first")
    path = Path(name)
    try:
        is_folder, is_there = path.is_dir(), path.exists()
    except OSError as error:
        raise DataError(f"{name} cannot be looked at: {error.strerror}; give a file, a glob or a folder") from error
    if is_folder:
        found = _in_folder(path)
        if not found:
            raise DataError(f"the folder {name} has no data files; {_what_is_read()}")
    elif is_there:
        found = [FoundFile(path.name, str(path), _format_of(path))]
    elif glob.has_magic(name):
        found = _matching(name)
        if not found:
            raise DataError(f"the pattern {name} matches no file")
    else:
        raise DataError(f"{name} does not exist; a file, a glob or a folder is needed")
    for file in found:
        if formats.SURROGATE.search(file.path):
            raise DataError(f"the file name {file.path!r} is not UTF-8: rename it")
        if not Path(file.location).exists():
            raise DataError(f"{file.location} is a link to nothing: mend it or remove it")
    return sorted(found, key=lambda file: file.path)


def scan(file: FoundFile, known: Mapping[str, tuple[int, Sequence[str]]] | None = None) -> SourceFile:
    """Hash a file, count its rows and list its columns. Its bytes are hashed anew at every call.

    Args:
        file: From `resolve`.
        known: From sha256 to (rows, columns) of files that were scanned before, which need no counting.

    Returns:
        The file, hashed and counted.

    Raises:
        DataError: It is unreadable, corrupt, truncated, empty, ragged (CSV), or names a column twice.
    """
    before = stamp(file.location)
    size, sha256 = formats.measure(file.format, file.location)
    if known is not None and sha256 in known:
        rows, columns = known[sha256]
    else:
        if size == 0:
            raise DataError(f"{file.location}: is empty (0 bytes); remove it or write it again")
        rows, columns = formats.count(file.format, file.location)
    twice = sorted({name for name in columns if list(columns).count(name) > 1})
    if twice:
        raise DataError(f"{file.location}: the column names {twice} are there twice; rename them")
    if rows == 0:
        raise DataError(f"{file.location}: has no rows; remove it or write it again")
    return SourceFile(file.path, file.location, file.format, size, sha256, rows, tuple(columns), before)


def stamp(location: str) -> tuple[int, ...]:
    """What shows at once that a file was written to: its inode, size and time of change; nothing of a folder."""
    path = Path(location)
    if not path.is_file():
        return ()
    found = path.stat()
    return (found.st_ino, found.st_size, found.st_mtime_ns)


def listing(sources: Sequence[SourceFile]) -> list[dict[str, Any]]:
    """The files as a manifest records and fingerprints them: relative path, bytes, sha256, rows."""
    return [{"path": s.path, "bytes": s.bytes, "sha256": s.sha256, "rows": s.rows} for s in sources]


def check_unchanged(sources: Sequence[SourceFile]) -> None:
    """Hash every file again and compare: the last act before results are committed.

    Raises:
        DatasetMismatchError: A file is gone or has other bytes than when it was scanned.
    """
    for source in sources:
        if not _is_unchanged(source):
            raise DatasetMismatchError(
                f"{source.location} has changed since it was scanned: leave the data alone during a run, and run again"
            )


def require_columns(source: SourceFile, columns: Sequence[str]) -> None:
    """Check that a source has the columns.

    Raises:
        DataError: One is missing; the message names the nearest.
    """
    for name in columns:
        if name not in source.columns:
            near = difflib.get_close_matches(name, source.columns, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise DataError(f"{source.location}: no column {name!r}; {hint}its columns are {', '.join(source.columns)}")


def check_types(source: SourceFile, table: pa.Table, fields: Mapping[str, str]) -> None:
    """Refuse columns whose type their role cannot take.

    Args:
        source: Where the table is from.
        table: Some rows of it, or none.
        fields: Role -> column.

    Raises:
        DataError: A column has another type; the message says which are allowed.
    """
    for role, name in fields.items():
        kind = table.schema.field(name).type
        what, allowed = _ROLES[role]
        if not (pa.types.is_null(kind) or what(kind)):
            raise DataError(f"{source.location}: column {name!r} is the {role} and holds {kind}; allowed are {allowed}")


def is_of_role(kind: pa.DataType, role: str) -> bool:
    """Whether a column of this type can have this role."""
    suits: bool = _ROLES[role][0](kind)
    return suits


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds strings."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_name(kind: pa.DataType) -> bool:
    return bool(is_text(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind))


def _is_image(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):  # as Hugging Face's Image stores it
        return kind.get_field_index("bytes") >= 0 and _is_image(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_null(kind))


def _is_vector(kind: pa.DataType) -> bool:
    return _is_tokens(kind) or (is_list(kind) and bool(pa.types.is_floating(kind.value_type)))


def _is_tokens(kind: pa.DataType) -> bool:
    return is_list(kind) and bool(pa.types.is_integer(kind.value_type) or pa.types.is_null(kind.value_type))


def is_list(kind: pa.DataType) -> bool:
    """Whether a column of this type holds lists, of whatever lengths."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


_ROLES: dict[str, tuple[Callable[[pa.DataType], bool], str]] = {
    "id": (_is_name, "strings and whole numbers"),
    "label": (_is_name, "strings and whole numbers"),
    "source": (_is_name, "strings and whole numbers"),
    "text": (is_text, "strings"),
    "image": (_is_image, "the bytes of image files (binary) and Hugging Face's struct of bytes and path"),
    "tokens": (_is_tokens, "lists of whole numbers"),
    "vectors": (_is_vector, "lists of numbers"),
}


def read_rows(source: SourceFile, columns: Sequence[str], start: int, stop: int) -> tuple[pa.Table, np.ndarray]:
    """Read a range of rows.

    Args:
        source: From `scan`.
        columns: Which columns, in which order, each once.
        start: First row, from 0.
        stop: Row after the last; at most `source.rows`.

    Returns:
        The table, with values as the source has them (`tamis.pipelines.formats` says how; no dictionaries, no
        extension types; a JSON column that is null throughout the range has type null), and
        uint8[stop - start]: 0, or `formats.NOT_UTF8` or `formats.LONE_SURROGATE` where a cell of the row
        could not be decoded and is null in the table.

    Raises:
        DataError: A column is missing, or a value cannot be read; the message names file, row and column.
        DatasetMismatchError: The file is not the one that was scanned.
        ValueError: The range is not within the file.
    """
    require_columns(source, columns)
    if not 0 <= start <= stop <= source.rows:
        raise ValueError(f"rows [{start}, {stop}) of {source.path}, which has {source.rows}")
    try:
        return formats.read(source.format, source.location, source.sha256, list(columns), start, stop)
    except DataError as error:
        _refuse_changed(source, error)
        raise


def _refuse_changed(source: SourceFile, error: DataError) -> None:
    """Where a read failed: the file may be another one by now."""
    if not _is_unchanged(source):
        raise DatasetMismatchError(f"{source.location} has changed since it was scanned") from error


def take_rows(sources: Sequence[SourceFile], rows: np.ndarray, columns: Sequence[str] | None = None) -> pa.Table:
    """Read chosen rows of a dataset.

    Args:
        sources: The dataset's files in order.
        rows: int64[k], row numbers counted over all files in order; any order, repeats allowed.
        columns: Which columns; all of the first file, then of the others, if None.

    Returns:
        k rows in the order of `rows`. A column that differs in type from file to file has their common type,
        or string if there is none; a column that a file lacks is null there if `columns` is None. Text that
        cannot be decoded is null.

    Raises:
        DataError: As `read_rows`, or a row number is not in the dataset.
        DatasetMismatchError: A file is not the one that was scanned.
    """
    rows = np.asarray(rows, dtype=np.int64)
    ends = np.cumsum([source.rows for source in sources], dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    if len(rows) and not (rows.min() >= 0 and rows.max() < total):
        raise DataError(f"rows {rows.min()} to {rows.max()} were asked for; the dataset has rows 0 to {total - 1}")
    wanted, back = np.unique(rows, return_inverse=True)
    owner = np.searchsorted(ends, wanted, side="right")
    names = list(columns) if columns is not None else list(dict.fromkeys(c for s in sources for c in s.columns))
    tables: list[pa.Table] = []
    for index, source in enumerate(sources):
        local = wanted[owner == index] - (ends[index] - source.rows)
        present = names if columns is not None else [name for name in names if name in source.columns]
        tables += _pieces(source, present, local)
    return _take(stacked(tables, names), back)


def stream_rows(sources: Sequence[SourceFile], rows: np.ndarray) -> Iterator[pa.Table]:
    """Read chosen rows of a dataset in its order, in pieces that fit into memory whatever the files are.

    Args:
        sources: The dataset's files in order.
        rows: int64[k], row numbers counted over all files in order, ascending, each once.

    Yields:
        An empty table for each file, which has its columns and types, and then the rows; `stacked` makes one table of
        some. Text that cannot be decoded is null.

    Raises:
        DataError: As `read_rows`.
        DatasetMismatchError: A file is not the one that was scanned.
    """
    for source in sources:
        yield read_rows(source, source.columns, 0, 0)[0]
    ends = np.cumsum([source.rows for source in sources], dtype=np.int64)
    bounds = np.searchsorted(rows, np.append(0, ends))
    for source, end, (low, high) in zip(sources, ends, itertools.pairwise(bounds), strict=True):
        local = rows[low:high] - (end - source.rows)
        try:
            yield from formats.stream(source.format, source.location, source.sha256, list(source.columns), local)
        except DataError as error:
            _refuse_changed(source, error)
            raise


def _pieces(source: SourceFile, columns: list[str], local: np.ndarray) -> list[pa.Table]:
    """The rows `local` (ascending) of one source, block by block, after an empty piece with its types."""
    pieces = [read_rows(source, columns, 0, 0)[0]]
    edges = formats.blocks(source.format, source.location, source.rows)
    bounds = np.searchsorted(local, edges)
    for low, high in itertools.pairwise(bounds):
        if low < high:
            start, stop = int(local[low]), int(local[high - 1]) + 1
            table, _ = read_rows(source, columns, start, stop)
            pieces.append(table.take(pa.array(local[low:high] - start)))
    return pieces


def stacked(tables: Sequence[pa.Table], names: Sequence[str] | None = None) -> pa.Table:
    """All tables below each other, with one type a column and null where a table has no such column.

    Raises:
        DataError: A column's types have no common one that all values fit.
    """
    schema = common_schema([table.schema for table in tables], names)
    return pa.concat_tables([conformed(table, schema) for table in tables]) if tables else schema.empty_table()


def common_schema(schemas: Sequence[pa.Schema], names: Sequence[str] | None = None) -> pa.Schema:
    """The columns of all schemas (or those named), each with a type that all can be cast to: text if there is none."""
    if names is None:
        names = list(dict.fromkeys(name for schema in schemas for name in schema.names))
    different = list(dict.fromkeys(schemas))
    return pa.schema([_common_field(different, name) for name in names])


def conformed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with the columns and types of a schema, null where it has no such column.

    Raises:
        DataError: A value does not fit its column's type.
    """
    columns = []
    for field in schema:
        if field.name not in table.column_names:
            columns.append(pa.nulls(table.num_rows, field.type))
            continue
        try:
            columns.append(table[field.name].cast(field.type))
        except pa.ArrowException as error:
            raise DataError(f"column {field.name!r} has types without a common one: {error}") from error
    return pa.table(columns, schema=schema)


def _common_field(schemas: Sequence[pa.Schema], name: str) -> pa.Field:
    having = [pa.schema([schema.field(name)]) for schema in schemas if name in schema.names]
    try:
        return pa.unify_schemas(having, promote_options="permissive").field(0).with_nullable(True)
    except pa.ArrowException:
        return pa.field(name, pa.string())


def _take(table: pa.Table, rows: np.ndarray) -> pa.Table:
    if table.nbytes > _LARGE_BYTES:
        table = table.cast(pa.schema([_widened(field) for field in table.schema]))
    return table.take(pa.array(rows))


def _widened(field: pa.Field) -> pa.Field:
    if pa.types.is_struct(field.type):
        return field.with_type(pa.struct([_widened(inner) for inner in field.type.fields]))
    wide = {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}
    return field.with_type(wide.get(field.type, field.type))


# --- finding -----------------------------------------------------------------------------------------------


def _what_is_read() -> str:
    return f"files that end in {', '.join(FORMATS)} or idx3-ubyte (.gz too), and folders of image files, are read"


def _format_of(path: Path) -> str:
    kind = _known_format(path)
    if kind is not None:
        return kind
    if image_files.is_idx_labels(path):
        raise DataError(f"{path} holds labels by its name; give the file of images (...idx3-ubyte) beside it")
    hint = "; of single images, give their folder" if path.suffix.lower() in image_files.SUFFIXES else ""
    raise DataError(f"{path} has the extension {path.suffix!r}; {_what_is_read()}{hint}")


def _known_format(path: Path) -> str | None:
    return "idx" if image_files.is_idx_images(path) else FORMATS.get(path.suffix.lower())


def _in_folder(folder: Path) -> list[FoundFile]:
    _refuse_dataset_dict(folder)
    if _is_saved_dataset(folder):
        return [FoundFile(folder.resolve().name, str(folder), "hf")]
    found = []
    for here, folders, files in os.walk(folder):
        place = Path(here)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in list(folders):
            _refuse_dataset_dict(place / name)
            if _is_saved_dataset(place / name):
                folders.remove(name)
                found.append(FoundFile((place / name).relative_to(folder).as_posix(), str(place / name), "hf"))
        for name in files:
            path = place / name
            if not name.startswith(".") and (kind := _known_format(path)):
                found.append(FoundFile(path.relative_to(folder).as_posix(), str(path), kind))
    # Images beside a table are its illustrations; where there is no table, they are the data.
    if not found and image_files.has_images(folder):
        found.append(FoundFile(folder.resolve().name, str(folder), "images"))
    return found


def _matching(pattern: str) -> list[FoundFile]:
    """The files that match; their relative paths start below the pattern's last folder without wildcards."""
    fixed = itertools.takewhile(lambda part: not glob.has_magic(part), Path(pattern).parts)
    root = Path(*fixed)
    paths = [path for name in glob.glob(pattern, recursive=True) if (path := Path(name)).is_file()]  # noqa: PTH207
    # Labels are read with their images, not as a file of their own.
    images = [path for path in paths if image_files.is_idx_images(path)]
    labels = {part for path in images for _, part in image_files.idx_files(str(path))[1:]}
    return [
        FoundFile(path.relative_to(root).as_posix(), str(path), _format_of(path))
        for path in paths
        if path not in labels
    ]


def _is_saved_dataset(folder: Path) -> bool:
    return (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()


def _refuse_dataset_dict(folder: Path) -> None:
    marker = folder / "dataset_dict.json"
    if not marker.is_file():
        return
    try:
        splits = sorted(json.loads(marker.read_bytes())["splits"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        splits = sorted(path.name for path in folder.iterdir() if path.is_dir())
    named = f", such as {folder / str(splits[0])}" if splits else ""
    raise DataError(f"{folder} holds the splits {splits} of a dataset; name the folder of one of them{named}")


def _spooled(data: Any, spool: Path | None) -> FoundFile:
    """Write a dataset that is in memory into an Arrow file named by its content."""
    import datasets

    if isinstance(data, datasets.DatasetDict):
        raise DataError(f"a DatasetDict with the splits {sorted(data)} was given; pass one of them")
    if not isinstance(data, datasets.Dataset):
        raise DataError(f"a {type(data).__name__} was given; a path or a datasets.Dataset is allowed")
    if spool is None:
        raise DataError("a dataset in memory was given without a folder to write it to; pass a path instead")
    if len(data) == 0:
        raise DataError("the dataset in memory has no rows")
    arrow = data.with_format("arrow")
    temporary = spool / f".dataset.{secrets.token_hex(8)}.tmp"
    try:
        spool.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot make the folder {spool}: {error.strerror or error}; free space or give another --out"
        ) from error
    try:
        writer = None
        with pa.OSFile(str(temporary), "wb") as sink:
            for start in range(0, len(data), formats.WINDOW):
                piece = formats.plain(arrow[start : start + formats.WINDOW]).combine_chunks()
                writer = writer or pa.ipc.new_file(sink, piece.schema)
                writer.write_table(piece, max_chunksize=formats.WINDOW)
            if writer is not None:
                writer.close()
        path = spool / f"dataset-{sha256_file(temporary)[:16]}.arrow"
        temporary.replace(path)
    except OSError as error:
        raise OutputError(
            f"cannot write the dataset into {spool}: {error.strerror or error}; free space or give another --out"
        ) from error
    finally:
        remove(temporary)
    return FoundFile(path.name, str(path), "arrow")


def _is_unchanged(source: SourceFile) -> bool:
    try:
        return formats.measure(source.format, source.location) == (source.bytes, source.sha256)
    except DataError:
        return False
