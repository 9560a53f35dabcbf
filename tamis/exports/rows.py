"""The kept rows of a dataset in rank order, without holding them all in memory."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tamis.errors import DataError
from tamis.pipelines.sources import common_schema, conformed, stacked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from tamis.manifests.reader import Manifest

ID, WEIGHT, RANK = "tamis_id", "tamis_weight", "tamis_rank"
_ADDED = pa.schema([(ID, pa.string()), (WEIGHT, pa.float32()), (RANK, pa.int32())])
_PART_BYTES = 64 << 20  # of the dataset's order; more than one part lie on disk
_BATCH_BYTES = 32 << 20  # of the rank's order, on average
_BATCH_ROWS = 65_536


@dataclass(frozen=True, slots=True, eq=False)
class KeptRows:
    """The rows that a manifest kept, gathered.

    Attributes:
        select: The manifest's table of them, in rank order.
        fields: Which columns of the dataset have which role, such as `{"text": "tweet"}`.
        source: Names and types of the dataset's columns.
        parts: The rows in the dataset's order, mapped from files where they are many.
    """

    select: pa.Table
    fields: Mapping[str, str]
    source: pa.Schema
    parts: Sequence[pa.Table] = field(repr=False)

    @property
    def schema(self) -> pa.Schema:
        """The dataset's columns, and `tamis_id` (string), `tamis_weight` (float32) and `tamis_rank` (int32)."""
        return pa.schema([*self.source, *_ADDED])

    def columns(self, name: str) -> Iterator[pa.ChunkedArray]:
        """All values of one of the dataset's columns, part by part; where a part lacks it there is none."""
        return (part[name] for part in self.parts if name in part.column_names)

    def has_nulls(self, name: str) -> bool:
        """Whether one of the dataset's columns has a null, or is not there in all files."""
        found = list(self.columns(name))
        return len(found) < len(self.parts) or any(column.null_count for column in found)

    def with_plain_images(self) -> KeptRows:
        """The same rows, with the bytes of images where they are stored as Hugging Face's structs of bytes and path."""
        image = self.fields.get("image")
        if image is None or not pa.types.is_struct(self.source.field(image).type):
            return self
        parts = [
            part.set_column(part.column_names.index(image), image, pc.struct_field(part[image], "bytes"))
            if image in part.column_names
            else part
            for part in self.parts
        ]
        return replace(self, source=common_schema([part.schema for part in parts]), parts=parts)

    def each(self) -> Iterator[dict[str, Any]]:
        """Row by row in rank order, the values of all columns of `schema`."""
        for batch in self.batches():
            for piece in batch.to_batches(max_chunksize=1024):
                yield from piece.to_pylist()

    def batches(self) -> Iterator[pa.Table]:
        """The rows in rank order with all columns of `schema`, some megabytes at a time."""
        rows = len(self.select)
        place = np.empty(rows, np.int64)
        place[np.argsort(self.select["row"].to_numpy())] = np.arange(rows)
        starts = np.cumsum([0, *(len(part) for part in self.parts)])
        row_bytes = sum(part.nbytes for part in self.parts) / max(1, rows)
        step = int(np.clip(_BATCH_BYTES / max(1.0, row_bytes), 1, _BATCH_ROWS))
        for first in range(0, rows, step):
            ascending = np.argsort(wanted := place[first : first + step])
            bounds = np.searchsorted(wanted[ascending], starts)
            taken = [
                conformed(part.take(pa.array(wanted[ascending[low:high]] - start)), self.source)
                for part, start, low, high in zip(self.parts, starts, bounds, bounds[1:], strict=False)
                if low < high
            ]
            batch = pa.concat_tables(taken).take(pa.array(np.argsort(ascending)))
            own = self.select.slice(first, step)
            added = [
                own[name].cast(kind) for name, kind in zip(("sample_id", "weight", "rank"), _ADDED.types, strict=True)
            ]
            yield pa.table([*batch.columns, *added], schema=self.schema).combine_chunks()


def gather(manifest: Manifest, read: Callable[[np.ndarray], Iterable[pa.Table]], folder: Path) -> KeptRows:
    """Read the kept rows once, in the dataset's order.

    Args:
        manifest: Which rows.
        read: From int64[k] row numbers of the dataset, ascending, to tables that hold these rows, in that order.
        folder: Where parts are written if there is more than one; there may be nothing in it.

    Raises:
        DataError: The dataset has columns of the added names, other rows came than were asked for, or a column's types
            have none in common.
        OSError: A part cannot be written.
    """
    wanted = np.sort(manifest.select["row"].to_numpy())
    parts: list[pa.Table] = []
    held: list[pa.Table] = []
    came = size = 0
    for piece in read(wanted):
        taken = [name for name in _ADDED.names if name in piece.column_names]
        if taken:
            raise DataError(f"the source has the columns {taken}, which the export adds: rename them first")
        held.append(piece)
        came, size = came + len(piece), size + piece.nbytes
        if size >= _PART_BYTES:
            parts.append(_on_disk(stacked(held), folder / f"{len(parts):05d}.arrow"))
            held, size = [], 0
    if held:
        parts.append(stacked(held))
    if came != len(wanted):
        raise DataError(f"{len(wanted)} rows were asked of the source, {came} came")
    source = common_schema([part.schema for part in parts])
    return KeptRows(manifest.select, manifest.record["dataset"]["fields"], source, parts)


def _on_disk(table: pa.Table, path: Path) -> pa.Table:
    """The table, written and mapped."""
    with path.open("xb") as stream, pa.ipc.new_file(stream, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
