"""Finding the dataset of a manifest again, and refusing another one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tamis.errors import DatasetMismatchError, OutputError, RecipeError
from tamis.manifests.fingerprint import dataset_fingerprint
from tamis.manifests.reader import locate as find_manifest
from tamis.pipelines.run import COMMITTED, read_run_of
from tamis.pipelines.sources import SourceFile, listing, resolve, scan, take_rows

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tamis.manifests.reader import Manifest


def locate(manifest: Manifest, data: Path | None = None) -> str:
    """Say where a manifest's dataset lies: where `data` says, or where the run read it.

    Raises:
        DatasetMismatchError: If neither is known, as with a manifest folder that was copied elsewhere.
    """
    if data is not None:
        return str(data)
    try:
        return str(read_run_of(manifest, names=("data",))[1]["data"])
    except OutputError:
        raise DatasetMismatchError(
            f"{manifest.folder} does not say where its dataset lies; give it with --data"
        ) from None


def home_of(path: str | Path) -> Path:
    """The run folder of a manifest, however it is named, or the manifest's own folder where it lies in none."""
    folder, _ = find_manifest(path)
    return folder.parent if folder.name == "manifest" and (folder.parent / COMMITTED).is_file() else folder


def open_dataset(manifest: Manifest, data: Path | None = None) -> tuple[SourceFile, ...]:
    """Open a manifest's dataset.

    Raises:
        DatasetMismatchError: If its fingerprint is not the manifest's.
    """
    sources = scan_all(locate(manifest, data))
    manifest.verify_dataset(fingerprint_of(sources, manifest))
    return sources


def read_texts(manifest: Manifest, rows: Sequence[int], data: Path | None = None) -> list[str | None]:
    """Read the texts of some rows of a manifest's dataset; None where there is none.

    Raises:
        RecipeError: The dataset has no column of texts.
        DatasetMismatchError: If it is not the manifest's, or not to be found.
    """
    fields = manifest.record["dataset"]["fields"]
    if fields.get("text") is None:
        named = ", ".join(f"{role}: {column}" for role, column in fields.items())
        raise RecipeError(f"the dataset of {manifest.folder} has no column of texts to show; its columns are {named}")
    table = take_rows(open_dataset(manifest, data), np.array(rows, np.int64), [fields["text"]])
    return [None if text is None else str(text) for text in table[fields["text"]].to_pylist()]


def scan_all(path: str) -> tuple[SourceFile, ...]:
    """Find and hash the files of a dataset.

    Raises:
        DataError: If there are none, or one cannot be read.
    """
    return tuple(scan(found) for found in resolve(path))


def fingerprint_of(sources: tuple[SourceFile, ...], manifest: Manifest) -> str:
    """The fingerprint of files under a manifest's schema and fields."""
    recorded = manifest.record["dataset"]
    return dataset_fingerprint(listing(sources), recorded["schema"], recorded["fields"])
