"""Committing a manifest: parts first, proof next, and one link that makes it exist."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from tamis.errors import DamagedManifestError, OutputError, TamisError
from tamis.manifests.atomic import content_name, crash_point, write_atomic, write_once
from tamis.manifests.canonical import canonical_table, digest, ipc_bytes, sealed
from tamis.manifests.reader import read_record, read_tables, record_path, versions
from tamis.manifests.schema import (
    AUDIT,
    COMPUTED_KEYS,
    FEATURES,
    FORMAT,
    VERSION,
    check_body,
    check_tables,
    count_decisions,
    select_schema,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pyarrow as pa

PART_ROWS = 1_000_000


def commit(
    folder: Path,
    *,
    select: pa.Table,
    audit: pa.Table,
    body: dict[str, Any],
    before_link: Callable[[], None] | None = None,
    part_rows: int = PART_ROWS,
) -> Path:
    """Make a new version of a manifest, all or nothing.

    The tables are checked and written as content-named parts, read back and verified with the reader's own
    eyes; then `before_link` is called; then the commit record is linked, if it is not there yet.

    Args:
        folder: The manifest folder; made if it is missing.
        select: Columns of `select_schema(body["scores"])`, rows in rank order.
        audit: Columns of `AUDIT`, every row of the dataset once, in any order.
        body: The record's body: `BODY_KEYS` of `tamis.manifests.schema`, and others at will. `dataset` has at
            least `fingerprint`, `rows`, `schema`, `fields` (from role to column) and `sources` (mappings with
            `rows`), `recipe` is a mapping, `stages` are mappings with a `name`, `reasons` strings, `scores` a
            mapping from name to declaration, `certificate` and `schedule` mappings or None.
        before_link: Called after all parts are verified and before the manifest exists; verifies that the
            sources have not changed, and raises if they have.
        part_rows: Rows in a part file.

    Returns:
        The path of the commit record: the newest one if it has this very subset already, and nothing is
        written then; otherwise that of the next version.

    Raises:
        TamisError: The tables or the body break a rule of the format; nothing was written.
        TypeError: A value in the body has no canonical JSON; the manifest does not exist then.
        OutputError: The folder cannot be written, or reads back other bytes.
    """
    try:
        _check_given(body)
        schema = select_schema(body["scores"])
        audit = canonical_table(audit.sort_by("row"), AUDIT)
        select = canonical_table(select, schema)
        check_tables(select, audit, body)
    except ValueError as error:
        raise TamisError(f"the manifest for {folder} was not written: {error}") from error

    _make_folder(folder / "data")
    files = [
        file
        for name, table in (("select", select), ("audit", audit))
        for file in _write_parts(folder, name, table, part_rows)
    ]
    crash_point("commit:parts")
    body = body | {
        "format": FORMAT,
        "version": list(VERSION),
        "counts": count_decisions(audit),
        "files": files,
    }
    body["subset_id"] = digest(body)
    try:
        read_tables(folder, body)
    except DamagedManifestError as error:
        raise OutputError(f"{folder} reads back other bytes than were written: {error}") from error
    crash_point("commit:verified")
    if before_link is not None:
        before_link()

    found = versions(folder)
    if found and _subset_of(folder, found[-1]) == body["subset_id"]:
        return record_path(folder, found[-1])
    path = record_path(folder, found[-1] + 1 if found else 1)
    write_once(path, sealed(body))
    crash_point("commit:linked")
    return path


def _check_given(body: dict[str, Any]) -> None:
    check_body(body)
    computed = [key for key in COMPUTED_KEYS if key in body]
    if computed:
        raise ValueError(f"the body has {computed}, which the commit computes: leave them out")
    unknown = [feature for feature in body["required_features"] if feature not in FEATURES]
    if unknown:
        raise ValueError(f"required_features has {unknown}; known are {sorted(FEATURES)}")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot make the folder {folder}: {error.strerror or error}; free space or choose another output folder"
        ) from error


def _write_parts(folder: Path, name: str, table: pa.Table, part_rows: int) -> list[dict[str, Any]]:
    count = max(1, -(-table.num_rows // part_rows))
    files = []
    for index in range(count):
        part = table.slice(index * part_rows, part_rows)
        data = ipc_bytes(part)
        sha256 = hashlib.sha256(data).hexdigest()
        path = f"data/{content_name(name, index, count, sha256, '.arrow')}"
        if not _has(folder / path, data):
            write_atomic(folder / path, data)
        files.append({"path": path, "rows": part.num_rows, "bytes": len(data), "sha256": sha256})
    return files


def _has(path: Path, data: bytes) -> bool:
    try:
        return not path.is_symlink() and path.read_bytes() == data
    except OSError:
        return False


def _subset_of(folder: Path, version: int) -> str | None:
    """The subset of a version whose record verifies (its parts, if the same, have just been verified)."""
    try:
        return str(read_record(folder, version)["subset_id"])
    except DamagedManifestError:
        return None
