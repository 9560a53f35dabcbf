"""MosaicML's MDS: a folder of shards with an index, which `streaming.StreamingDataset` reads.

The library that reads it holds numpy and transformers to versions older than ours, so it cannot be a dependency; the
format is small. A shard has the number of samples n, n + 1 offsets (all uint32, little-endian, from the start of the
file), the shard's description as JSON, and the samples. A sample has the sizes (uint32) of those values that have no
fixed size, and then all values; columns are sorted by name. The writer of the library, given the same samples, writes
the same bytes (mosaicml-streaming 0.13, streaming/base/format/mds).
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tamis.errors import DataError
from tamis.exports.shards import in_shards
from tamis.exports.values import jsonable
from tamis.pipelines.sources import is_list, is_text

if TYPE_CHECKING:
    from pathlib import Path

    from tamis.exports.rows import KeptRows

_LARGEST = 2**32 - 1  # offsets are uint32
_SHAPE_TYPES = ("u1", "<u2", "<u4", "<u8")


def write_mds(rows: KeptRows, path: Path, shard_bytes: int) -> None:
    """Write the folder.

    Texts, bytes, numbers and lists of numbers are what they are; every other type, and every column that has nulls, is
    JSON as `jsonable` makes it. An image is its file's bytes.

    Args:
        rows: What to write.
        path: The folder to make.
        shard_bytes: How large a shard may be; one sample is always written whole.

    Raises:
        DataError: A sample is too large for the format.
    """
    rows = rows.with_plain_images()
    names = sorted(rows.schema.names)
    encodings = [_encoding(rows, name) for name in names]
    description = {
        "column_encodings": encodings,
        "column_names": names,
        "column_sizes": [_fixed_size(encoding) for encoding in encodings],
        "compression": None,
        "format": "mds",
        "hashes": ["sha256"],
        "size_limit": shard_bytes,
        "version": 2,
    }
    text = json.dumps(description, sort_keys=True).encode()
    path.mkdir()
    written: list[dict[str, Any]] = []
    # The head without offsets has 8 bytes beside the description; a sample has an offset.
    encoded = (_sample(encodings, [row[name] for name in names]) for row in rows.each())
    for samples in in_shards(encoded, lambda sample: 4 + len(sample), shard_bytes - 8 - len(text)):
        file = path / f"shard.{len(written):05d}.mds"
        written.append({**description, **_write_shard(file, text, list(samples)), "zip_data": None})
    index = json.dumps({"shards": written, "version": 2}, sort_keys=True)
    with (path / "index.json").open("x", encoding="utf-8") as stream:
        stream.write(index)


def _write_shard(path: Path, text: bytes, samples: list[bytes]) -> dict[str, Any]:
    """Write one shard; gives what the index says of it alone."""
    count = len(samples)
    ends = np.cumsum([0, *map(len, samples)], dtype=np.int64) + 4 + 4 * (count + 1) + len(text)
    if ends[-1] > _LARGEST:
        raise DataError(f"a sample has {len(samples[0])} bytes; a shard of MDS holds 4 GiB: export to webdataset")
    content = [np.array([count], "<u4").tobytes(), ends.astype("<u4").tobytes(), text, *samples]
    sha256 = hashlib.sha256()
    with path.open("xb") as stream:
        for data in content:
            stream.write(data)
            sha256.update(data)
    file = {"basename": path.name, "bytes": int(ends[-1]), "hashes": {"sha256": sha256.hexdigest()}}
    return {"raw_data": file, "samples": count}


def _encoding(rows: KeptRows, name: str) -> str:
    """How the library calls what a column's values are."""
    kind = rows.schema.field(name).type
    if name in rows.source.names and rows.has_nulls(name):
        return "json"
    if is_text(kind):
        return "str"
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return "bytes"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return str(np.dtype(kind.to_pandas_dtype()).name)
    if _is_array(kind) and not any(pc.list_flatten(column).null_count for column in rows.columns(name)):
        return f"ndarray:{np.dtype(kind.value_type.to_pandas_dtype()).name}"
    return "json"


def _is_array(kind: pa.DataType) -> bool:
    return is_list(kind) and bool(pa.types.is_integer(kind.value_type) or pa.types.is_floating(kind.value_type))


def _fixed_size(encoding: str) -> int | None:
    return None if encoding in ("str", "bytes", "json") or ":" in encoding else np.dtype(encoding).itemsize


def _sample(encodings: list[str], values: list[Any]) -> bytes:
    encoded = [_encoded(encoding, value) for encoding, value in zip(encodings, values, strict=True)]
    sizes = [len(data) for encoding, data in zip(encodings, encoded, strict=True) if _fixed_size(encoding) is None]
    return b"".join([np.array(sizes, "<u4").tobytes(), *encoded])


def _encoded(encoding: str, value: Any) -> bytes:
    if encoding == "bytes":
        return bytes(value)
    if encoding == "str":
        return str(value).encode()
    if encoding == "json":
        return json.dumps(jsonable(value)).encode()
    name, _, of = encoding.partition(":")
    array = np.asarray(value, np.dtype(of or name).newbyteorder("<"))
    if not of:
        return array.tobytes()
    shape_type = int(np.searchsorted([2**8, 2**16, 2**32], array.size, side="right"))
    # Number of axes and type of the shape in one byte, then the shape, then the values.
    return bytes([1 << 2 | shape_type]) + np.array([array.size], _SHAPE_TYPES[shape_type]).tobytes() + array.tobytes()
