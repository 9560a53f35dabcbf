"""What a manifest kept, written whole or not at all."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from typing import TYPE_CHECKING

from tamis.errors import OutputError, RecipeError
from tamis.exports import DESCRIBED, FORMATS, croissant
from tamis.exports.lists import write_ids, write_npy
from tamis.exports.mds import write_mds
from tamis.exports.rows import gather
from tamis.exports.tables import write_hf, write_jsonl, write_parquet
from tamis.exports.tar_shards import write_webdataset
from tamis.manifests.atomic import remove

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    import numpy as np
    import pyarrow as pa

    from tamis.exports.rows import KeptRows
    from tamis.manifests.reader import Manifest

SHARD_BYTES = 64 << 20


def export(
    manifest: Manifest,
    read: Callable[[np.ndarray], Iterable[pa.Table]],
    to: str,
    out: Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    describe: bool = False,
) -> str | None:
    """Write the kept rows.

    Args:
        manifest: Which rows, in which order, with which weight.
        read: From int64[k] row numbers of the dataset, ascending, to tables that hold these rows, in that order; not
            called for a list.
        to: In rank order the source's columns and `tamis_id`, `tamis_weight` and `tamis_rank`, as ``parquet``,
            ``jsonl``, ``hf`` (a folder that `datasets.load_from_disk` reads), ``mds`` or ``webdataset`` (folders of
            shards); or a list: ``ids`` (one sample id a line) or ``npy`` (sorted uids, as DataComp has them).
        out: A path where nothing is yet; it appears whole or not at all.
        shard_bytes: How large the shards of ``mds`` and ``webdataset`` may be.
        describe: Whether to describe a ``parquet`` or ``jsonl`` file in `out`.croissant.json beside it, and the folder
            of ``hf`` in its croissant.json.

    Returns:
        What is to be known of it, if anything.

    Raises:
        RecipeError: There is no such format, or it cannot be described.
        DataError: The source has columns of the added names, or values that the format cannot hold.
        OutputError: There is something at `out`, or it cannot be written.
    """
    if to not in FORMATS:
        raise RecipeError(f"export to {to!r} was asked for; allowed are {', '.join(FORMATS)}")
    if describe and to not in DESCRIBED:
        raise RecipeError(f"Croissant cannot say where the columns of {to} are; describe {', '.join(DESCRIBED)}")
    beside = out.with_name(f"{out.name}.croissant.json") if describe and to != "hf" else None
    for path in (out, beside):
        if path is not None and os.path.lexists(path):
            raise OutputError(f"{path} exists and is not overwritten: choose another path, or remove it first")
    temporary = out.with_name(f".{out.name[:200]}.{secrets.token_hex(8)}.tmp")
    made, note = temporary / "made", None
    try:
        temporary.mkdir()
        if to == "ids":
            write_ids(manifest.select, made)
        elif to == "npy":
            note = write_npy(manifest.select, made)
        else:
            rows = gather(manifest, read, temporary)
            _write_rows(rows, to, made, shard_bytes, manifest.subset_id[:16])
            if describe:
                files = {path.name: path for path in sorted(made.glob("*.arrow"))} if to == "hf" else {out.name: made}
                text = json.dumps(croissant.describe(manifest, rows, to, files), indent=1, ensure_ascii=False)
                description = made / "croissant.json" if beside is None else temporary / "croissant.json"
                with description.open("x", encoding="utf-8") as stream:
                    stream.write(text + "\n")
        _place(temporary, made, out, beside)
    except OSError as error:
        raise OutputError(
            f"cannot write {out}: {error.strerror or error}; free space or choose another path, then run again"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return note


def _write_rows(rows: KeptRows, to: str, path: Path, shard_bytes: int, fingerprint: str) -> None:
    match to:
        case "parquet":
            write_parquet(rows, path)
        case "jsonl":
            write_jsonl(rows, path)
        case "hf":
            write_hf(rows, path, fingerprint)
        case "mds":
            write_mds(rows, path, shard_bytes)
        case _:
            write_webdataset(rows, path, shard_bytes)


def _place(temporary: Path, made: Path, out: Path, beside: Path | None) -> None:
    """Give what was made its names, the data last."""
    if beside is None:
        made.rename(out)
        return
    (temporary / "croissant.json").rename(beside)
    try:
        made.rename(out)
    except OSError:
        remove(beside)
        raise
