"""The training ledger on disk: one Arrow file named by its content, and the record that makes it exist."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from tamis.errors import DamagedManifestError
from tamis.manifests.atomic import hashed_name, remove, write_atomic
from tamis.manifests.canonical import ipc_bytes, sealed, unsealed

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

RECORD = "ledger.json"

_VERSION = 1


def commit_ledger(folder: Path, table: pa.Table, facts: dict[str, Any]) -> Path:
    """Write a ledger, in place of the folder's last one; at every instant one of the two is whole.

    Args:
        folder: There already.
        table: One row a sample, `sample_id` (string) among its columns.
        facts: What the ledger is of, for the record; JSON values.

    Returns:
        The path of the Arrow file.

    Raises:
        OutputError: The folder cannot be written.
    """
    data = ipc_bytes(table)
    sha256 = hashlib.sha256(data).hexdigest()
    path = folder / hashed_name("ledger", sha256, "arrow")
    write_atomic(path, data)
    body = {
        "version": _VERSION,
        "file": {"path": path.name, "sha256": sha256, "bytes": len(data), "rows": table.num_rows},
        "columns": table.column_names,
        **facts,
    }
    write_atomic(folder / RECORD, sealed(body))
    for old in folder.glob("ledger.*.arrow"):
        if old != path:
            remove(old)
    return path


def find_ledger(folder: Path) -> Path:
    """The Arrow file of the folder's ledger, after its bytes were compared with the record.

    Args:
        folder: One with a `ledger.json`.

    Raises:
        DamagedManifestError: The record or the file is not what was written, or is of a later version.
    """
    record = folder / RECORD
    try:
        body = unsealed(record.read_bytes())
        if body["version"] != _VERSION:
            raise ValueError(f"it is of version {body['version']}; this version reads {_VERSION}")
        path = folder / hashed_name("ledger", body["file"]["sha256"], "arrow")
        if hashlib.sha256(path.read_bytes()).hexdigest() != body["file"]["sha256"]:
            raise ValueError(f"{path.name} does not have its sha256")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedManifestError(
            f"the training ledger {record} is damaged: {error}; run the same training again to have it written anew"
        ) from error
    return path
