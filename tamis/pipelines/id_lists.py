"""Lists of samples that other tools have chosen: ids as text or in a table's column, or DataComp's array of uids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tamis.errors import DataError, first_of
from tamis.pipelines.dataset import scan_all
from tamis.pipelines.sources import FORMATS, take_rows

if TYPE_CHECKING:
    from pathlib import Path

_AUTO = ("tamis_id", "sample_id")


@dataclass(frozen=True, slots=True, eq=False)
class IdList:
    """A list of samples, each once.

    Attributes:
        ids: The ids in the list's order, verbatim; uids as 32 hexadecimal digits.
        uids: Whether they are 128-bit uids: a sample's id, or else its content hash.
    """

    ids: pa.Array
    uids: bool


def read_ids(path: Path, column: str = "auto") -> IdList:
    """Read a list.

    Args:
        path: A .npy file of DataComp's uids (dtype u8,u8), a table (parquet, jsonl, csv, Arrow), or else UTF-8 text
            with one id a line.
        column: A table's column of ids; auto: tamis_id or sample_id, or the only one.

    Raises:
        DataError: It cannot be read, or an id is null or there twice.
    """
    if path.suffix == ".npy":
        found = IdList(pa.array(_uids(path), pa.string()), True)
    elif path.suffix.lower() in FORMATS:
        found = IdList(_of_table(path, column), False)
    else:
        found = IdList(pa.array(_lines(path), pa.string()), False)
    if not len(found.ids):
        raise DataError(f"{path}: the list is empty; give one id at least")
    twice = ids_twice(found.ids)
    if twice:
        raise DataError(
            f"{path}: {len(twice)} ids are there more than once: {first_of(twice)}; a sample is chosen once: remove "
            "them"
        )
    return found


def ids_twice(ids: pa.Array | pa.ChunkedArray) -> list[str]:
    """The ids that are there more than once, nulls aside."""
    counts = pc.value_counts(ids.drop_null())
    twice: list[str] = counts.field("values").filter(pc.greater(counts.field("counts"), 1)).to_pylist()
    return twice


def _uids(path: Path) -> list[str]:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: not a whole, valid npy file: {str(error).splitlines()[0]}") from error
    kinds = [array.dtype[name] for name in array.dtype.names or ()]
    if array.ndim != 1 or [(kind.kind, kind.itemsize) for kind in kinds] != [("u", 8)] * 2:
        raise DataError(
            f"{path} has the shape {array.shape} and the dtype {array.dtype}; uids are one row of pairs of uint64, as "
            "in DataComp's subset files (u8,u8): give ids as text, one a line, or in a table"
        )
    first, second = (array[name].tolist() for name in array.dtype.names)
    return [f"{high:016x}{low:016x}" for high, low in zip(first, second, strict=True)]


def _of_table(path: Path, column: str) -> pa.Array:
    files = scan_all(str(path))
    columns = list(dict.fromkeys(name for file in files for name in file.columns))
    if column == "auto":
        named = [name for name in _AUTO if name in columns] or (columns if len(columns) == 1 else [])
        if not named:
            raise DataError(f"{path}: which column has the ids? Name one of {', '.join(columns)}")
        column = named[0]
    table = take_rows(files, np.arange(sum(file.rows for file in files)), [column])
    if table[column].null_count:
        raise DataError(f"{path}: {table[column].null_count} ids in column {column!r} are null; remove these rows")
    try:
        return table[column].cast(pa.string()).combine_chunks()
    except pa.ArrowException as error:
        raise DataError(f"{path}: column {column!r} holds {table[column].type}, which are no ids") from error


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a list of ids, one a line in UTF-8: {error}") from error
    return text.replace("\r\n", "\n").removesuffix("\n").split("\n") if text else []
