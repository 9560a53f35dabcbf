"""Images as rows of a table: the IDX files of the MNIST family, and folders of class folders of image files.

Each row's `image` is the bytes of an image file, whichever way it lies on the disk; a row of an IDX file becomes
a binary PGM file. So all that reads images reads them by one route.
"""

from __future__ import annotations

import functools
import gzip
import math
import os
import re
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tamis.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
"""File name extensions of images in a folder of them."""

_IDX = re.compile(r"(.*)([-.])idx([13])-ubyte(\.gz)?")
_CHUNK = 1 << 20


# --- IDX ---------------------------------------------------------------------------------------------------


def is_idx_images(path: Path) -> bool:
    """Whether a file is named as images of the MNIST family are, such as `train-images-idx3-ubyte.gz`."""
    matched = _IDX.fullmatch(path.name)
    return matched is not None and matched[3] == "3"


def is_idx_labels(path: Path) -> bool:
    """Whether a file is named as labels of the MNIST family are, such as `train-labels-idx1-ubyte.gz`."""
    matched = _IDX.fullmatch(path.name)
    return matched is not None and matched[3] == "1"


def idx_files(location: str) -> list[tuple[str, Path]]:
    """The file of images, and that of labels if it lies beside it, compressed or not; each with its name."""
    images = Path(location)
    matched = _IDX.fullmatch(images.name)
    assert matched is not None
    stem, mark, _, packed = matched.groups()
    labels = f"{stem.replace('images', 'labels')}{mark}idx1-ubyte"
    names = [labels + ".gz", labels] if packed else [labels, labels + ".gz"]
    found = [path for path in (images.with_name(name) for name in names) if path.is_file()]
    return [(path.name, path) for path in (images, *found[:1])]


def count_idx(location: str) -> tuple[int, list[str]]:
    """Rows and column names.

    Raises:
        DataError: One of the two files is not whole, or they differ in their number of rows.
    """
    (_, images), *labels = idx_files(location)
    rows = len(_load_idx(images, 3))
    for _, path in labels:
        if (found := len(_load_idx(path, 1))) != rows:
            raise DataError(f"{images} holds {rows} images, {path} {found} labels; the two must be equal")
    return rows, ["image", "label"] if labels else ["image"]


def read_idx(location: str, sha256: str, columns: list[str], start: int, stop: int) -> tuple[pa.Table, np.ndarray]:
    """Rows [start, stop): `image`, a binary PGM file, and `label`, int64."""
    paths = [path for _, path in idx_files(location)]
    made = {}
    for name in columns:
        if name == "image":
            pixels = _idx_array(paths[0], sha256, 3)[start:stop]
            header = b"P5\n%d %d\n255\n" % (pixels.shape[2], pixels.shape[1])
            made[name] = pa.array([header + image.tobytes() for image in pixels], pa.large_binary())
        else:
            made[name] = pa.array(_idx_array(paths[1], sha256, 1)[start:stop], pa.int64())
    return pa.table(made), np.zeros(stop - start, dtype=np.uint8)


@functools.lru_cache(maxsize=4)
def _idx_array(path: Path, sha256: str, dims: int) -> npt.NDArray[np.uint8]:  # noqa: ARG001 (sha256 is in the key)
    """The last ones are kept: nothing can be read from the middle of a gzip file."""
    return _load_idx(path, dims)


