"""WebDataset's tar shards: the files of a sample have its key as their name, and their extension says what they are.

A sample has a `.json` of all columns that have no file of their own, and of its id, weight and rank; by the columns'
roles a `.txt` (text), a `.jpg` or the like (image), a `.cls` (label, where it is a whole number), `.tokens.npy` and
`.vectors.npy`. What is null has no file, or is null in the JSON. The standard library writes the tar: times, owners and
modes are constant, so the same subset has the same bytes.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import tarfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tamis.exports.shards import in_shards
from tamis.exports.values import jsonable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tamis.exports.rows import KeptRows

_IMAGES = {
    b"\xff\xd8\xff": "jpg",
    b"\x89PNG": "png",
    b"GIF8": "gif",
    b"BM": "bmp",
    b"II*\0": "tif",
    b"MM\0*": "tif",
    b"P5": "pgm",  # as images of IDX files are read
    b"P6": "ppm",
}

File = tuple[str, bytes]


def write_webdataset(rows: KeptRows, path: Path, shard_bytes: int) -> None:
    """Write a folder of `shard-000000.tar`, `shard-000001.tar`, ...

    Args:
        rows: What to write; the rank is the key.
        path: The folder to make.
        shard_bytes: How large a shard may be; one sample is always written whole.
    """
    rows = rows.with_plain_images()
    path.mkdir()
    for number, samples in enumerate(in_shards(_samples(rows), _tar_bytes, shard_bytes)):
        with (
            (path / f"shard-{number:06d}.tar").open("xb") as stream,
            tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for name, data in itertools.chain.from_iterable(samples):
                info = tarfile.TarInfo(name)
                info.size = len(data)  # its time, user and group are 0 and nameless, its mode is 0644
                tar.addfile(info, io.BytesIO(data))


def _tar_bytes(files: list[File]) -> int:
    """What files take in a tar: a block for each head, and content filled up to whole blocks."""
    return sum(tarfile.BLOCKSIZE * (1 + math.ceil(len(data) / tarfile.BLOCKSIZE)) for _, data in files)


def _samples(rows: KeptRows) -> Iterator[list[File]]:
    """The files of each sample, named by its rank."""
    own = {column: _writer(role, rows.source.field(column).type) for role, column in rows.fields.items()}
    for number, row in enumerate(rows.each()):
        files = [write(row.pop(name)) for name, write in own.items() if write is not None]
        files.append(("json", json.dumps(jsonable(row), ensure_ascii=False, allow_nan=False).encode()))
        yield [(f"{number:09d}.{extension}", data) for extension, data in files if data is not None]


def _writer(role: str, kind: pa.DataType) -> Callable[[Any], tuple[str, bytes | None]] | None:
    """What makes a file's extension and content of the values of a role, if they have a file of their own."""
    if role == "text":
        return lambda value: ("txt", None if value is None else value.encode())
    if role == "image":
        return lambda value: ("img" if value is None else _image_extension(value), value)
    if role == "label" and pa.types.is_integer(kind):
        return lambda value: ("cls", None if value is None else str(value).encode())
    if role in ("tokens", "vectors"):
        dtype = np.int64 if pa.types.is_null(kind.value_type) else kind.value_type.to_pandas_dtype()
        return lambda value: (f"{role}.npy", None if value is None else _npy(np.asarray(value, dtype)))
    return None


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _image_extension(data: bytes) -> str:
    """By the first bytes, since a column of images has no names."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return next((name for start, name in _IMAGES.items() if data.startswith(start)), "img")
