"""Finding the dataset of a manifest again, and refusing another one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tamis.errors import DatasetMismatchError, OutputError
from tamis.manifests.fingerprint import dataset_fingerprint
from tamis.manifests.reader import locate as find_manifest
from tamis.pipelines.run import COMMITTED, read_run
from tamis.pipelines.sources import SourceFile, listing, resolve, scan

if TYPE_CHECKING:
    from pathlib import Path

    from tamis.manifests.reader import Manifest


def locate(folder: Path, data: Path | None = None) -> str:
    """Say where a run's dataset lies: where `data` says, or where the run read it.

    Raises:
        DatasetMismatchError: If neither is known, as with a manifest folder that was copied elsewhere.
    """
    if data is not None:
        return str(data)
    for candidate in (folder, folder.resolve().parent):
        try:
            return str(read_run(candidate, names=("data",))["data"])
        except OutputError:
            continue
    raise DatasetMismatchError(f"{folder} does not say where its dataset lies; give it with --data")


def home_of(path: str | Path) -> Path:
    """The run folder of a manifest, however it is named, or the manifest's own folder where it lies in none."""
    folder, _ = find_manifest(path)
    return folder.parent if folder.name == "manifest" and (folder.parent / COMMITTED).is_file() else folder


def open_dataset(manifest: Manifest, folder: Path, data: Path | None = None) -> tuple[SourceFile, ...]:
    """Open a manifest's dataset.

    Raises:
        DatasetMismatchError: If its fingerprint is not the manifest's.
    """
    sources = scan_all(locate(folder, data))
    manifest.verify_dataset(fingerprint_of(sources, manifest))
    return sources


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