def _load_idx(path: Path, dims: int) -> npt.NDArray[np.uint8]:
    """Read a whole IDX file of bytes.

    Returns:
        uint8[n] if `dims` is 1, uint8[n, height, width] if it is 3.

    Raises:
        DataError: It is no such file, it is truncated, or bytes follow its end.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
            head = stream.read(4 + 4 * dims)
            if head[:2] != b"\0\0" or len(head) < 4:
                raise DataError(f"{path}: is no IDX file: it begins with {head[:4].hex(' ') or 'nothing'}")
            if head[2:4] != bytes([8, dims]):
                raise DataError(
                    f"{path}: holds type {head[2]:#04x} in {head[3]} dimensions; unsigned bytes (0x08) in "
                    f"{dims} are read from a file of this name"
                )
            if len(head) < 4 + 4 * dims:
                raise DataError(f"{path}: is truncated in its header")
            shape = tuple(np.frombuffer(head, ">u4", dims, 4).tolist())
            expected = math.prod(shape)
            body = bytearray()
            # A header can promise anything: memory is taken for what is there.
            while len(body) <= expected and (chunk := stream.read(_CHUNK)):
                body += chunk
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    if 0 in shape[1:]:
        raise DataError(f"{path}: holds images of {shape[2]} x {shape[1]} pixels")
    if len(body) != expected:
        what = "truncated" if len(body) < expected else "followed by something else"
        raise DataError(
            f"{path}: its header promises {' x '.join(map(str, shape))} = {expected} bytes, and "
            f"{len(body) if len(body) < expected else 'more'} follow: it is {what}"
        )
    return np.frombuffer(body, np.uint8).reshape(shape)


# --- folders -----------------------------------------------------------------------------------------------


def has_images(folder: Path) -> bool:
    """Whether there is an image file in a folder, at any depth."""
    return any(_is_image(name) for _, names in _walk(folder) for name in names)


def folder_files(location: str) -> list[tuple[str, Path]]:
    """The image files of a folder by their relative paths, in the order of these: what a row is.

    Raises:
        DataError: A folder cannot be listed, a name is not UTF-8, or class folders lie deeper than one level.
    """
    folder = Path(location)
    found = []
    for here, names in _walk(folder):
        for path in (here / name for name in names if _is_image(name)):
            relative = path.relative_to(folder).as_posix()
            try:
                relative.encode("utf-8")
            except UnicodeEncodeError as error:
                raise DataError(f"the file name {relative!r} is not UTF-8: rename it") from error
            if relative.count("/") > 1:
                split = folder / relative.partition("/")[0]
                raise DataError(
                    f"{path} lies more than one folder deep in {folder}: a folder of class folders, with the images "
                    f"directly in these, is read; give such a one, for example {split}"
                )
            if not path.is_file():  # a broken link, or a pipe that would be waited on for ever
                raise DataError(f"{path} is no file that can be read: mend it or remove it")
            found.append((relative, path))
    return sorted(found)


def count_folder(location: str) -> tuple[int, list[str]]:
    """Rows and column names; a folder without folders has no labels."""
    names = [name for name, _ in folder_files(location)]
    return len(names), ["image", *(["label"] if any("/" in name for name in names) else []), "path"]


def read_folder(location: str, sha256: str, columns: list[str], start: int, stop: int) -> tuple[pa.Table, np.ndarray]:
    """Rows [start, stop): `image`, the file's bytes; `label`, its folder's name or null; `path`, relative."""
    files = _listed(location, sha256)[start:stop]
    made = {}
    for column in columns:
        if column == "image":
            made[column] = pa.array([path.read_bytes() for _, path in files], pa.large_binary())
        elif column == "label":
            made[column] = pa.array([name.rpartition("/")[0] or None for name, _ in files], pa.string())
        else:
            made[column] = pa.array([name for name, _ in files], pa.string())
    return pa.table(made), np.zeros(len(files), dtype=np.uint8)


@functools.lru_cache(maxsize=4)
def _listed(location: str, sha256: str) -> tuple[tuple[str, Path], ...]:  # noqa: ARG001 (sha256 is in the key)
    return tuple(folder_files(location))


def _is_image(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(SUFFIXES)


def _walk(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Every folder, hidden ones left out, with the names of the files in it."""
    for name, folders, names in os.walk(folder, onerror=_refuse_unlisted):
        here = Path(name)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for link in (here / name for name in folders if (here / name).is_symlink()):
            raise DataError(f"{link} is a link to a folder, and these are not followed: put the folder itself there")
        yield here, names


def _refuse_unlisted(error: OSError) -> None:
    raise DataError(f"{error.filename} cannot be listed: {error.strerror}") from error
