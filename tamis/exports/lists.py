"""Which samples were kept, and nothing of them: their ids as text, or DataComp's array of 128-bit uids."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow.compute as pc

from tamis.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

UID = np.dtype("u8,u8")
"""The two halves of a 128-bit uid, as DataComp's subset files hold them (github.com/mlfoundations/datacomp)."""


def write_ids(select: pa.Table, path: Path) -> None:
    """One sample id a line, in UTF-8 and in rank order.

    Raises:
        DataError: An id has a line break.
    """
    with path.open("x", encoding="utf-8", newline="\n") as stream:
        for sample_id in select["sample_id"].to_pylist():
            if "\n" in sample_id or "\r" in sample_id:
                raise DataError(f"the id {sample_id!r} has a line break: export to parquet or jsonl instead")
            stream.write(sample_id + "\n")


def write_npy(select: pa.Table, path: Path) -> str:
    """A sorted array of `UID`, as DataComp's tools take it: the sample ids where all are uids, else content hashes.

    Returns:
        Which of the two, in words.

    Raises:
        DataError: Several rows have one content hash.
    """
    ids = select["sample_id"]
    # RE2's $ is the end of the text, line break or not.
    named = pc.all(pc.match_substring_regex(ids, "^[0-9a-f]{32}$"), min_count=0).as_py()
    raw = [bytes.fromhex(name) for name in ids.to_pylist()] if named else select["content_hash"].to_pylist()
    uids = np.unique(as_uids(raw))
    if len(uids) < len(raw):
        raise DataError(
            f"{len(raw) - len(uids)} of the {len(raw)} kept rows have the content of another one, and the ids are no "
            "uids of 32 hexadecimal digits: drop duplicates first (dedup with eps: 0), or export to ids"
        )
    with path.open("xb") as stream:
        np.save(stream, uids, allow_pickle=False)
    if named:
        return "the uids are the sample ids"
    return "the uids are the content hashes of the samples, whose ids are not all 32 hexadecimal digits (0-9, a-f)"


def as_uids(raw: list[bytes]) -> np.ndarray:
    """`UID`[n] of n values of 16 bytes: the first eight are the first half's, most significant first."""
    halves = np.frombuffer(b"".join(raw), ">u8").reshape(-1, 2)
    uids = np.empty(len(raw), UID)
    uids["f0"], uids["f1"] = halves[:, 0], halves[:, 1]
    return uids
