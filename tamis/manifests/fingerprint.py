"""The fingerprint of a dataset: what a manifest was made from, wherever the files lie."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from tamis.manifests.canonical import digest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_FILE_KEYS = ("path", "bytes", "sha256", "rows")


def dataset_fingerprint(files: Sequence[Mapping[str, Any]], schema: str, fields: Mapping[str, str | None]) -> str:
    """The sha256 over the sorted listing of a dataset's files, its schema and the fields that are used.

    Neither times nor absolute paths enter: a copy elsewhere has the same fingerprint.

    Args:
        files: One mapping a file: `path` (relative, posix), `bytes`, `sha256`, `rows`; others are ignored.
        schema: The schema, or its digest, as text.
        fields: Which column plays which part, such as ``{"id": "tweet_id", "text": "text", "label": None}``.

    Returns:
        64 hex digits.

    Raises:
        ValueError: A path is absolute, leads upwards, or is there twice.
        TypeError: A value has no canonical JSON.
    """
    listing = sorted(({key: file[key] for key in _FILE_KEYS} for file in files), key=lambda file: file["path"])
    paths = [file["path"] for file in listing]
    for path in paths:
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise ValueError(f"the path {path!r} was given; relative paths inside the dataset are allowed")
    if len(set(paths)) < len(paths):
        raise ValueError(f"a path is there twice among {paths}")
    return digest({"format": "tamis-dataset-1", "files": listing, "schema": schema, "fields": dict(fields)})
