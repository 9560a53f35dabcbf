"""Opening a manifest: every byte is checked before any of it is used, and nothing in it is ever run."""

from __future__ import annotations

import difflib
import hashlib
import mmap
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from tamis.errors import DamagedManifestError, DataError, DatasetMismatchError, OutputError
from tamis.manifests.canonical import digest, unsealed
from tamis.manifests.schema import (
    AUDIT,
    COMPUTED_KEYS,
    DECISIONS,
    FEATURES,
    FORMAT,
    VERSION,
    check_body,
    check_tables,
    count_decisions,
    select_schema,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

_RECORD_NAME = re.compile(r"v([0-9]{6,18})\.json")
_PART_NAME = re.compile(r"data/(select|audit)-([0-9]{5,})-of-([0-9]{5,})\.([0-9a-f]{16})\.arrow")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMPARED_IDS, _COMPARED_BYTES = 1000, 200  # by difflib, which takes long


@dataclass(frozen=True, slots=True, eq=False)
class Manifest:
    """A verified subset manifest.

    Attributes:
        folder: The manifest folder.
        version: Which version of it this is, from 1.
        record: The commit record's body.
        select: The samples to train on, in rank order (`tamis.manifests.schema.select_schema`).
        audit: One row per input row, in row order (`tamis.manifests.schema.AUDIT`).
    """

    folder: Path
    version: int
    record: dict[str, Any]
    select: pa.Table
    audit: pa.Table

    @property
    def subset_id(self) -> str:
        """The identity of the subset: equal recipe, data and lock give equal ids (64 hex digits)."""
        return str(self.record["subset_id"])

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the dataset that the rows are of."""
        return str(self.record["dataset"]["fingerprint"])

    @property
    def reasons(self) -> list[str]:
        """The texts that `reason` columns point into."""
        return list(self.record["reasons"])

    @property
    def stages(self) -> list[dict[str, Any]]:
        """The stages that `stage` columns point into."""
        return list(self.record["stages"])

    def verify_dataset(self, fingerprint: str) -> None:
        """Refuse a dataset that is not the one this manifest was made from.

        Raises:
            DatasetMismatchError: The fingerprints differ.
        """
        if fingerprint != self.fingerprint:
            raise DatasetMismatchError(
                f"the dataset's fingerprint is {fingerprint}, the manifest {self.folder} was made from "
                f"{self.fingerprint}: use the dataset it was made from, or make a manifest of this one"
            )

    def explain(self, sample_id: str) -> dict[str, Any]:
        """What became of one sample, and why.

        Returns:
            `sample_id`, `row`, `content_hash` (hex), `decision`, `stage` (its name), `reason`, `kept_row` and
            `kept_sample_id` (who stands for it, or None), `score`; for a kept sample also its columns of
            `select`.

        Raises:
            DataError: There is no such sample.
        """
        ids, wanted = self.audit["sample_id"], str(sample_id)
        possible = wanted.encode("utf-8", "ignore").decode() == wanted  # a lone surrogate is in no id
        position = pc.index(ids, wanted).as_py() if possible else -1
        if position < 0:
            near = _similar(wanted, ids) if possible else []
            hint = f"; the nearest ids are {', '.join(map(repr, near))}" if near else ""
            raise DataError(
                f"no sample has the id {sample_id!r} among the {self.audit.num_rows} rows of {self.folder}; "
                f"ids are compared as text, exactly{hint}"
            )
        return self.explain_row(position)

    def explain_row(self, row: int) -> dict[str, Any]:
        """What became of one row of the dataset; as `explain`.

        Raises:
            DataError: There is no such row.
        """
        if not 0 <= row < self.audit.num_rows:
            raise DataError(f"there is no row {row} in {self.folder}: its rows are 0 to {self.audit.num_rows - 1}")
        found: dict[str, Any] = self.audit.slice(row, 1).to_pylist()[0]
        found["content_hash"] = found["content_hash"].hex()
        found["decision"] = list(DECISIONS)[found["decision"]]
        found["stage"] = self.stages[found["stage"]]["name"]
        found["reason"] = self.reasons[found["reason"]]
        stands = found["kept_row"]
        found["kept_sample_id"] = None if stands is None else self.audit["sample_id"][stands].as_py()
        if found["decision"] == "kept":
            chosen = pc.index(self.select["row"], row).as_py()
            details = self.select.slice(chosen, 1).to_pylist()[0]
            found |= {name: value for name, value in details.items() if name not in found}
        return found


def open_manifest(path: str | Path, version: int | None = None) -> Manifest:
    """Open and verify a manifest.

    Files in the folder that no commit record names (an interrupted commit may leave some) are not looked at.

    Args:
        path: A run folder (its `manifest` folder is taken), a manifest folder, or the commit record of one version.
        version: Which version; the newest one if None, or that of the record.

    Returns:
        The manifest; its tables are memory-mapped.

    Raises:
        OutputError: There is no such manifest, or no such version of it.
        DamagedManifestError: Any byte, count or rule is not what the record says, or the format is of another
            major version. The message names the file.
    """
    folder, named = locate(path)
    version = named if version is None else version
    found = versions(folder)
    if not found:
        raise OutputError(
            f"{folder} has no commit record (v000001.json): {_what_is_there(folder)}; give the folder of a run that "
            "has ended, its manifest folder, or a version such as manifest/v000001.json"
        )
    number = found[-1] if version is None else version
    if number not in found:
        raise OutputError(f"{record_path(folder, number)} does not exist; versions there are {found}")
    record = read_record(folder, number)
    select, audit = read_tables(folder, record)
    return Manifest(folder, number, record, select, audit)


def _similar(wanted: str, ids: pa.ChunkedArray) -> list[str]:
    """At most three ids like the wanted one, of those that share most of its beginning or of its end."""
    ids = ids.filter(pc.less_equal(pc.binary_length(ids), _COMPARED_BYTES))
    near = []
    for length in range(min(len(wanted), _COMPARED_BYTES), 0, -1):
        near = ids.filter(pc.or_(pc.starts_with(ids, wanted[:length]), pc.ends_with(ids, wanted[-length:])))
        if len(near):
            break
    return difflib.get_close_matches(wanted[:_COMPARED_BYTES], [one.as_py() for one in near[:_COMPARED_IDS]], 3, 0.5)


def locate(path: str | Path) -> tuple[Path, int | None]:
    """The manifest folder that `open_manifest` would take, and the version if a commit record is named."""
    place = Path(path)
    named = _RECORD_NAME.fullmatch(place.name)
    if named is not None and versions(place.parent):
        return place.parent, int(named[1])
    return (place / "manifest" if versions(place / "manifest") else place), None


def versions(folder: Path) -> list[int]:
    """The versions that have a commit record, ascending; empty where there is no folder."""
    try:
        names = [entry.name for entry in os.scandir(folder)]
    except (OSError, ValueError):  # ValueError: NUL is in no path
        return []
    matches = [_RECORD_NAME.fullmatch(name) for name in names]
    numbers = {int(match[1]) for match in matches if match}
    return sorted(number for number in numbers if number > 0)


def _what_is_there(folder: Path) -> str:
    """Why a place has no commit record, in words."""
    try:
        with os.scandir(folder):
            return "nothing was committed here"
    except FileNotFoundError:
        return "it does not exist"
    except (OSError, ValueError) as error:
        return f"it is no folder that can be read ({getattr(error, 'strerror', None) or error})"


def record_path(folder: Path, version: int) -> Path:
    """Where a version's commit record is."""
    return folder / f"v{version:06d}.json"


def read_record(folder: Path, version: int) -> dict[str, Any]:
    """Read and verify one commit record (not its parts); returns its body.

    Raises:
        DamagedManifestError: The bytes are not canonical, not what their sha256 says, or not of this format.
    """
    path = record_path(folder, version)
    try:
        body = unsealed(bytes(_map(path)))
    except (OSError, ValueError) as error:
        raise DamagedManifestError(f"{path} is damaged: {error}; restore it from a copy or run again") from error
    _check_version(path, body)
    try:
        check_body(body)
        missing = [key for key in COMPUTED_KEYS if key not in body]
        if missing:
            raise ValueError(f"the record's body lacks {missing}")
        if body["subset_id"] != digest({key: value for key, value in body.items() if key != "subset_id"}):
            raise ValueError("subset_id is not the digest of the body")
    except ValueError as error:
        raise DamagedManifestError(f"{path} is not a valid commit record: {error}") from error
    return body


def read_tables(folder: Path, body: Mapping[str, Any]) -> tuple[pa.Table, pa.Table]:
    """Read and verify the parts that a record's body names; returns the select and the audit table.

    Raises:
        DamagedManifestError: A part is missing, linked, named outside `data`, damaged or of another schema,
            or the tables do not obey `tamis.manifests.schema.check_tables`.
    """
    try:
        listed = _listed_parts(body["files"])
        schemas = {"select": select_schema(body["scores"]), "audit": AUDIT}
    except (ValueError, TypeError, KeyError) as error:
        raise DamagedManifestError(f"the commit record in {folder} lists its files wrongly: {error}") from error
    if (folder / "data").is_symlink():
        raise DamagedManifestError(f"{folder / 'data'} is a link; a manifest's parts lie in its own folder")
    tables = {}
    for name, schema in schemas.items():
        batches = [batch for file in listed[name] for batch in _read_part(folder, file, schema)]
        tables[name] = pa.Table.from_batches(batches, schema=schema)
    try:
        check_tables(tables["select"], tables["audit"], body)
        if body["counts"] != count_decisions(tables["audit"]):
            raise ValueError("counts are not those of the audit")
    except ValueError as error:
        raise DamagedManifestError(f"the manifest in {folder} contradicts itself: {error}") from error
    return tables["select"], tables["audit"]


def _check_version(path: Path, body: object) -> None:
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise DamagedManifestError(f"{path} is not a {FORMAT} record")
    version = body.get("version")
    if not (isinstance(version, list) and len(version) == 2 and all(type(part) is int for part in version)):
        raise DamagedManifestError(f"{path} has the format version {version!r}; [major, minor] is allowed")
    if version[0] != VERSION[0]:
        raise DamagedManifestError(
            f"{path} has the format version {version[0]}.{version[1]}; this Tamis reads {VERSION[0]}.x: "
            "use the Tamis that wrote it, or a newer one"
        )
    demanded = body.get("required_features")
    demanded = demanded if isinstance(demanded, list) else []
    unknown = [feature for feature in demanded if not (isinstance(feature, str) and feature in FEATURES)]
    if unknown:
        raise DamagedManifestError(f"{path} needs the features {unknown}, which this Tamis does not know")


def _listed_parts(files: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The files of each table in part order, after checking every name and number."""
    parts: dict[str, dict[int, dict[str, Any]]] = {"select": {}, "audit": {}}
    counts: dict[str, set[int]] = {"select": set(), "audit": set()}
    for file in files:
        match = _PART_NAME.fullmatch(file["path"])
        if match is None:
            raise ValueError(f"{file['path']!r} is not a plain part name inside data/")
        if not _SHA256.fullmatch(file["sha256"]) or match[4] != file["sha256"][:16]:
            raise ValueError(f"{file['path']!r} is not named by its sha256 {file['sha256']!r}")
        if any(type(file[key]) is not int or file[key] < 0 for key in ("rows", "bytes")):
            raise ValueError(f"{file['path']!r} has rows or bytes that are not counts")
        if int(match[2]) in parts[match[1]]:
            raise ValueError(f"{file['path']!r} is a second part of that number")
        parts[match[1]][int(match[2])] = file
        counts[match[1]].add(int(match[3]))
    for name, found in parts.items():
        if counts[name] != {len(found)} or sorted(found) != list(range(len(found))):
            raise ValueError(f"the {name} parts {sorted(found)} are not complete and of one set")
    return {name: [found[i] for i in range(len(found))] for name, found in parts.items()}


def _read_part(folder: Path, file: Mapping[str, Any], schema: pa.Schema) -> list[pa.RecordBatch]:
    path = folder / file["path"]
    try:
        content = _map(path)
        if len(content) != file["bytes"] or hashlib.sha256(content).hexdigest() != file["sha256"]:
            raise ValueError("its bytes are not those of the commit record")
        reader = pa.ipc.open_file(pa.py_buffer(content))
        if not reader.schema.equals(schema, check_metadata=True):
            raise ValueError(f"its schema is {reader.schema.to_string()}, not the format's")
        batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        for batch in batches:
            batch.validate(full=True)
        if sum(batch.num_rows for batch in batches) != file["rows"]:
            raise ValueError(f"it has not the {file['rows']} rows of the commit record")
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DamagedManifestError(f"{path} is damaged: {error}; restore it from a copy or run again") from error
    return batches


def _map(path: Path) -> mmap.mmap | bytes:
    """The content of a regular file that is not a link, memory-mapped."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a regular file")
        return mmap.mmap(descriptor, 0, prot=mmap.PROT_READ) if status.st_size else b""
    finally:
        os.close(descriptor)
